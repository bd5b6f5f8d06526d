"""Dead letters of a shop whose topics have none; all else needs a broker and is tested with one."""

import pytest
from aiokafka import TopicPartition

from infrastructure.local.commands import dead_letters, topic_reader
from infrastructure.process.settings import Settings


@pytest.fixture(autouse=True)
def _no_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shop has one topic and no dead-letter topic; opening a consumer fails the test."""

    async def partitions(_: Settings) -> dict[str, list[TopicPartition]]:
        return {"cart.requests.v1": [TopicPartition("cart.requests.v1", 0)]}

    def consumer(_: Settings) -> None:
        pytest.fail("nothing is to be read")

    monkeypatch.setattr(topic_reader, topic_reader.list_partitions.__name__, partitions)
    monkeypatch.setattr(topic_reader, topic_reader.open_consumer.__name__, consumer)


async def test_a_shop_without_dead_letter_topics_has_no_dead_letters() -> None:
    assert await dead_letters.load_dead_letters(Settings()) == dead_letters.DeadLetterList((), 0)


async def test_nothing_is_read_for_no_dead_letters() -> None:
    assert [each async for each in dead_letters.read_contents(Settings(), [])] == []
