"""What the topics were told, held against the request log: each request has its one outcome, and nobody heard another.

About half a kilobyte of memory a request: a million requests of a week take half a gigabyte.
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

OfOrder = Sold | Released | Restocked | Reservation
Decision = Held | Refused | Removed | Expired | BadField | Committed | OfOrder


@dataclass(slots=True)
class Told:
    """The topics, folded; then the log is laid beside them, row by row."""

    requests: Judged[Request]
    responses: Judged[Decided]
    window: Window
    asked: dict[Key, Place] = field(default_factory=dict)
    without_id: set[Place] = field(default_factory=set)
    told: dict[Key, bytes] = field(default_factory=dict)
    fresh: set[Key] = field(default_factory=set)
    """Told, and young enough to be in the log."""
    outcomes: int = 0
    differing: list[str] = field(default_factory=list)

    def request(self, record: Any) -> None:
        """A record of `inventory.requests`."""
        if (read := self.requests.parse(record)) is None:
            return
        event, message = read
        change = isinstance(message, Hold | Remove | Clear | Fail | Commit | Sell | ReleaseOrder | Restock)
        if change and self.window.covers(record) and self.window.remembers(event):
            if event.requestid is None:
                self.without_id.add(place_of(record))
            else:
                self.asked[event.subject, MARKS.get(type(message), "") + event.requestid] = place_of(record)

    def response(self, record: Any) -> None:
        """A record of `inventory.responses`."""
        if (read := self.responses.parse(record)) is None:
            return
        event, message = read
        outcome = message.outcome
        if message.session or not isinstance(outcome, Decision):
            return
        key = (event.subject, _mark(outcome) + (event.requestid or ""))
        said = _hashed(outcome)
        self.outcomes += key not in self.told
        if self.told.setdefault(key, said) != said:
            self.differing.append(f"{_of(key)} was told in two ways on {record.topic}")
        if not message.replayed and self.window.remembers(event):
            self.fresh.add(key)

    def logged(self, user: str, id_: str, outcome: str) -> None:
        """A row of the log."""
        key = (user, id_)
        self.asked.pop(key, None)
        self.fresh.discard(key)
        said = self.told.pop(key, None)
        if said is not None and said != _hashed(STORED_OUTCOME.validate_json(outcome)):
            self.differing.append(f"{_of(key)} was told otherwise than it was decided")

    def violations(self) -> list[list[str]]:
        """Sentences, by kind; ask when the whole log has been laid beside."""
        letters = self.requests.letters
        return [
            self.requests.neither_read_nor_put_aside(),
            self.differing,
            [f"{_of(key)} was told an outcome that the log does not have" for key in sorted(self.fresh)],
            [
                f"{_of(key)} ({named(place)}) has no outcome"
                for key, place in self.asked.items()
                if place not in letters
            ],
            [
                f"{named(place)} has no request id and is not among the dead letters"
                for place in sorted(self.without_id - letters)
            ],
        ]

    def figures(self) -> dict[str, int]:
        """How much was held against the log; what comes twice counts once."""
        return {"outcomes_told": self.outcomes, "dead_letters": len(self.requests.letters)}


def _mark(outcome: Outcome) -> str:
    """What stands before the request's id in the log."""
    return EXPIRY_MARK if isinstance(outcome, Expired) else STEP_MARK if isinstance(outcome, OfOrder) else ""


def _of(key: Key) -> str:
    return f"request {key[1]} of {key[0]}"


def _hashed(outcome: Any) -> bytes:
    return hashlib.blake2b(outcome.model_dump_json().encode(), digest_size=8).digest()


Readers = dict[str, Callable[[Any], None]]
"""What to do with a record, by the name of its topic."""


def begin(settings: Settings, window: Window) -> tuple[Told, Readers]:
    """Nothing told yet, and who takes in the records of each topic."""
    requests = Judged(settings.topic(REQUESTS), REQUEST_VOCABULARY, window)
    # What can't be read there is the cart's to put aside, and its audit's to miss.
    responses = Judged(settings.topic(RESPONSES), RESPONSE_VOCABULARY, window, ignores_unknown=True)
    told = Told(requests, responses, window)
    return told, {
        requests.name: told.request,
        settings.topic(REQUESTS.dead_letters): requests.letter,
        responses.name: told.response,
    }


async def read_topics(settings: Settings, grace: timedelta) -> Told:
    """Read what is kept, up to what there is now; raises `BrokerAwayError`."""
    told, readers = begin(settings, Window(clock.now(), grace, REQUESTS.retention or timedelta.max))
    async for record in kept(settings, readers):
        readers[record.topic](record)
    return told
