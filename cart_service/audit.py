"""Audit of the cart topics: each request must be decided and answered once, consistently, and none may stay pending.

The audit reads topics and changes nothing. It takes about 500 bytes of memory per request: a million requests in a
week, which is more than one per second all day, take half a gigabyte.
"""

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from pydantic import ValidationError

from cart_service.agents import SOURCE
from cart_service.model import Cart, to_response
from contracts import cart, inventory
from contracts.envelope import Envelope, UnreadableBatch
from infrastructure.audit.topic_auditor import (
    MAX_CLOCK_SKEW,
    AuditedTopic,
    AuditWindow,
    RecordPosition,
    format_key,
    format_position,
    position_of,
    record_time,
    throttled,
    truncate_violations,
)
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process import clock
from infrastructure.process.settings import Settings

CHANGELOG: Final = "cart-carts-changelog"
OUTCOMES: Final = (cart.Held, cart.Refused, cart.Removed, cart.Expired, cart.Order)
"""Responses that carry a decision. For an order only the first step counts; the order service decides the others."""

RequestKey = tuple[str, str]
"""User id and request id."""


@dataclass(slots=True)
class CartTopicAudit:
    """State of the audit, folded from the topics."""

    requests: AuditedTopic[cart.Request]
    decisions: AuditedTopic[inventory.Decided]
    window: AuditWindow
    request_positions: dict[RequestKey, RecordPosition] = field(default_factory=dict)
    expected_responses: dict[RequestKey, bytes | None] = field(default_factory=dict)
    """Digest of the response that each decision must produce; `None` for a decision without an outcome of its own."""
    published_responses: dict[RequestKey, bytes] = field(default_factory=dict)
    answered_requests: set[RequestKey] = field(default_factory=set)
    stuck_requests: dict[bytes, list[str]] = field(default_factory=dict)
    invalid_carts: dict[bytes, str] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)

    def add_request(self, record: Any) -> None:
        """Add a record of `cart.requests`."""
        if (parsed := self.requests.parse(record)) is None:
            return
        event, message = parsed
        if isinstance(message, cart.Change) and self.window.covers(record) and self.window.is_within_retention(event):
            self.request_positions[event.subject, event.request_id] = position_of(record)

    def add_decision(self, record: Any) -> None:
        """Add a record of `inventory.responses`."""
        if (parsed := self.decisions.parse(record)) is None:
            return
        event, message = parsed
        key = (event.subject, event.request_id)
        response = to_response(Cart(), key[1], message)
        if isinstance(response, OUTCOMES):
            frame = _digest(response)
            if self.expected_responses.setdefault(key, frame) not in (frame, None):
                self.contradictions.append(f"request {key[1]} of {key[0]} was decided in two ways on {record.topic}")
            self.expected_responses[key] = frame
        elif isinstance(response, cart.Error):
            self.expected_responses.setdefault(key, None)

    def add_response(self, record: Any) -> None:
        """Add a record of `cart.responses`. Unreadable records are skipped, as the edge skips them."""
        try:
            event = Envelope.decode(record.key, record.value)
            message = cart.RESPONSE_REGISTRY.parse(event)
        except ValueError:
            return
        if event.source != SOURCE:
            return
        key = (event.subject, event.request_id)
        if isinstance(message, (*OUTCOMES, cart.Error)):
            self.answered_requests.add(key)
        if isinstance(message, OUTCOMES):
            frame = _digest(message)
            if self.published_responses.setdefault(key, frame) != frame:
                self.contradictions.append(f"request {key[1]} of {key[0]} was answered in two ways on {record.topic}")

    def add_cart(self, record: Any) -> None:
        """Add a record of the table's changelog; the last record of each key counts."""
        if isinstance(record.value, UnreadableBatch):  # of a cache: nothing is lost with it
            return
        self.stuck_requests.pop(record.key, None)
        self.invalid_carts.pop(record.key, None)
        if record.value is None:
            return
        written = record_time(record)
        late = self.window.now - self.window.grace
        try:
            pending = Cart.model_validate_json(record.value).pending
        except ValidationError:
            self.invalid_carts[record.key] = format_position(position_of(record))
            return
        if written < late and (stuck := [each.id for each in pending if each.since < late]):
            self.stuck_requests[record.key] = stuck

    def violations_by_kind(self) -> list[list[str]]:
        """Return the violations as sentences, in one list per kind."""
        waiting = {
            key: position
            for key, position in self.request_positions.items()
            if position not in self.requests.dead_letters
        }
        return [
            self.requests.missing_dead_letters(),
            self.decisions.missing_dead_letters(),
            [
                f"request {id_} of {user} ({format_position(position)}) has no outcome"
                for (user, id_), position in waiting.items()
                if (user, id_) not in self.expected_responses
            ],
            [
                f"request {id_} of {user} ({format_position(position)}) was decided, but no response was published"
                for (user, id_), position in waiting.items()
                if (user, id_) in self.expected_responses and (user, id_) not in self.answered_requests
            ],
            self.contradictions,
            [
                f"request {id_} of {user} was answered differently from its decision"
                for (user, id_), frame in self.published_responses.items()
                if self.expected_responses.get((user, id_)) not in (frame, None)
            ],
            [
                f"request {id_} of {format_key(key)} is still pending"
                for key, ids in self.stuck_requests.items()
                for id_ in ids
            ],
            [
                f"the stored cart of {format_key(key)} ({position}) is invalid"
                for key, position in self.invalid_carts.items()
            ],
        ]

    def violation_sentences(self) -> list[str]:
        """Return the violations as sentences, with a limited number of each kind."""
        return [sentence for kind in self.violations_by_kind() for sentence in truncate_violations(kind)]


