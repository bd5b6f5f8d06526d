"""What the audits of all services ask of a topic with requests: that each record was acted on or put aside.

Kafka forgets by age and the shop is busy, so only records of a certain age are judged: old enough to have been acted
on, young enough for everything that came of them to be there still.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from infrastructure import dead_letters
from infrastructure.envelope import Envelope, Message, Reason, Undecodable, Vocabulary

SHOWN: Final = 20
"""Violations of one kind that are spelled out; the rest is only counted."""
TO_BE_SURE: Final = timedelta(hours=12)
"""Records that are forgotten this soon are not judged."""

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

    def covers(self, record: Any) -> bool:
        """Whether everything that should have come of `record` must be there."""
        age = self.now - datetime.fromtimestamp(record.timestamp / 1000, UTC)
        return self.grace <= age < self.kept - TO_BE_SURE

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
