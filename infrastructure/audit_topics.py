"""Audit of request topics, for all services: each record was processed or dead-lettered.

Kafka deletes records by age, and new ones arrive all the time. So only records of a certain age are audited: old enough
to have been processed, young enough for all of their effects to be still there.
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from infrastructure import clock, dead_letters, metrics
from infrastructure.envelope import Envelope, Message, Reason, Undecodable, Vocabulary

log = logging.getLogger(__name__)

SHOWN: Final = 20
"""Violations of one kind that are listed; the rest is only counted."""
TO_BE_SURE: Final = timedelta(hours=12)
"""Records that Kafka will delete within this time are not audited."""
SHARE: Final = 20
"""A background audit pauses this many times as long as it worked: it uses at most a twentieth of a core."""
ROUND: Final = 5
"""Each partition is audited after this many times the pause between two audits of tables."""
SKEW: Final = timedelta(minutes=6)
"""Difference between two clocks: an effect may be dated earlier than its cause by this much."""
IDLE_TURNS: Final = 24
"""An auditor without partitions checks this many times a round whether it has been assigned one."""
BUSY_SECONDS: Final = 0.002
"""Longest time that an audit blocks the event loop that it shares with a worker."""

M = TypeVar("M", bound=Message)
Place = tuple[str, int, int]


def shown(found: list[str]) -> list[str]:
    """Return the first violations of one kind, and a line with the number of the others."""
    return found[:SHOWN] + ([f"and {len(found) - SHOWN} more of this kind"] if len(found) > SHOWN else [])


def show(report: Mapping[str, Any], *, as_json: bool) -> int:
    """Print the report of an audit, as text or as JSON; return the exit status, 1 if there are violations."""
    if as_json:
        lines = [json.dumps(report)]
    else:
        figures = ", ".join(f"{name} {count}" for name, count in report["figures"].items())
        digest = [f"digest {report['digest']}"] if "digest" in report else []
        verdict = "everything adds up" if report["ok"] else f"{len(report['violations'])} violations"
        lines = [*report["violations"], figures, *digest, verdict]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if report["ok"] else 1


@dataclass(frozen=True, slots=True)
class Window:
    """The records that are audited at `now`: older than `grace`, and not to be deleted soon."""

    now: datetime
    grace: timedelta
    kept: timedelta
    """Retention of the topics."""
    judged: timedelta = timedelta.max
    """Greatest age of an audited record."""

    def covers(self, record: Any) -> bool:
        """Return whether all effects of `record` must be there: it is neither too new nor too old."""
        age = self.now - datetime.fromtimestamp(record.timestamp / 1000, UTC)
        return self.grace <= age < min(self.kept - TO_BE_SURE, self.judged)

    def remembers(self, event: Envelope) -> bool:
        """Return whether the log still has the outcome of this request, however late its record was written."""
        return self.now - event.time < self.kept


@dataclass(slots=True)
class Judged(Generic[M]):
    """Audit of one topic: which of its records are unreadable, and which are dead letters.

    Call `parse` for each record and `letter` for each dead letter, in any order; then get the violations.
    """

    name: str
    """The broker's name of the topic; its dead letters are on `name.dlq`."""
    vocabulary: Vocabulary[M]
    window: Window
    ignores_unknown: bool = False
    unread: dict[Place, Reason] = field(default_factory=dict)
    letters: set[Place] = field(default_factory=set)

    def parse(self, record: Any) -> tuple[Envelope, M] | None:
        """Return the event and its message; `None` for an unreadable record, which must be a dead letter then."""
        try:
            event = Envelope.decode(record.key, record.value)
            return event, self.vocabulary.parse(event)
        except Undecodable as error:
            passed_over = self.ignores_unknown and error.reason == "unknown_type"
            if self.window.covers(record) and not passed_over:
                self.unread[place_of(record)] = error.reason
            return None

    def letter(self, record: Any) -> None:
        """Add a record of the dead-letter topic."""
        found = dead_letters.read(record.value)
        if isinstance(found, dead_letters.Letter):
            self.letters.add((found.original.topic, found.original.partition, found.original.offset))

    def neither_read_nor_put_aside(self) -> list[str]:
        """Return a violation for each unreadable record that is not among the dead letters."""
        return [
            f"{named(place)} can't be read ({reason}) and is not among the dead letters"
            for place, reason in self.unread.items()
            if place not in self.letters
        ]


