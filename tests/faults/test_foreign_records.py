"""Records of foreign clients on every topic of a whole shop: nothing stops, waits or is restarted because of them."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from load.client import Shopper
from load.http_client import ShopClient
from tests.testkit.foreign_records import KEYLESS_WRITERS, WRITERS, Place, begin_transaction, write_in_transaction
from tests.testkit.servers import partition
from tests.testkit.shop import Shop, product_code

PATIENCE = 90.0
COMPACTED = ("catalogue.", "inventory.stock", "insights.", "payments.state", "cart-carts-changelog")


@pytest.fixture(scope="module")
def whole_shop() -> Iterator[Shop]:
    """A shop with all of its services, so that each topic has its consumers."""
    with tempfile.TemporaryDirectory(prefix="holdfast-shop-") as folder:
        running = Shop(Path(folder) / "root")
        running.up()
        try:
            yield running
        finally:
            running.down()


@pytest.fixture(scope="module")
def product(whole_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> str:
    code = product_code("FOREIGN")
    whole_shop.seed([(code, "Wanted by all", 100, 500)], tmp_path_factory.mktemp("catalogue"))
    return code


def places(shop: Shop) -> list[Place]:
    """Return all partitions of all topics of a shop, its dead letters and the changelog of its table included."""
    topics = AdminClient({"bootstrap.servers": shop.status()["kafka"]}).list_topics(timeout=30).topics
    found = {name: topic for name, topic in topics.items() if not name.startswith("__")}
    assert {"cart.requests.v1", "cart-carts-changelog", "catalogue.products.v1"} <= found.keys()
    return [(name, number) for name, topic in sorted(found.items()) for number in topic.partitions]


def lag(shop: Shop) -> dict[str, dict[str, int]]:
    """Return the lag of each consumer group on each topic, without zeros."""
    groups = json.loads(shop.holdfast("top", "--json").stdout)["lag"] or {"unknown": {"unknown": 1}}
    found = {group: {topic: n for topic, n in topics.items() if n} for group, topics in groups.items()}
    return {group: topics for group, topics in found.items() if topics}


async def check(shop: Shop, product: str) -> None:
    """Check that requests succeed, all processes are ready, and each consumer is at the end of its topics."""
    async with ShopClient(shop.http_url) as edge, Shopper(edge, await edge.create_guest()) as shopper:
        assert (await shopper.request("add", product=product, quantity=1))["type"] == "held"
    shop.wait_ready(patience=PATIENCE)
    shop.until(lambda: not lag(shop), PATIENCE)


def restarts(shop: Shop) -> dict[str, Any]:
    return {name: each["restarts"] for name, each in shop.status()["services"].items()}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", [*WRITERS, *KEYLESS_WRITERS])
async def test_a_foreign_record_on_each_partition_stops_nothing(whole_shop: Shop, product: str, kind: str) -> None:
    before, kafka = restarts(whole_shop), whole_shop.status()["kafka"]
    everywhere = places(whole_shop)
    if kind in KEYLESS_WRITERS:
        everywhere = [(topic, number) for topic, number in everywhere if not topic.startswith(COMPACTED)]
    write: Any = (WRITERS | KEYLESS_WRITERS)[kind]

    await asyncio.to_thread(write, kafka, everywhere)
    await check(whole_shop, product)
    assert restarts(whole_shop) == before


@pytest.mark.timeout(400)
async def test_an_open_transaction_delays_a_partition_until_the_broker_ends_it(whole_shop: Shop, product: str) -> None:
    before, kafka = restarts(whole_shop), whole_shop.status()["kafka"]
    async with ShopClient(whole_shop.http_url) as edge, Shopper(edge, await edge.create_guest()) as shopper:
        place = ("cart.requests.v1", partition(shopper.guest.user_id.encode()))
        producer = begin_transaction(kafka, [place], timeout_ms=4_000)
        answer = await shopper.request("add", product=product, quantity=1, seconds=PATIENCE)
        assert answer["type"] == "held", "nobody has ended the transaction but the broker"
        del producer  # it was alive until here
    await check(whole_shop, product)
    assert restarts(whole_shop) == before


@pytest.mark.timeout(600)
async def test_tools_pass_foreign_records_and_a_restart_becomes_ready(whole_shop: Shop, product: str) -> None:
    kafka = whole_shop.status()["kafka"]
    # Whatever test ran before: the last offset of each partition is a marker.
    write_in_transaction(kafka, places(whole_shop), commit=True)
    for topic in ("cart.requests.v1", "cart.requests.v1.dlq", "catalogue.products.v1", "cart-carts-changelog"):
        for layout in ("--json", "--plain", "--pretty"):
            assert "Traceback" not in whole_shop.holdfast("tail", topic, layout).stderr
    replay = whole_shop.holdfast("replay", "cart.requests.v1", "--from", "1969-12-31T23:59:59Z", "--dry-run")
    assert "would be sent again" in replay.stdout
    assert "Traceback" not in whole_shop.holdfast("audit", check=False).stderr
    assert "cart.requests.v1" in whole_shop.holdfast("dlq", "list").stdout
    whole_shop.down()
    whole_shop.up()
    await check(whole_shop, product)
