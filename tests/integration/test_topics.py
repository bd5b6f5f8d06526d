"""Topics are created with the partitions of the settings, and a topic with another number is not used."""

import pytest

from contracts.topics import Topic
from infrastructure.messaging.broker import PartitionCountError, ensure_topics
from infrastructure.process.settings import Settings

EVENTS = Topic("topics.events.v1", keyed_by="user")


async def test_a_topic_with_another_number_of_partitions_is_refused_with_the_setting_to_change(
    settings: Settings,
) -> None:
    await ensure_topics(settings, [EVENTS, EVENTS.dead_letter_topic])
    await ensure_topics(settings, [EVENTS, EVENTS.dead_letter_topic])
    other = settings.model_copy(update={"partitions": settings.partitions + 1})
    expected = r"has 4 partitions, and this process expects 5: set HOLDFAST_PARTITIONS"
    with pytest.raises(PartitionCountError, match=expected):
        await ensure_topics(other, [EVENTS])
