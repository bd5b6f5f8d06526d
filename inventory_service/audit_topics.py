"""Audit of the inventory topics against the request log: one outcome per request, and the same one on the topic.

The audit takes about 500 bytes of memory per request: a million requests in a week take half a gigabyte.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from contracts.inventory import (
    REQUEST_REGISTRY,
    REQUESTS,
    RESPONSE_REGISTRY,
    RESPONSES,
    STORED_OUTCOME_ADAPTER,
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
from infrastructure.audit.topic_auditor import AuditedTopic, AuditWindow, RecordPosition, format_position, position_of
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process import clock
from infrastructure.process.settings import Settings
from inventory_service.state import EXPIRY_PREFIX, ID_PREFIXES, STEP_PREFIX, LogKey

OrderStepOutcome = Sold | Released | Restocked | Reservation
FinalOutcome = Held | Refused | Removed | Expired | BadField | Committed | OrderStepOutcome


@dataclass(slots=True)
class InventoryTopicAudit:
    """State of the audit, folded from the topics.

    Add all records first, then all rows of the request log with `add_log_entry`, then call `violations`.
    """

    requests: AuditedTopic[Request]
    responses: AuditedTopic[Decided]
    window: AuditWindow
    request_positions: dict[LogKey, RecordPosition] = field(default_factory=dict)
    requests_without_id: set[RecordPosition] = field(default_factory=set)
    published_outcomes: dict[LogKey, bytes] = field(default_factory=dict)
    outcomes_expected_in_log: set[LogKey] = field(default_factory=set)
    """Published outcomes that are recent enough to be in the log."""
    outcome_count: int = 0
    contradictions: list[str] = field(default_factory=list)

    def add_request(self, record: Any) -> None:
        """Add a record of `inventory.requests`."""
        if (parsed := self.requests.parse(record)) is None:
            return
        event, message = parsed
        change = isinstance(message, Hold | Remove | Clear | Fail | Commit | Sell | ReleaseOrder | Restock)
        if change and self.window.covers(record) and self.window.is_within_retention(event):
            if event.requestid is None:
                self.requests_without_id.add(position_of(record))
            else:
                self.request_positions[event.subject, ID_PREFIXES.get(type(message), "") + event.requestid] = (
                    position_of(record)
                )

    def add_response(self, record: Any) -> None:
        """Add a record of `inventory.responses`."""
        if (parsed := self.responses.parse(record)) is None:
            return
        event, message = parsed
        outcome = message.outcome
        if message.session or not isinstance(outcome, FinalOutcome):
            return
        key = (event.subject, _log_prefix(outcome) + (event.requestid or ""))
        digest = _digest(outcome)
        self.outcome_count += key not in self.published_outcomes
        if self.published_outcomes.setdefault(key, digest) != digest:
            self.contradictions.append(f"{_describe(key)} was answered in two ways on {record.topic}")
        if not message.replayed and self.window.is_within_retention(event):
            self.outcomes_expected_in_log.add(key)

    def add_log_entry(self, user: str, id_: str, outcome: str) -> None:
        """Compare a row of the request log with the published outcome."""
        key = (user, id_)
        self.request_positions.pop(key, None)
        self.outcomes_expected_in_log.discard(key)
        digest = self.published_outcomes.pop(key, None)
        if digest is not None and digest != _digest(STORED_OUTCOME_ADAPTER.validate_json(outcome)):
            self.contradictions.append(f"{_describe(key)} was answered differently from its decision")

    def violations(self) -> list[list[str]]:
        """Return the violations as sentences, in one list per kind. Call after the last row of the log."""
        dead_letters = self.requests.dead_letters
        return [
            self.requests.missing_dead_letters(),
            self.contradictions,
            [
                f"{_describe(key)} was answered with an outcome that is not in the log"
                for key in sorted(self.outcomes_expected_in_log)
            ],
            [
                f"{_describe(key)} ({format_position(position)}) has no outcome"
                for key, position in self.request_positions.items()
                if position not in dead_letters
            ],
            [
                f"{format_position(position)} has no request id and is not among the dead letters"
                for position in sorted(self.requests_without_id - dead_letters)
            ],
        ]

    def figures(self) -> dict[str, int]:
        """Return how many outcomes and dead letters were compared with the log; repeated records count once."""
        return {"outcomes_told": self.outcome_count, "dead_letters": len(self.requests.dead_letters)}


def _log_prefix(outcome: Outcome) -> str:
    """Return the prefix of the request's id in the log."""
    return (
        EXPIRY_PREFIX if isinstance(outcome, Expired) else STEP_PREFIX if isinstance(outcome, OrderStepOutcome) else ""
    )


def _describe(key: LogKey) -> str:
    return f"request {key[1]} of {key[0]}"


def _digest(outcome: Any) -> bytes:
    return hashlib.blake2b(outcome.model_dump_json().encode(), digest_size=8).digest()


Readers = dict[str, Callable[[Any], None]]
"""Function that adds a record to the audit, by topic name."""


def start_audit(settings: Settings, window: AuditWindow) -> tuple[InventoryTopicAudit, Readers]:
    """Return an empty audit and, for each topic, the function that adds its records."""
    requests = AuditedTopic(settings.topic(REQUESTS), REQUEST_REGISTRY, window)
    # The cart service dead-letters unreadable responses, and its audit checks that.
    responses = AuditedTopic(settings.topic(RESPONSES), RESPONSE_REGISTRY, window, ignores_unknown=True)
    topic_audit = InventoryTopicAudit(requests, responses, window)
    return topic_audit, {
        requests.name: topic_audit.add_request,
        settings.topic(REQUESTS.dead_letter_topic): requests.add_dead_letter,
        responses.name: topic_audit.add_response,
    }


async def read_topics(settings: Settings, grace: timedelta) -> InventoryTopicAudit:
    """Read the topics up to their current end offsets. Raises `BrokerUnavailableError`."""
    topic_audit, readers = start_audit(settings, AuditWindow(clock.now(), grace, REQUESTS.retention or timedelta.max))
    async for record in read_topic(settings, readers):
        readers[record.topic](record)
    return topic_audit
