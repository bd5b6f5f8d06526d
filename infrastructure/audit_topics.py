"""What the audits of all services ask of a topic with requests: that each record was acted on or put aside.

Kafka forgets by age and the shop is busy, so only records of a certain age are judged: old enough to have been acted
on, young enough for everything that came of them to be there still.
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
"""Violations of one kind that are spelled out; the rest is only counted."""
TO_BE_SURE: Final = timedelta(hours=12)
"""Records that are forgotten this soon are not judged."""
SHARE: Final = 20
"""An audit beside the shop rests this many times as long as it took: at most a twentieth of a core."""
ROUND: Final = 5
"""Each partition is looked at after this many times the pause between two audits of tables."""
SKEW: Final = timedelta(minutes=6)
"""So much earlier than what is judged may what came of it be dated, by another clock."""
IDLE_TURNS: Final = 24
"""An auditor that owns no partition checks this many times a round whether it has got one."""
BUSY_SECONDS: Final = 0.002
"""Who shares a loop with a worker holds it up for no longer."""

M = TypeVar("M", bound=Message)
Place = tuple[str, int, int]


def shown(found: list[str]) -> list[str]:
    """The first violations of one kind, and how many more there are."""
    return found[:SHOWN] + ([f"and {len(found) - SHOWN} more of this kind"] if len(found) > SHOWN else [])


def show(report: Mapping[str, Any], *, as_json: bool) -> int:
    """Print an audit, for a person or for machines; the exit status: 1 when something does not add up."""
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
    """Which records are judged, at `now`: those that came in more than `grace` ago and stay for a while."""

    now: datetime
    grace: timedelta
    kept: timedelta
    """How long the topics keep their records."""
    judged: timedelta = timedelta.max
    """And came in no longer ago than this."""

    def covers(self, record: Any) -> bool:
        """Whether everything that should have come of `record` must be there."""
        age = self.now - datetime.fromtimestamp(record.timestamp / 1000, UTC)
        return self.grace <= age < min(self.kept - TO_BE_SURE, self.judged)

    def remembers(self, event: Envelope) -> bool:
        """Whether the log still has what came of a request of this age, however late its record is."""
        return self.now - event.time < self.kept


@dataclass(slots=True)
class Judged(Generic[M]):
    """One topic's records, and which of them are dead letters. Add both, in any order, then ask for violations."""

    name: str
    """The topic's, at the broker; its letters are on `name.dlq`."""
    vocabulary: Vocabulary[M]
    window: Window
    ignores_unknown: bool = False
    unread: dict[Place, Reason] = field(default_factory=dict)
    letters: set[Place] = field(default_factory=set)

    def parse(self, record: Any) -> tuple[Envelope, M] | None:
        """The event and its message; none for a record that can't be read, which must be a dead letter then."""
        try:
            event = Envelope.decode(record.key, record.value)
            return event, self.vocabulary.parse(event)
        except Undecodable as error:
            passed_over = self.ignores_unknown and error.reason == "unknown_type"
            if self.window.covers(record) and not passed_over:
                self.unread[place_of(record)] = error.reason
            return None

    def letter(self, record: Any) -> None:
        """A record of the dead-letter topic."""
        found = dead_letters.read(record.value)
        if isinstance(found, dead_letters.Letter):
            self.letters.add((found.original.topic, found.original.partition, found.original.offset))

    def neither_read_nor_put_aside(self) -> list[str]:
        """A violation for each record that can't be read and is not among the dead letters."""
        return [
            f"{named(place)} can't be read ({reason}) and is not among the dead letters"
            for place, reason in self.unread.items()
            if place not in self.letters
        ]


def place_of(record: Any) -> Place:
    """Where a record stands."""
    return record.topic, record.partition, record.offset


def named(place: Place) -> str:
    """A place as the dead letters name it."""
    return "/".join(map(str, place))


async def gently(records: AsyncIterator[Any], readers: Mapping[str, Callable[[Any], None]]) -> None:
    """Give each record to the reader of its topic, and rest `SHARE` times as long as that takes."""
    busy = 0.0
    async for record in records:
        began = time.perf_counter()
        readers[record.topic](record)
        busy += time.perf_counter() - began
        if busy > BUSY_SECONDS:
            await asyncio.sleep(SHARE * busy)
            busy = 0.0


def export(service: str, violations: int, *, age: Callable[[], float], seconds: float) -> None:
    """Make known what an audit beside the shop found, how old that is whenever it is asked, and how long it took."""
    metrics.AUDIT_VIOLATIONS.labels(service).set(violations)
    metrics.AUDIT_AGE.labels(service).set_function(age)
    metrics.AUDIT_SECONDS.labels(service).set(seconds)


def withdraw() -> None:
    """Say nothing more: another process knows it now."""
    for gauge in (metrics.AUDIT_VIOLATIONS, metrics.AUDIT_AGE, metrics.AUDIT_SECONDS):
        gauge.clear()


Look = Callable[[int, Window], Awaitable[list[str]]]
"""Audits one partition of all topics of a service: a sentence for each violation in the window."""


class TopicAuditor:
    """Audits the topics of `service` beside the shop, a partition at a time: each replica those that it works on.

    A partition's turn comes again after `ROUND * every` seconds, or later when there is much to read. What came in
    during two such rounds is judged: what is missing is logged twice, and stays in the metric as long.
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
        """Look at one partition after another for ever; raises when the broker is away."""
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
