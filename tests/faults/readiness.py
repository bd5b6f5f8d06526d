"""How long a worker takes to be ready beside 10,000 live carts and 1,000,000 past requests.

`python -m tests.faults.readiness` fills a shop of its own, the tables by SQL and the changelog of carts by hand, kills
its workers, and prints the seconds from the start of each process to its readiness, as the supervisor saw it. The exit
status is 1 when that was longer than the target, or when the carts are then not those of the changelog.
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

from cart_service.model import Cart, cart_view
from contracts.inventory import Line, Money
from infrastructure.local.state import Root, Stack, find_running
from infrastructure.process.settings import Settings
from tests.testkit.servers import partition
from tests.testkit.shop import Shop
from tests.testkit.topic_client import shoppers

CHANGELOG = "cart-carts-changelog"
TARGET_SECONDS = 10.0
MINUTES = 50
"""Until a cart ends, by the changelog; by the tables it is later. Both are of one revision, so that neither gives way:
its end shows where a cart comes from."""

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
    """Fill, kill, measure; one JSON object on standard output, and what is wrong with it on the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--carts", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-ready-") as folder:
        shop = Shop(Path(folder) / "root")
        shop.up("--workers", "cart=1,inventory=1", "--no-limits")  # the one has all of it
        try:
            measured, wrong = _measure(shop, asked.carts, asked.requests)
        finally:
            shop.down()
    print(json.dumps(measured))
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


def _measure(shop: Shop, carts: int, requests: int) -> tuple[dict[str, Any], list[str]]:
    """The figures, and a sentence for each that is not as it should be."""
    stack = find_running(Root(shop.root))
    assert stack is not None
    began = time.monotonic()
    with psycopg.connect(stack.postgres_url, autocommit=True) as database:
        database.execute(FILL.format(carts=carts, requests=requests).encode())
    kept = Cart(
        revision=1,
        expires_at=datetime.now(UTC) + timedelta(minutes=MINUTES),
        lines=(Line(product="PLENTY", quantity=1, price=Money(amount=100, currency="GBP")),),
    ).model_dump_json()
    asyncio.run(_changelog(stack, carts, kept.encode()))
    print(f"filled in {time.monotonic() - began:.0f} s", file=sys.stderr)
    for name in ("cart-1", "inventory-1"):
        before = shop.status()["services"][name]["pid"]
        shop.kill(name, signal.SIGKILL)
        shop.until(lambda name=name, before=before: shop.status()["services"][name]["pid"] not in (0, before), 30)
        shop.wait_ready(name)
    log = (shop.root / "logs" / "supervisor.log").read_text().splitlines()
    ready = [event for event in (json.loads(line.partition(" ")[2]) for line in log) if event["kind"] == "ready"]
    seconds = {event["name"]: event["seconds"] for event in ready if event["name"] in {"cart-1", "inventory-1"}}
    wrong = [
        f"{name} was ready after {seconds[name]:.1f} s, and should be after {TARGET_SECONDS:.0f} s at most"
        for name in ("cart-1", "inventory-1")
        if seconds[name] > TARGET_SECONDS
    ]
    wrong += asyncio.run(_not_recovered(stack, carts, Cart.model_validate_json(kept)))
    return {"carts": carts, "requests": requests, "seconds_to_ready": seconds}, wrong


async def _not_recovered(stack: Stack, carts: int, kept: Cart) -> list[str]:
    """A sentence for each of three carts that the one worker shows otherwise than the changelog had it."""
    settings = Settings(kafka=stack.kafka, postgres_url=stack.postgres_url, redis_url=stack.redis_url)
    wrong = []
    async with shoppers(settings) as here:
        for user in sorted({f"user-{number}" for number in (1, carts // 2 + 1, carts)}):
            shown = await here.read(user)
            if shown != cart_view(kept):
                wrong.append(f"the cart of {user} is not the one of the changelog: {shown.model_dump_json()}")
    return wrong


async def _changelog(stack: Stack, carts: int, value: bytes) -> None:
    """Write each cart to the changelog as the cart service would have written it."""
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka, linger_ms=20)
    await producer.start()
    try:
        keys = [f"user-{number}".encode() for number in range(1, carts + 1)]
        sent = [await producer.send(CHANGELOG, value, key, partition=partition(key)) for key in keys]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


if __name__ == "__main__":
    sys.exit(main())
