"""The dead letters of a shop, read from their topics together with the marks that say which are settled."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from aiokafka import TopicPartition

from infrastructure import clock
from infrastructure.dead_letters import How, Letter, Settled, read, settled
from infrastructure.envelope import Envelope
from infrastructure.local import topic_reader
from infrastructure.local.replay_tool import DEAD_LETTERS, names
from infrastructure.local.topic_writer import Writer, writer
from infrastructure.settings import Settings

AT_ONCE: Final = 100
"""Letters that are sent, and acknowledged, before their marks are."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A dead letter without its contents."""

    id: str
    """Where the original stood: `topic/partition/offset`."""
    topic: str
    """The original's, by the broker's name."""
    reason: str
    since: datetime
    key: bytes | None
    names: tuple[str | None, str | None]
    """The event's id and its request's, if the original has them."""
    place: tuple[TopicPartition, int]
    settled: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters are meant; none of the options: all."""

    topic: str | None = None
    reason: str | None = None
    id: str | None = None
    key: str | None = None

    def matches(self, entry: Entry, prefix: str) -> bool:
        """Whether `entry` is meant."""
        topic = None if self.topic is None else self.topic.removesuffix(DEAD_LETTERS)
        return (
            topic in (None, entry.topic, entry.topic.removeprefix(prefix))
            and self.reason in (None, entry.reason)
            and (self.key is None or self.key.encode() == entry.key)
            and (self.id is None or self.id in (entry.id, entry.id.removeprefix(prefix), *entry.names))
        )

    @property
    def all(self) -> bool:
        """Whether nothing is left out."""
        return self == Choice()


@dataclass(frozen=True, slots=True)
class Letters:
    """Every letter that is kept, in the order of their times; `strange` counts records that are no letters."""

    entries: tuple[Entry, ...]
    strange: int


async def overview(settings: Settings) -> Letters:
    """Read all dead-letter topics once. Raises Fault when the broker does not answer."""
    there = await topic_reader.partitions(settings)
    places = [p for name, those in there.items() if name.endswith(DEAD_LETTERS) for p in those]
    entries: dict[str, Entry] = {}
    marks: dict[str, str] = {}
    strange = 0
    async with topic_reader.consumer(settings) as reader:
        reader.assign(places)
        starts, ends = await reader.beginning_offsets(places), await reader.end_offsets(places)
        async for record in topic_reader.kept(reader, starts, ends):
            match read(record.value):
                case Letter(event, original):
                    # A letter that was written twice, by a worker that died in between, is one letter.
                    entries.setdefault(
                        event.id,
                        Entry(
                            event.id,
                            record.topic.removesuffix(DEAD_LETTERS),
                            str(event.data.get("reason")),
                            event.time,
                            original.key,
                            names(original.value),
                            (TopicPartition(record.topic, record.partition), record.offset),
                        ),
                    )
                case Settled(id_, how):
                    marks[id_] = how
                case None:
                    strange += 1
    found = (replace(entry, settled=marks.get(entry.id)) for entry in entries.values())
    return Letters(tuple(sorted(found, key=lambda entry: entry.since)), strange)


async def contents(settings: Settings, entries: Sequence[Entry]) -> AsyncIterator[tuple[Entry, Letter]]:
    """The letters of `entries`, whole, one after another: they may be two megabytes each."""
    wanted = {entry.place: entry for entry in entries}
    places = list({place for place, _ in wanted})
    starts = {p: min(offset for place, offset in wanted if place == p) for p in places}
    ends = {p: max(offset for place, offset in wanted if place == p) + 1 for p in places}
    async with topic_reader.consumer(settings) as reader:
        reader.assign(places)
        async for record in topic_reader.kept(reader, starts, ends):
            entry = wanted.get((TopicPartition(record.topic, record.partition), record.offset))
            letter = read(record.value)
            if entry is not None and isinstance(letter, Letter):
                yield entry, letter


async def settle(settings: Settings, entries: Sequence[Entry], how: How) -> int:
    """Mark letters as settled, those to be redriven once their originals lie on their topics again; how many.

    A letter is marked only when its original is acknowledged: who is stopped in between redrives it twice, which the
    log of requests makes harmless; the other way round it would be lost.
    """
    done = 0
    if not entries:
        return done
    async with writer(settings) as out:
        waiting: list[tuple[str, Envelope]] = []
        async for entry, letter in contents(settings, entries):
            if how == "redriven":
                original = letter.original
                await out.send(entry.topic, original.key, original.value, partition=original.partition)
            waiting.append((entry.topic, letter.event))
            done += 1
            if len(waiting) >= AT_ONCE:
                await _mark(out, waiting, how)
        await _mark(out, waiting, how)
    return done


async def _mark(out: Writer, letters: list[tuple[str, Envelope]], how: How) -> None:
    await out.flush()
    for topic, letter in letters:
        mark = settled(letter, how, clock.now())
        await out.send(topic + DEAD_LETTERS, mark.key, mark.encode(), partition=0)
    await out.flush()
    letters.clear()
