"""Counts the topics again: was each request decided and told, once and in one way, and does nothing hang?

It reads topics and changes nothing. About half a kilobyte of memory a request: a million requests of a week, which is
more than one a second all day, take half a gigabyte.
"""

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError

from cart_service import messages as cart
from cart_service.agents import SOURCE
from cart_service.model import Cart, told
from infrastructure import clock
from infrastructure.audit_topics import SKEW, Judged, Place, Window, gently, named, place_of, shown
from infrastructure.envelope import Envelope
from infrastructure.history import kept
from infrastructure.settings import Settings
from inventory_service import messages as inventory

CHANGELOG: Final = "cart-carts-changelog"
OUTCOMES: Final = (cart.Held, cart.Refused, cart.Removed, cart.Expired, cart.Order)
"""What the cart tells of a decision. Of an order it tells the first step alone; the others are not its decisions."""

Request = tuple[str, str]
"""Shopper and id."""


@dataclass(slots=True)
class Books:
    """What the topics say, folded."""

    requests: Judged[cart.Request]
    decisions: Judged[inventory.Decided]
    window: Window
    asked: dict[Request, Place] = field(default_factory=dict)
    decided: dict[Request, bytes | None] = field(default_factory=dict)
    """The frame that each decision is to be told as, hashed; none for a decision that has no outcome of its own."""
    said: dict[Request, bytes] = field(default_factory=dict)
    answered: set[Request] = field(default_factory=set)
    pending: dict[bytes, list[str]] = field(default_factory=dict)
    damaged: dict[bytes, str] = field(default_factory=dict)
    two_ways: list[str] = field(default_factory=list)

    def request(self, record: Any) -> None:
        """A record of `cart.requests`."""
        if (read := self.requests.parse(record)) is None:
            return
        event, message = read
        if isinstance(message, cart.Change) and self.window.covers(record) and self.window.remembers(event):
            self.asked[event.subject, event.request_id] = place_of(record)

    def decision(self, record: Any) -> None:
        """A record of `inventory.responses`."""
        if (read := self.decisions.parse(record)) is None:
            return
        event, message = read
        key = (event.subject, event.request_id)
        response = told(Cart(), key[1], message)
        if isinstance(response, OUTCOMES):
            frame = _hashed(response)
            if self.decided.setdefault(key, frame) not in (frame, None):
                self.two_ways.append(f"request {key[1]} of {key[0]} was decided in two ways on {record.topic}")
            self.decided[key] = frame
        elif isinstance(response, cart.Error):
            self.decided.setdefault(key, None)

    def response(self, record: Any) -> None:
        """A record of `cart.responses`; what can't be read there, the edge passes over."""
        try:
            event = Envelope.decode(record.key, record.value)
            message = cart.RESPONSE_VOCABULARY.parse(event)
        except ValueError:
            return
        if event.source != SOURCE:
            return
        key = (event.subject, event.request_id)
        if isinstance(message, (*OUTCOMES, cart.Error)):
            self.answered.add(key)
        if isinstance(message, OUTCOMES):
            frame = _hashed(message)
            if self.said.setdefault(key, frame) != frame:
                self.two_ways.append(f"request {key[1]} of {key[0]} was told in two ways on {record.topic}")

    def state(self, record: Any) -> None:
        """A record of the table's changelog: the last of each key counts."""
        self.pending.pop(record.key, None)
        self.damaged.pop(record.key, None)
        if record.value is None:
            return
        written = datetime.fromtimestamp(record.timestamp / 1000, UTC)
        late = self.window.now - self.window.grace
        try:
            pending = Cart.model_validate_json(record.value).pending
        except ValidationError:
            self.damaged[record.key] = named(place_of(record))
            return
        if written < late and (stuck := [each.id for each in pending if each.since < late]):
            self.pending[record.key] = stuck

    def violations(self) -> list[list[str]]:
        """Sentences, by kind."""
        waiting = {key: place for key, place in self.asked.items() if place not in self.requests.letters}
        return [
            self.requests.neither_read_nor_put_aside(),
            self.decisions.neither_read_nor_put_aside(),
            [
                f"request {id_} of {user} ({named(place)}) has no outcome"
                for (user, id_), place in waiting.items()
                if (user, id_) not in self.decided
            ],
            [
                f"request {id_} of {user} ({named(place)}) was decided, but the shopper was not told"
                for (user, id_), place in waiting.items()
                if (user, id_) in self.decided and (user, id_) not in self.answered
            ],
            self.two_ways,
            [
                f"request {id_} of {user} was decided in one way and told in another"
                for (user, id_), frame in self.said.items()
                if self.decided.get((user, id_)) not in (frame, None)
            ],
            [
                f"request {id_} of {key.decode(errors='replace')} is still pending"
                for key, ids in self.pending.items()
                for id_ in ids
            ],
            [
                f"the kept cart of {key.decode(errors='replace')} ({place}) can't be read"
                for key, place in self.damaged.items()
            ],
        ]

    def sentences(self) -> list[str]:
        """The violations; of many of one kind the first few."""
        return [sentence for kind in self.violations() for sentence in shown(kind)]


def _hashed(response: cart.Response) -> bytes:
    text = response.model_dump_json(exclude={"replayed"}, exclude_none=True)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


Readers = dict[str, Callable[[Any], None]]
"""What to do with a record, by the name of its topic."""


def begin(settings: Settings, window: Window) -> tuple[Books, Readers]:
    """Empty books, and who enters the records of each topic into them."""
    requests = Judged(settings.topic(cart.REQUESTS), cart.REQUEST_VOCABULARY, window)
    decisions = Judged(settings.topic(inventory.RESPONSES), inventory.RESPONSE_VOCABULARY, window, ignores_unknown=True)
    books = Books(requests, decisions, window)
    return books, {
        requests.name: books.request,
        settings.topic(cart.REQUESTS.dead_letters): requests.letter,
        decisions.name: books.decision,
        settings.topic(inventory.RESPONSES.dead_letters): decisions.letter,
        settings.topic(cart.RESPONSES): books.response,
        settings.prefix + CHANGELOG: books.state,
    }


async def look(settings: Settings, partition: int, window: Window) -> list[str]:
    """Count one partition again, beside the worker that works on it; raises `BrokerAwayError`."""
    books, readers = begin(settings, window)
    since = window.now - window.judged - SKEW
    async with aclosing(kept(settings, readers, partition=partition, since=since)) as records:
        await gently(records, readers)
    return books.sentences()


async def audit(settings: Settings, grace: timedelta) -> dict[str, Any]:
    """`{"ok", "violations": [sentence], "figures": {name: count}}`; raises `BrokerAwayError`.

    It has no digest: carts are copies, and what was decided is in the inventory's.
    """
    books, readers = begin(settings, Window(clock.now(), grace, cart.REQUESTS.retention or timedelta.max))
    async for record in kept(settings, readers):
        readers[record.topic](record)
    violations = books.sentences()
    figures = {
        "requests_answered": len(books.answered),
        "dead_letters": len(books.requests.letters) + len(books.decisions.letters),
    }
    return {"ok": not violations, "violations": violations, "figures": figures}