def place_of(record: Any) -> Place:
    """Return the position of a record."""
    return record.topic, record.partition, record.offset


def named(place: Place) -> str:
    """Return a position in the notation of dead letters: `topic/partition/offset`."""
    return "/".join(map(str, place))


async def gently(records: AsyncIterator[Any], readers: Mapping[str, Callable[[Any], None]]) -> None:
    """Pass each record to the reader of its topic, and pause `SHARE` times as long as that takes."""
    busy = 0.0
    async for record in records:
        began = time.perf_counter()
        readers[record.topic](record)
        busy += time.perf_counter() - began
        if busy > BUSY_SECONDS:
            await asyncio.sleep(SHARE * busy)
            busy = 0.0


def export(service: str, violations: int, *, age: Callable[[], float], seconds: float) -> None:
    """Export the result of a background audit: violations, current age in seconds, and duration."""
    metrics.AUDIT_VIOLATIONS.labels(service).set(violations)
    metrics.AUDIT_AGE.labels(service).set_function(age)
    metrics.AUDIT_SECONDS.labels(service).set(seconds)


def withdraw() -> None:
    """Remove the exported result: from now on another process exports it."""
    for gauge in (metrics.AUDIT_VIOLATIONS, metrics.AUDIT_AGE, metrics.AUDIT_SECONDS):
        gauge.clear()


Look = Callable[[int, Window], Awaitable[list[str]]]
"""Audits one partition of all topics of a service; returns a sentence for each violation in the window."""


class TopicAuditor:
    """Background auditor of a service's topics, one partition at a time. Each replica audits its own partitions.

    A partition is audited again after `ROUND * every` seconds, or later if there is much to read. Each audit covers the
    records of two such rounds, so a violation is logged twice, and counted in the metric as long.
    """

    def __init__(
        self,
        owned: Callable[[], Collection[int]],
        look: Look,
        every: float,
        *,
        service: str,
        grace: timedelta,
        kept: timedelta,
    ) -> None:
        self.owned = owned
        self.look = look
        self.round = ROUND * every
        self.service = service
        self.grace = grace
        self.kept = kept
        self._looked: dict[int, float] = {}
        self._found: dict[int, int] = {}

    async def run(self) -> None:
        """Audit one partition after another indefinitely. Raises when the broker is away."""
        try:
            while True:
                began = time.monotonic()
                mine = sorted(self.owned())
                if mine:
                    await self._audit(min(mine, key=lambda partition: self._looked.get(partition, 0.0)), mine)
                turn = self.round / (len(mine) or IDLE_TURNS)
                await asyncio.sleep(max(0.0, began + turn - time.monotonic()))
        finally:
            withdraw()

    async def _audit(self, partition: int, mine: Collection[int]) -> None:
        began = time.monotonic()
        judged = self.grace + timedelta(seconds=2 * self.round)
        violations = await self.look(partition, Window(clock.now(), self.grace, self.kept, judged))
        for violation in violations:
            log.error("audit: %s", violation)
        self._looked[partition], self._found[partition] = time.monotonic(), len(violations)
        found = sum(self._found.get(each, 0) for each in mine)
        export(self.service, found, age=self._age, seconds=time.monotonic() - began)

    def _age(self) -> float:
        looked = [at for partition in self.owned() if (at := self._looked.get(partition)) is not None]
        return time.monotonic() - min(looked) if looked else 0.0
