"""The projector: applied events, skipped records, stored positions and lag, without Kafka and Postgres."""

from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.subscription_state import SubscriptionState

from contracts.envelope import Envelope, Message, UndecodableError, UnreadableBatch
from contracts.inventory import PRODUCT_REGISTRY, PRODUCTS, STOCK, STOCK_REGISTRY, Stock
from infrastructure.process.settings import Settings
from rest_api.read_models.projector import Event, Projector, Topics, newest
from rest_api.read_models.store import ReadPosition

SETTINGS = Settings(prefix="p.")
NAME = SETTINGS.topic(STOCK)


def stock(product: str, version: int, available: int = 1) -> Stock:
    return Stock(product=product, available=available, received=available, held=0, sold=0, version=version)


def record(message: Message | None, offset: int, *, key: bytes = b"P", value: bytes | None = None) -> Any:
    if message is not None:
        data = message.model_dump(mode="json")
        event = Envelope(id="e", source="/inventory", type=message.TYPE, subject="P", time=datetime.now(UTC), data=data)
        value = event.encode()
    return SimpleNamespace(topic=NAME, partition=0, offset=offset, key=key, value=value)


class ReadModel:
    """A read model that keeps all it is given."""

    def __init__(self, **options: Any) -> None:
        no_store: Any = None
        topics: Topics = {PRODUCTS: PRODUCT_REGISTRY, STOCK: STOCK_REGISTRY}
        self.projector = Projector(SETTINGS, no_store, "a test", topics, self.apply, **options)
        self.messages: list[Any] = []
        self.positions: list[ReadPosition] = []

    async def apply(self, events: Sequence[Event], positions: Sequence[ReadPosition]) -> None:
        assert all(event.topic == STOCK for event in events)
        self.messages += [event.message for event in events]
        self.positions += positions

    async def project(self, *records: Any) -> None:
        await self.projector._project({TopicPartition(NAME, 0): records})


async def test_events_are_applied_in_order_with_the_next_position() -> None:
    model = ReadModel()
    await model.project(record(stock("P", 1), 4), record(stock("P", 2), 7))
    assert [message.version for message in model.messages] == [1, 2]
    assert model.positions == [(NAME, 0, 8)]


async def test_malformed_records_are_skipped_and_their_position_stored(caplog: pytest.LogCaptureFixture) -> None:
    model = ReadModel()
    await model.project(record(None, 1, value=b"nonsense"), record(None, 2), record(stock("P", 1), 3, key=b"Q"))
    assert model.messages == []
    assert model.positions == [(NAME, 0, 4)]
    assert len(caplog.records) == 3


async def test_expected_tombstones_are_skipped_silently(caplog: pytest.LogCaptureFixture) -> None:
    model = ReadModel(skips_tombstones=True)
    await model.project(record(None, 2))
    assert (model.messages, model.positions, caplog.records) == ([], [(NAME, 0, 3)], [])


async def test_a_message_that_cannot_be_stored_is_skipped() -> None:
    def check(_: Envelope, message: Any) -> None:
        if message.version == 2:
            raise UndecodableError("bad_data", "a text holds a NUL")

    model = ReadModel(check=check)
    await model.project(*(record(stock("P", version), version) for version in (1, 2, 3)))
    assert [message.version for message in model.messages] == [1, 3]


async def test_the_read_model_is_incomplete_until_it_reaches_the_initial_end() -> None:
    """The last offsets may have no record: the position counts."""
    model = ReadModel()
    assert model.projector.fault == "the read model of a test has not begun"
    ends = {TopicPartition(NAME, 0): 3, TopicPartition(NAME, 1): 1}
    model.projector._lag = dict(ends)
    subscriptions = SubscriptionState()
    subscriptions.assign_from_user(set(ends))
    consumer: Any = SimpleNamespace(_subscription=subscriptions)
    for offset, number, behind in ((2, 0, 2), (3, 0, 1), (0, 1, 1), (1, 1, 0)):
        subscriptions.seek(TopicPartition(NAME, number), offset)
        model.projector._update_lag(consumer)
        expected = f"the read model of a test is behind in {behind} partitions" if behind else None
        assert model.projector.fault == expected


async def test_the_position_behind_an_unreadable_batch_is_stored() -> None:
    model = ReadModel()
    value = UnreadableBatch(b"\x00", first_offset=4, last_offset=9, reason="damaged")
    await model.project(record(None, 4, value=value))
    assert model.messages == []
    assert model.positions == [(NAME, 0, 10)]


def test_the_newest_of_each_key_wins_in_any_order() -> None:
    levels = [stock("P", 2, 20), stock("Q", 1), stock("P", 3, 30), stock("P", 3, 99), stock("P", 1, 10)]
    found = newest(levels, lambda level: level.product)
    assert {code: (level.version, level.available) for code, level in found.items()} == {"P": (3, 30), "Q": (1, 1)}
