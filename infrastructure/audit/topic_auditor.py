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

from contracts.envelope import (
    EARLIEST_TIME,
    LATEST_TIME,
    DeadLetterReason,
    Envelope,
    Message,
    MessageRegistry,
    UndecodableError,
)
from infrastructure.messaging import dead_letters
from infrastructure.observability import metrics
from infrastructure.process import clock
from infrastructure.process.terminal import escape_controls

log = logging.getLogger(__name__)

MAX_LISTED: Final = 20
"""Violations of one kind that are listed; the rest is only counted."""
MAX_KEY_CHARACTERS: Final = 64
DELETION_MARGIN: Final = timedelta(hours=12)
"""Records that Kafka will delete within this time are not audited."""
REST_FACTOR: Final = 20
"""A background audit pauses this many times as long as it worked: it uses at most a twentieth of a core."""
ROUND_FACTOR: Final = 5
"""Each partition is audited after this many times the pause between two audits of tables."""
MAX_CLOCK_SKEW: Final = timedelta(minutes=6)
"""Difference between two clocks: an effect may be dated earlier than its cause by this much."""
IDLE_TURNS: Final = 24
"""An auditor without partitions checks this many times a round whether it has been assigned one."""
MAX_BLOCK_SECONDS: Final = 0.002
"""Longest time that an audit blocks the event loop that it shares with a worker."""

M = TypeVar("M", bound=Message)
RecordPosition = tuple[str, int, int]


def truncate_violations(found: list[str]) -> list[str]:
    """Return the first violations of one kind, and a line with the number of the others."""
    return found[:MAX_LISTED] + (
        [f"and {len(found) - MAX_LISTED} more of this kind"] if len(found) > MAX_LISTED else []
    )


def print_report(report: Mapping[str, Any], *, as_json: bool) -> int:
    """Print the report of an audit, as text or as JSON; return the exit status, 1 if there are violations.

    An account of the orders, if the report has one, is printed as JSON only.
    """
    if as_json:
        lines = [json.dumps(report)]
    else:
        figures = ", ".join(f"{name} {count}" for name, count in report["figures"].items())
        digest = [f"digest {report['digest']}"] if "digest" in report else []
        verdict = "everything adds up" if report["ok"] else f"{len(report['violations'])} violations"
        lines = [*map(escape_controls, report["violations"]), figures, *digest, verdict]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if report["ok"] else 1


def record_time(record: Any) -> datetime:
    """Return the time of a record; the nearest accepted time if its timestamp, which its sender chose, is not one."""
    first, last = (round(limit.timestamp() * 1000) for limit in (EARLIEST_TIME, LATEST_TIME))
    return datetime.fromtimestamp(min(max(record.timestamp, first), last) / 1000, UTC)


@dataclass(frozen=True, slots=True)
class AuditWindow:
    """The records that are audited at `now`: older than `grace`, and not to be deleted soon."""

    now: datetime
    grace: timedelta
    retention: timedelta
    """Retention of the topics."""
    max_age: timedelta = timedelta.max
    """Greatest age of an audited record."""

    def covers(self, record: Any) -> bool:
        """Return whether all effects of `record` must be there: it is neither too new nor too old."""
        age = self.now - record_time(record)
        return self.grace <= age < min(self.retention - DELETION_MARGIN, self.max_age)

    def is_within_retention(self, event: Envelope) -> bool:
        """Return whether the log still has the outcome of this request, however late its record was written."""
        return self.now - event.time < self.retention


@dataclass(slots=True)
class AuditedTopic(Generic[M]):
    """Audit of one topic: which of its records are unreadable, and which are dead letters.

    Call `parse` for each record and `add_dead_letter` for each dead letter, in any order; then get the violations.
    """

    name: str
    """The broker's name of the topic; its dead letters are on `name.dlq`."""
    vocabulary: MessageRegistry[M]
    window: AuditWindow
    ignores_unknown: bool = False
    unreadable: dict[RecordPosition, DeadLetterReason] = field(default_factory=dict)
    dead_letters: set[RecordPosition] = field(default_factory=set)

    def parse(self, record: Any) -> tuple[Envelope, M] | None:
        """Return the event and its message; `None` for an unreadable record, which must be a dead letter then."""
        try:
            event = Envelope.decode(record.key, record.value)
            return event, self.vocabulary.parse(event)
        except UndecodableError as error:
            passed_over = self.ignores_unknown and error.reason == "unknown_type"
            if self.window.covers(record) and not passed_over:
                self.unreadable[position_of(record)] = error.reason
            return None

    def add_dead_letter(self, record: Any) -> None:
        """Add a record of the dead-letter topic."""
        found = dead_letters.decode(record.value)
        if isinstance(found, dead_letters.DeadLetter):
            self.dead_letters.add((found.original.topic, found.original.partition, found.original.offset))

    def missing_dead_letters(self) -> list[str]:
        """Return a violation for each unreadable record that is not among the dead letters."""
        return [
            f"{format_position(position)} can't be read ({reason}) and is not among the dead letters"
            for position, reason in self.unreadable.items()
            if position not in self.dead_letters
        ]


