"""Malformed records on the topics: each becomes a dead letter of its own, and afterwards everything goes on."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from load.client import Shopper
from load.http_client import ShopClient as Edge
from tests.testkit.foreign_records import USER, event
from tests.testkit.servers import PARTITIONS, partition
from tests.testkit.shop import Shop, product_code

GOOD = json.dumps(event()).encode()
STRANGE = json.dumps(event("inventory.remove", source="/strangers")).encode()
BAD: list[tuple[str, str, bytes | None, bytes]] = [
    ("cart.requests.v1", "not_json", USER.encode(), b"hello"),
    ("cart.requests.v1", "not_utf8", USER.encode(), b"\xff\xfe\x00"),
    ("cart.requests.v1", "no_key", None, GOOD),
    ("cart.requests.v1", "wrong_key", b"somebody-else", GOOD),
    ("cart.requests.v1", "wrong_key", USER.encode(), json.dumps(event(data={"user_id": "somebody-else"})).encode()),
    ("cart.requests.v1", "unknown_type", USER.encode(), json.dumps(event("cart.steal")).encode()),
    ("cart.requests.v1", "wrong_source", USER.encode(), json.dumps(event(source="/payment")).encode()),
    ("cart.requests.v1", "not_cloudevent", USER.encode(), b'{"hello":"world"}'),
    ("cart.requests.v1", "bad_data", USER.encode(), json.dumps(event(data={"quantity": -1})).encode()),
    ("cart.requests.v1", "too_big", USER.encode(), b'"' + b"x" * 900_000 + b'"'),
    ("inventory.requests.v1", "not_json", USER.encode(), b"hello"),
    ("inventory.requests.v1", "wrong_source", USER.encode(), STRANGE),
    ("inventory.responses.v1", "not_json", USER.encode(), b"[" * 10_000),
]


def letters(shop: Shop, topic: str) -> list[dict[str, Any]]:
    """Return the dead letters of `topic`."""
    consumer = Consumer(
        {"bootstrap.servers": shop.status()["kafka"], "group.id": "none", "fetch.message.max.bytes": 4_000_000}
    )
    try:
        place = TopicPartition(f"{topic}.dlq", 0, 0)
        _, end = consumer.get_watermark_offsets(place)
        consumer.assign([place])
        found: list[dict[str, Any]] = []
        while len(found) < end:
            message = consumer.poll(5)
            assert message is not None
            found.append(json.loads(message.value() or b"")["data"])
        return found
    finally:
        consumer.close()


@pytest.fixture
def producer(shop: Shop) -> Producer:
    """librdkafka with its own default partitioner, as kcat comes."""
    return Producer({"bootstrap.servers": shop.status()["kafka"], "message.max.bytes": 1_000_000})


@pytest.mark.parametrize(
    ("topic", "reason", "key", "value"), BAD, ids=[f"{topic}-{reason}" for topic, reason, *_ in BAD]
)
def test_a_bad_record_is_dead_lettered_with_its_reason(
    shop: Shop, producer: Producer, topic: str, reason: str, key: bytes | None, value: bytes
) -> None:
    placed: list[tuple[int | None, int | None]] = []
    place = partition(key) if key else -1  # -1: librdkafka chooses
    producer.produce(
        topic,
        value,
        key,
        on_delivery=lambda _, message: placed.append((message.partition(), message.offset())),
        partition=place,
    )
    assert producer.flush(10) == 0
    end = time.monotonic() + 15
    while True:
        mine = [each for each in letters(shop, topic) if (each["partition"], each["offset"]) == placed[0]]
        if mine:
            break
        assert time.monotonic() < end, "no dead letter"
    (letter,) = mine
    assert letter["reason"] == reason
    assert letter["detail"]
    if "value" in letter:
        assert letter["value"].encode() == value


async def test_afterwards_everything_goes_on(shop: Shop, producer: Producer, tmp_path: Path) -> None:
    product = product_code("AFTER")
    shop.seed([(product, "Still here", 100, 5)], tmp_path)
    async with Edge(shop.http_url) as edge, Shopper(edge, await edge.create_guest()) as shopper:
        user = shopper.guest.user_id.encode()
        for topic, _, key, value in BAD:
            # The bad record lies right before the good request, on its partition.
            producer.produce(topic, value, user if key else None, partition=partition(user))
        assert producer.flush(10) == 0
        assert (await shopper.request("add", product=product, quantity=2))["type"] == "held"


async def test_a_record_on_a_wrong_partition_finds_its_way(shop: Shop, producer: Producer, tmp_path: Path) -> None:
    product = product_code("KCAT")
    shop.seed([(product, "By kcat", 100, 5)], tmp_path)
    async with Edge(shop.http_url) as edge, Shopper(edge, await edge.create_guest()) as shopper:
        user = shopper.guest.user_id
        by_hand = event(subject=user, data={"user_id": user, "product": product, "quantity": 3})
        astray = (partition(user.encode()) + 1) % PARTITIONS
        producer.produce("cart.requests.v1", json.dumps(by_hand).encode(), user.encode(), partition=astray)
        assert producer.flush(10) == 0
        shop.until(lambda: _held(shop, user, product) == 3)


def _held(shop: Shop, user: str, product: str) -> int:
    with psycopg.connect(shop.postgres_url) as database:
        row = database.execute(
            "SELECT hold_quantity FROM inventory.hold WHERE user_id = %s AND product_code = %s", [user, product]
        ).fetchone()
    return row[0] if row else 0


async def test_a_request_from_the_future_or_the_far_past_is_not_done(
    shop: Shop, producer: Producer, tmp_path: Path
) -> None:
    product = product_code("TIME")
    shop.seed([(product, "Of its time", 100, 5)], tmp_path)
    async with Edge(shop.http_url) as edge, Shopper(edge, await edge.create_guest()) as shopper:
        user = shopper.guest.user_id
        for request_id, away in (("old", timedelta(days=-8)), ("new", timedelta(minutes=10))):
            by_hand = event(
                subject=user,
                requestid=request_id,
                time=(datetime.now(UTC) + away).isoformat(),
                data={"user_id": user, "product": product, "quantity": 1},
            )
            producer.produce(
                "cart.requests.v1", json.dumps(by_hand).encode(), user.encode(), partition=partition(user.encode())
            )
        assert producer.flush(10) == 0
        answers: dict[str, dict[str, Any]] = {}

        def answered() -> bool:
            lines = shop.holdfast("tail", "cart.responses.v1", "--key", user).stdout.splitlines()
            told = [json.loads(line.partition("\t")[2]) for line in lines]
            answers.update({each["requestid"]: each for each in told})
            return {"old", "new"} <= answers.keys()

        shop.until(answered)
        assert (answers["old"]["type"], answers["old"]["data"]["reason"]) == ("holdfast.cart.refused", "expired")
        assert (answers["new"]["type"], answers["new"]["data"]["code"]) == ("holdfast.cart.error", "bad_field")
        assert (await shopper.request("check", product=product))["available"] == 5