def _digest(response: cart.Response) -> bytes:
    text = response.model_dump_json(exclude={"replayed"}, exclude_none=True)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


Readers = dict[str, Callable[[Any], None]]
"""Function that adds a record to the audit, by topic name."""


def start_audit(settings: Settings, window: AuditWindow) -> tuple[CartTopicAudit, Readers]:
    """Return an empty audit and, for each topic, the function that adds its records."""
    requests = AuditedTopic(settings.topic(cart.REQUESTS), cart.REQUEST_REGISTRY, window)
    decisions = AuditedTopic(
        settings.topic(inventory.RESPONSES), inventory.RESPONSE_REGISTRY, window, ignores_unknown=True
    )
    topic_audit = CartTopicAudit(requests, decisions, window)
    return topic_audit, {
        requests.name: topic_audit.add_request,
        settings.topic(cart.REQUESTS.dead_letter_topic): requests.add_dead_letter,
        decisions.name: topic_audit.add_decision,
        settings.topic(inventory.RESPONSES.dead_letter_topic): decisions.add_dead_letter,
        settings.topic(cart.RESPONSES): topic_audit.add_response,
        settings.prefix + CHANGELOG: topic_audit.add_cart,
    }


async def audit_partition(settings: Settings, partition: int, window: AuditWindow) -> list[str]:
    """Audit one partition while its worker runs, and return the violations. Raises `BrokerUnavailableError`."""
    topic_audit, readers = start_audit(settings, window)
    since = window.now - window.max_age - MAX_CLOCK_SKEW
    async with aclosing(read_topic(settings, readers, partition=partition, since=since)) as records:
        await throttled(records, readers)
    return topic_audit.violation_sentences()


async def audit(settings: Settings, grace: timedelta) -> dict[str, Any]:
    """Return `{"ok", "violations": [sentence], "figures": {name: count}}`. Raises `BrokerUnavailableError`.

    There is no digest: carts are copies, and the digest of the inventory service covers all decisions.
    """
    topic_audit, readers = start_audit(
        settings, AuditWindow(clock.now(), grace, cart.REQUESTS.retention or timedelta.max)
    )
    async for record in read_topic(settings, readers):
        readers[record.topic](record)
    violations = topic_audit.violation_sentences()
    figures = {
        "requests_answered": len(topic_audit.answered_requests),
        "dead_letters": len(topic_audit.requests.dead_letters) + len(topic_audit.decisions.dead_letters),
    }
    return {"ok": not violations, "violations": violations, "figures": figures}
