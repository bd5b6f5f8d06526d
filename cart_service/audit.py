"""Audit of the cart topics: each request must be decided and answered once, consistently, and none may stay pending.

The audit reads topics and changes nothing. It takes about 500 bytes of memory per request: a million requests in a
week, which is more than one per second all day, take half a gigabyte.
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
"""Responses that carry a decision. For an order only the first step counts; the order service decides the others."""

Request = tuple[str, str]
"""User id and request id."""


@dataclass(slots=True)
class Books:
    """State of the audit, folded from the topics."""

    requests: Judged[cart.Request]
    decisions: Judged[inventory.Decided]
    window: Window
    asked: dict[Request, Place] = field(default_factory=dict)
    decided: dict[Request, bytes | None] = field(default_factory=dict)
    """Digest of the response that each decision must produce; `None` for a decision without an outcome of its own."""
    said: dict[Request, bytes] = field(default_factory=dict)
    answered: set[Request] = field(default_factory=set)
    pending: dict[bytes, list[str]] = field(default_factory=dict)
    damaged: dict[bytes, str] = field(default_factory=dict)
    two_ways: list[str] = field(default_factory=list)

    def request(self, record: Any) -> None:
        """Add a record of `cart.requests`."""
        if (parsed := self.requests.parse(record)) is None:
            return
        event, message = parsed
        if isinstance(message, cart.Change) and self.window.covers(record) and self.window.remembers(event):
            self.asked[event.subject, event.request_id] = place_of(record)

    def decision(self, record: Any) -> None:
        """Add a record of `inventory.responses`."""
        if (parsed := self.decisions.parse(record)) is None:
            return
        event, message = parsed
        key = (event.subject, event.request_id)
        response = told(Cart(), key[1], message)
        if isinstance(response, OUTCOMES):
            frame = _digest(response)
            if self.decided.setdefault(key, frame) not in (frame, None):
                self.two_ways.append(f"request {key[1]} of {key[0]} was decided in two ways on {record.topic}")
            self.decided[key] = frame
        elif isinstance(response, cart.Error):
            self.decided.setdefault(key, None)

    def response(self, record: Any) -> None:
        """Add a record of `cart.responses`. Unreadable records are skipped, as the edge skips them."""
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
            frame = _digest(message)
            if self.said.setdefault(key, frame) != frame:
                self.two_ways.append(f"request {key[1]} of {key[0]} was answered in two ways on {record.topic}")

    def state(self, record: Any) -> None:
        """Add a record of the table's changelog; the last record of each key counts."""
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
        """Return the violations as sentences, in one list per kind."""
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
                f"request {id_} of {user} ({named(place)}) was decided, but no response was published"
                for (user, id_), place in waiting.items()
                if (user, id_) in self.decided and (user, id_) not in self.answered
            ],
            self.two_ways,
            [
                f"request {id_} of {user} was answered differently from its decision"
                for (user, id_), frame in self.said.items()
                if self.decided.get((user, id_)) not in (frame, None)
            ],
            [
                f"request {id_} of {key.decode(errors='replace')} is still pending"
                for key, ids in self.pending.items()
                for id_ in ids
            ],
            [
                f"the stored cart of {key.decode(errors='replace')} ({place}) is invalid"
                for key, place in self.damaged.items()
            ],
        ]

    def sentences(self) -> list[str]:
        """Return the violations as sentences, with a limited number of each kind."""
        return [sentence for kind in self.violations() for sentence in shown(kind)]


def _digest(response: cart.Response) -> bytes:
    text = response.model_dump_json(exclude={"replayed"}, exclude_none=True)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


Readers = dict[str, Callable[[Any], None]]
"""Function that adds a record to the audit, by topic name."""


def begin(settings: Settings, window: Window) -> tuple[Books, Readers]:
    """Return an empty audit and, for each topic, the function that adds its records."""
    requests = Judged(settings.topic(cart.REQUESTS), cart.REQUEST_VOCABULARY, window)
    decisions = Judged(settings.topic(inventory.RESPONSES), inventory.RESPONSE_VOCABULARY, window, ignores_unknown=True)
    topic_audit = Books(requests, decisions, window)
    return topic_audit, {
        requests.name: topic_audit.request,
        settings.topic(cart.REQUESTS.dead_letters): requests.letter,
        decisions.name: topic_audit.decision,
        settings.topic(inventory.RESPONSES.dead_letters): decisions.letter,
        settings.topic(cart.RESPONSES): topic_audit.response,
        settings.prefix + CHANGELOG: topic_audit.state,
    }


async def look(settings: Settings, partition: int, window: Window) -> list[str]:
    """Audit one partition while its worker runs, and return the violations. Raises `BrokerAwayError`."""
    topic_audit, readers = begin(settings, window)
    since = window.now - window.judged - SKEW
    async with aclosing(kept(settings, readers, partition=partition, since=since)) as records:
        await gently(records, readers)
    return topic_audit.sentences()


async def audit(settings: Settings, grace: timedelta) -> dict[str, Any]:
    """Return `{"ok", "violations": [sentence], "figures": {name: count}}`. Raises `BrokerAwayError`.

    There is no digest: carts are copies, and the digest of the inventory service covers all decisions.
    """
    topic_audit, readers = begin(settings, Window(clock.now(), grace, cart.REQUESTS.retention or timedelta.max))
    async for record in kept(settings, readers):
        readers[record.topic](record)
    violations = topic_audit.sentences()
    figures = {
        "requests_answered": len(topic_audit.answered),
        "dead_letters": len(topic_audit.requests.letters) + len(topic_audit.decisions.letters),
    }
    return {"ok": not violations, "violations": violations, "figures": figures}
