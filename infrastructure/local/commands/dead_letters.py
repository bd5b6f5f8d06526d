"""Dead letters of a shop, read from their topics together with the markers of the settled ones."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from aiokafka import TopicPartition

from contracts.envelope import Envelope
from infrastructure.local.commands import topic_reader
from infrastructure.local.commands.replay import DEAD_LETTER_SUFFIX, event_ids
from infrastructure.local.commands.topic_writer import TopicWriter, open_writer
from infrastructure.messaging.dead_letters import DeadLetter, SettledMarker, Settlement, decode, settled_event
from infrastructure.process import clock
from infrastructure.process.settings import Settings

BATCH_SIZE: Final = 100
"""Dead letters whose originals are sent and acknowledged before their markers are sent."""


@dataclass(frozen=True, slots=True)
class DeadLetterEntry:
    """A dead letter without the original's value."""

    id: str
    """Position of the original: `topic/partition/offset`."""
    topic: str
    """Topic of the original, with the shop's prefix."""
    reason: str
    time: datetime
    """Time of the dead letter."""
    key: bytes | None
    """Key of the original."""
    event_ids: tuple[str | None, str | None]
    """Event id and request id of the original, as far as it has them."""
    position: tuple[TopicPartition, int]
    """Position of the dead letter itself."""
    settled: str | None = None
    """How the dead letter was settled (`redriven`, `dropped`), `None` if it was not."""
    incomplete: str | None = None
    """Why the original cannot be sent again, `None` if it can."""


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Filter for dead letters; a field that is `None` matches all."""

    topic: str | None = None
    reason: str | None = None
    id: str | None = None
    key: str | None = None

    def matches(self, entry: DeadLetterEntry, prefix: str) -> bool:
        """Return whether `entry` passes the filter; topic and id match with and without `prefix`."""
        topic = None if self.topic is None else self.topic.removesuffix(DEAD_LETTER_SUFFIX)
        return (
            topic in (None, entry.topic, entry.topic.removeprefix(prefix))
            and self.reason in (None, entry.reason)
            and (self.key is None or self.key.encode() == entry.key)
            and (self.id is None or self.id in (entry.id, entry.id.removeprefix(prefix), *entry.event_ids))
        )

    @property
    def matches_all(self) -> bool:
        """True if every dead letter passes."""
        return self == DeadLetterFilter()


@dataclass(frozen=True, slots=True)
class DeadLetterList:
    """All dead letters on the topics, ordered by time."""

    entries: tuple[DeadLetterEntry, ...]
    unreadable: int
    """Number of records that are neither dead letters nor markers."""


async def load_dead_letters(settings: Settings) -> DeadLetterList:
    """Read all dead-letter topics once. Raises `StackError` if the broker does not answer."""
    topics = await topic_reader.list_partitions(settings)
    partitions = [p for name, partitions in topics.items() if name.endswith(DEAD_LETTER_SUFFIX) for p in partitions]
    if not partitions:
        # A consumer that stops without having waited for the broker raises CancelledError (aiokafka).
        return DeadLetterList((), 0)
    entries: dict[str, DeadLetterEntry] = {}
    markers: dict[str, str] = {}
    unreadable = 0
    async with topic_reader.open_consumer(settings) as reader:
        reader.assign(partitions)
        starts, ends = await reader.beginning_offsets(partitions), await reader.end_offsets(partitions)
        async for record in topic_reader.read_range(reader, starts, ends):
            match decode(record.value):
                case DeadLetter(event, original, incomplete):
                    # A worker that crashed after writing a dead letter writes it again: both records count as one.
                    entries.setdefault(
                        event.id,
                        DeadLetterEntry(
                            event.id,
                            record.topic.removesuffix(DEAD_LETTER_SUFFIX),
                            str(event.data.get("reason")),
                            event.time,
                            original.key,
                            event_ids(original.value),
                            (TopicPartition(record.topic, record.partition), record.offset),
                            incomplete=incomplete,
                        ),
                    )
                case SettledMarker(id_, how):
                    markers[id_] = how
                case None:
                    unreadable += 1
    found = (replace(entry, settled=markers.get(entry.id)) for entry in entries.values())
    return DeadLetterList(tuple(sorted(found, key=lambda entry: entry.time)), unreadable)


async def read_contents(
    settings: Settings, entries: Sequence[DeadLetterEntry]
) -> AsyncIterator[tuple[DeadLetterEntry, DeadLetter]]:
    """Yield the complete dead letters of `entries` one by one, because each may be two megabytes long."""
    if not entries:
        return
    by_position = {entry.position: entry for entry in entries}
    partitions = list({partition for partition, _ in by_position})
    starts = {p: min(offset for partition, offset in by_position if partition == p) for p in partitions}
    ends = {p: max(offset for partition, offset in by_position if partition == p) + 1 for p in partitions}
    async with topic_reader.open_consumer(settings) as reader:
        reader.assign(partitions)
        async for record in topic_reader.read_range(reader, starts, ends):
            entry = by_position.get((TopicPartition(record.topic, record.partition), record.offset))
            dead_letter = decode(record.value)
            if entry is not None and isinstance(dead_letter, DeadLetter):
                yield entry, dead_letter


async def settle(settings: Settings, entries: Sequence[DeadLetterEntry], how: Settlement) -> int:
    """Mark dead letters as settled and return their number; `redriven` sends the originals to their topics first.

    A dead letter is marked only after its original is acknowledged. A run that is interrupted in between redrives it
    twice, which the request log makes harmless; the opposite order would lose it.
    """
    done = 0
    if not entries:
        return done
    async with open_writer(settings) as out:
        waiting: list[tuple[str, Envelope]] = []
        async for entry, dead_letter in read_contents(settings, entries):
            if how == "redriven":
                original = dead_letter.original
                await out.send(entry.topic, original.key, original.value, partition=original.partition)
            waiting.append((entry.topic, dead_letter.event))
            done += 1
            if len(waiting) >= BATCH_SIZE:
                await _send_markers(out, waiting, how)
        await _send_markers(out, waiting, how)
    return done


async def _send_markers(out: TopicWriter, dead_letters: list[tuple[str, Envelope]], how: Settlement) -> None:
    await out.flush()
    for topic, dead_letter in dead_letters:
        marker = settled_event(dead_letter, how, clock.now())
        await out.send(topic + DEAD_LETTER_SUFFIX, marker.key, marker.encode(), partition=0)
    await out.flush()
    dead_letters.clear()