def position_of(record: Any) -> RecordPosition:
    """Return the position of a record."""
    return record.topic, record.partition, record.offset


def format_key(key: bytes) -> str:
    """Return a record's key for a sentence: the beginning of a long one, and bytes that are not UTF-8 escaped."""
    text = key[: MAX_KEY_CHARACTERS + 1].decode(errors="backslashreplace")
    return text if len(text) <= MAX_KEY_CHARACTERS else f"{text[:MAX_KEY_CHARACTERS]}…"


def format_position(position: RecordPosition) -> str:
    """Return a position in the notation of dead letters: `topic/partition/offset`."""
    return "/".join(map(str, position))


async def throttled(records: AsyncIterator[Any], readers: Mapping[str, Callable[[Any], None]]) -> None:
    """Pass each record to the reader of its topic, and pause `REST_FACTOR` times as long as that takes."""
    busy = 0.0
    async for record in records:
        started = time.perf_counter()
        readers[record.topic](record)
        busy += time.perf_counter() - started
        if busy > MAX_BLOCK_SECONDS:
            await asyncio.sleep(REST_FACTOR * busy)
            busy = 0.0


def export_result(service: str, violations: int, *, age: Callable[[], float], seconds: float) -> None:
    """Export the result of a background audit: violations, current age in seconds, and duration."""
    metrics.AUDIT_VIOLATIONS.labels(service).set(violations)
    metrics.AUDIT_AGE.labels(service).set_function(age)
    metrics.AUDIT_SECONDS.labels(service).set(seconds)


def withdraw_result() -> None:
    """Remove the exported result: from now on another process exports it."""
    for gauge in (metrics.AUDIT_VIOLATIONS, metrics.AUDIT_AGE, metrics.AUDIT_SECONDS):
        gauge.clear()


AuditPartition = Callable[[int, AuditWindow], Awaitable[list[str]]]
"""Audits one partition of all topics of a service; returns a sentence for each violation in the window."""


class TopicAuditor:
    """Background auditor of a service's topics, one partition at a time. Each replica audits its own partitions.

    A partition is audited again after `ROUND_FACTOR * every` seconds, or later if there is much to read. Each audit
    covers the records of two such rounds, so a violation is logged twice, and counted in the metric as long.
    """

    def __init__(
        self,
        owned_partitions: Callable[[], Collection[int]],
        audit_partition: AuditPartition,
        every: float,
        *,
        service: str,
        grace: timedelta,
        retention: timedelta,
    ) -> None:
        self.owned_partitions = owned_partitions
        self.audit_partition = audit_partition
        self.round = ROUND_FACTOR * every
        self.service = service
        self.grace = grace
        self.retention = retention
        self._audited_at: dict[int, float] = {}
        self._violations: dict[int, int] = {}

    async def run(self) -> None:
        """Audit one partition after another indefinitely. Raise `BrokerUnavailableError` if the broker is down."""
        try:
            while True:
                started = time.monotonic()
                assigned = sorted(self.owned_partitions())
                if assigned:
                    await self._audit(
                        min(assigned, key=lambda partition: self._audited_at.get(partition, 0.0)), assigned
                    )
                turn = self.round / (len(assigned) or IDLE_TURNS)
                await asyncio.sleep(max(0.0, started + turn - time.monotonic()))
        finally:
            withdraw_result()

    async def _audit(self, partition: int, assigned: Collection[int]) -> None:
        started = time.monotonic()
        window = self.grace + timedelta(seconds=2 * self.round)
        violations = await self.audit_partition(partition, AuditWindow(clock.now(), self.grace, self.retention, window))
        for violation in violations:
            log.error("audit: %s", violation)
        self._audited_at[partition], self._violations[partition] = time.monotonic(), len(violations)
        found = sum(self._violations.get(each, 0) for each in assigned)
        export_result(self.service, found, age=self._age, seconds=time.monotonic() - started)

    def _age(self) -> float:
        looked = [at for partition in self.owned_partitions() if (at := self._audited_at.get(partition)) is not None]
        return time.monotonic() - min(looked) if looked else 0.0
