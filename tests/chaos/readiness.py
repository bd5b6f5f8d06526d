"""How long a worker takes to be ready beside 10,000 live carts and 1,000,000 past requests.

`python -m tests.chaos.readiness` fills a shop of its own, the tables by SQL and the changelog of carts by hand, kills
its workers, and prints the seconds from the start of each process to its readiness, as the supervisor saw it.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from aiokafka import AIOKafkaProducer

from cart_service.model import Cart
from infrastructure.broker import partition_of
from infrastructure.local.state import Root, Stack, find_running
from inventory_service.messages import Line, Money
from tests.shop import Shop

CHANGELOG = "cart-carts-changelog"

FILL = """
SET synchronous_commit = off;
INSERT INTO inventory.holder (user_id, revision, first_held_at, expires_at)
SELECT 'user-' || n, 1, now(), now() + interval '55 minutes' FROM generate_series(1, {carts}) AS n;
INSERT INTO inventory.inventory (product_code, received, held, price_minor, currency, version)
VALUES ('PLENTY', 1000000, {carts}, 100, 'GBP', {carts} + 1);
INSERT INTO inventory.product (code, name) VALUES ('PLENTY', 'There is plenty of it');
INSERT INTO inventory.stock_ledger (product_code, version, cause, received, held, sold)
VALUES ('PLENTY', 1, 'seed', 1000000, 0, 0);
INSERT INTO inventory.stock_ledger (product_code, version, user_id, requestid, cause, received, held, sold)
SELECT 'PLENTY', n + 1, 'user-' || n, 'request-1', 'add', 0, 1, 0 FROM generate_series(1, {carts}) AS n;
INSERT INTO inventory.hold (user_id, product_code, hold_quantity, price_minor, currency)
SELECT 'user-' || n, 'PLENTY', 1, 100, 'GBP' FROM generate_series(1, {carts}) AS n;
INSERT INTO inventory.request_log (user_id, requestid, command, outcome, revision)
SELECT 'user-' || (n % {carts} + 1), 'request-' || (n / {carts} + 1),
       '{{"type": "holdfast.inventory.hold", "mode": "add", "product": "PLENTY", "quantity": 1}}',
       '{{"type": "refused", "product": "PLENTY", "reason": "out_of_stock", "available": 0}}', 1
  FROM generate_series(0, {requests} - 1) AS n;
"""


def main() -> int:
    """Fill, kill, measure; one JSON object on standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--carts", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-ready-") as folder:
        shop = Shop(Path(folder) / "root")
        shop.up("--workers", "cart=1,inventory=1", "--no-limits")  # the one has all of it
        try:
            print(json.dumps(_measure(shop, asked.carts, asked.requests)))
        finally:
            shop.down()
    return 0


def _measure(shop: Shop, carts: int, requests: int) -> dict[str, Any]:
    stack = find_running(Root(shop.root))
    assert stack is not None
    began = time.monotonic()
    with psycopg.connect(stack.postgres_url, autocommit=True) as database:
        database.execute(FILL.format(carts=carts, requests=requests).encode())
    asyncio.run(_changelog(stack, carts))
    print(f"filled in {time.monotonic() - began:.0f} s", file=sys.stderr)
    for name in ("cart-1", "inventory-1"):
        before = shop.status()["services"][name]["pid"]
        shop.kill(name, signal.SIGKILL)
        shop.until(lambda name=name, before=before: shop.status()["services"][name]["pid"] not in (0, before), 30)
        shop.wait_ready(name)
    log = (shop.root / "logs" / "supervisor.log").read_text().splitlines()
    ready = [event for event in (json.loads(line.partition(" ")[2]) for line in log) if event["kind"] == "ready"]
    seconds = {event["name"]: event["seconds"] for event in ready if event["name"] in {"cart-1", "inventory-1"}}
    return {"carts": carts, "requests": requests, "seconds_to_ready": seconds}


async def _changelog(stack: Stack, carts: int) -> None:
    """Each cart stands in the changelog as the cart service would have written it."""
    ends = datetime.now(UTC) + timedelta(minutes=55)
    line = Line(product="PLENTY", quantity=1, price=Money(amount=100, currency="GBP"))
    value = Cart(revision=1, expires_at=ends, lines=(line,)).model_dump_json().encode()
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka, linger_ms=20)
    await producer.start()
    try:
        keys = [f"user-{number}".encode() for number in range(1, carts + 1)]
        sent = [await producer.send(CHANGELOG, value, key, partition=partition_of(key)) for key in keys]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


if __name__ == "__main__":
    sys.exit(main())
