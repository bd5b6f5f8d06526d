"""Audit of the inventory topics against the request log: one outcome per request, and the same one on the topic.

The audit takes about 500 bytes of memory per request: a million requests in a week take half a gigabyte.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from infrastructure import clock
from infrastructure.audit_topics import Judged, Place, Window, named, place_of
from infrastructure.history import kept
from infrastructure.settings import Settings
from inventory_service.messages import (
    REQUEST_VOCABULARY,
    REQUESTS,
    RESPONSE_VOCABULARY,
    RESPONSES,
    STORED_OUTCOME,
    BadField,
    Clear,
    Commit,
    Committed,
    Decided,
    Expired,
    Fail,
    Held,
    Hold,
    Outcome,
    Refused,
    Released,
    ReleaseOrder,
    Remove,
    Removed,
    Request,
    Reservation,
    Restock,
    Restocked,
    Sell,
    Sold,
)
from inventory_service.state import EXPIRY_MARK, MARKS, STEP_MARK, Key

OrderStepOutcome = Sold | Released | Restocked | Reservation
FinalOutcome = Held | Refused | Removed | Expired | BadField | Committed | OrderStepOutcome


@dataclass(slots=True)
class Told:
    """State of the audit, folded from the topics.

    Add all records first, then all rows of the request log with `logged`, then call `violations`.
    """

    requests: Judged[Request]
    responses: Judged[Decided]
    window: Window
    asked: dict[Key, Place] = field(default_factory=dict)
    without_id: set[Place] = field(default_factory=set)
    told: dict[Key, bytes] = field(default_factory=dict)
    fresh: set[Key] = field(default_factory=set)
    """Published outcomes that are recent enough to be in the log."""
    outcomes: int = 0
    differing: list[str] = field(default_factory=list)

    def request(self, record: Any) -> None:
        """Add a record of `inventory.requests`."""
        if (parsed := self.requests.parse(record)) is None:
            return
        event, message = parsed
        change = isinstance(message, Hold | Remove | Clear | Fail | Commit | Sell | ReleaseOrder | Restock)
        if change and self.window.covers(record) and self.window.remembers(event):
            if event.requestid is None:
                self.without_id.add(place_of(record))
            else:
                self.asked[event.subject, MARKS.get(type(message), "") + event.requestid] = place_of(record)

    def response(self, record: Any) -> None:
        """Add a record of `inventory.responses`."""
        if (parsed := self.responses.parse(record)) is None:
            return
        event, message = parsed
        outcome = message.outcome
        if message.session or not isinstance(outcome, FinalOutcome):
            return
        key = (event.subject, _log_prefix(outcome) + (event.requestid or ""))
        digest = _digest(outcome)
        self.outcomes += key not in self.told
        if self.told.setdefault(key, digest) != digest:
            self.differing.append(f"{_describe(key)} was answered in two ways on {record.topic}")
        if not message.replayed and self.window.remembers(event):
            self.fresh.add(key)

    def logged(self, user: str, id_: str, outcome: str) -> None:
        """Compare a row of the request log with the published outcome."""
        key = (user, id_)
        self.asked.pop(key, None)
        self.fresh.discard(key)
        digest = self.told.pop(key, None)
        if digest is not None and digest != _digest(STORED_OUTCOME.validate_json(outcome)):
            self.differing.append(f"{_describe(key)} was answered differently from its decision")

    def violations(self) -> list[list[str]]:
        """Return the violations as sentences, in one list per kind. Call after the last row of the log."""
        dead_letters = self.requests.letters
        return [
            self.requests.neither_read_nor_put_aside(),
            self.differing,
            [f"{_describe(key)} was answered with an outcome that is not in the log" for key in sorted(self.fresh)],
            [
                f"{_describe(key)} ({named(place)}) has no outcome"
                for key, place in self.asked.items()
                if place not in dead_letters
            ],
            [
                f"{named(place)} has no request id and is not among the dead letters"
                for place in sorted(self.without_id - dead_letters)
            ],
        ]

    def figures(self) -> dict[str, int]:
        """Return how many outcomes and dead letters were compared with the log; repeated records count once."""
        return {"outcomes_told": self.outcomes, "dead_letters": len(self.requests.letters)}


def _log_prefix(outcome: Outcome) -> str:
    """Return the prefix of the request's id in the log."""
    return EXPIRY_MARK if isinstance(outcome, Expired) else STEP_MARK if isinstance(outcome, OrderStepOutcome) else ""


def _describe(key: Key) -> str:
    return f"request {key[1]} of {key[0]}"


def _digest(outcome: Any) -> bytes:
    return hashlib.blake2b(outcome.model_dump_json().encode(), digest_size=8).digest()


Readers = dict[str, Callable[[Any], None]]
"""Function that adds a record to the audit, by topic name."""


def begin(settings: Settings, window: Window) -> tuple[Told, Readers]:
    """Return an empty audit and, for each topic, the function that adds its records."""
    requests = Judged(settings.topic(REQUESTS), REQUEST_VOCABULARY, window)
    # The cart service dead-letters unreadable responses, and its audit checks that.
    responses = Judged(settings.topic(RESPONSES), RESPONSE_VOCABULARY, window, ignores_unknown=True)
    topic_audit = Told(requests, responses, window)
    return topic_audit, {
        requests.name: topic_audit.request,
        settings.topic(REQUESTS.dead_letters): requests.letter,
        responses.name: topic_audit.response,
    }


async def read_topics(settings: Settings, grace: timedelta) -> Told:
    """Read the topics up to their current end offsets. Raises `BrokerAwayError`."""
    topic_audit, readers = begin(settings, Window(clock.now(), grace, REQUESTS.retention or timedelta.max))
    async for record in kept(settings, readers):
        readers[record.topic](record)
    return topic_audit
