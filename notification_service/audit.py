"""Audit of notifications: each event that is worth a notice must be stored once, processed and published.

The audit reads topics and tables, and changes nothing.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from psycopg.rows import dict_row

from contracts import orders
from contracts.notifications import REQUEST_REGISTRY, REQUESTS, Request, Send
from infrastructure.audit.topic_auditor import (
    AuditedTopic,
    AuditWindow,
    RecordPosition,
    format_position,
    position_of,
    truncate_violations,
)
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process import clock
from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from infrastructure.storage.postgres import Connection
from notification_service.model import order_notice
from notification_service.store import QUERIES, SERVICE

CHECKS: Final = ("overdue_notices", "unpublished_outcomes", "inconsistent_notices", "overdue_warnings")
Key = tuple[str, str]
"""User id and cause."""


@dataclass(slots=True)
class NotificationTopicAudit:
    """State of the audit, folded from the topics: the notices that must be stored."""

    requests: AuditedTopic[Request]
    events: AuditedTopic[orders.Event]
    window: AuditWindow
    expected_notices: dict[Key, RecordPosition] = field(default_factory=dict)

    def add_request(self, record: Any) -> None:
        """Add a record of `notifications.requests`."""
        parsed = self.requests.parse(record)
        if parsed is not None and isinstance(parsed[1], Send):
            self._expect(record, parsed[1])

    def add_order_event(self, record: Any) -> None:
        """Add a record of `orders.events`."""
        parsed = self.events.parse(record)
        if parsed is not None and (send := order_notice(parsed[1], None)) is not None:
            self._expect(record, send)

    def _expect(self, record: Any, send: Send) -> None:
        if self.window.covers(record):
            self.expected_notices.setdefault((send.user_id, send.cause), position_of(record))

    def violations(self, stored: set[Key]) -> Iterator[list[str]]:
        """Yield the violations as sentences, in one list per kind; `stored` are the notices in the table."""
        yield self.requests.missing_dead_letters()
        yield self.events.missing_dead_letters()
        dead_letters = self.requests.dead_letters | self.events.dead_letters
        yield [
            f"{format_position(position)} ({cause}) has no notice for {user}"
            for (user, cause), position in self.expected_notices.items()
            if (user, cause) not in stored and position not in dead_letters
        ]


async def audit(settings: Settings, grace: timedelta) -> dict[str, Any]:
    """Return `{"ok", "violations": [sentence], "digest", "figures": {name: count}}`. Raises `BrokerUnavailableError`.

    The digest covers which notices exist, not their state or times: no replay changes it.
    """
    window = AuditWindow(clock.now(), grace, REQUESTS.retention or timedelta.max)
    requests = AuditedTopic(settings.topic(REQUESTS), REQUEST_REGISTRY, window)
    events = AuditedTopic(settings.topic(orders.EVENTS), orders.EVENT_REGISTRY, window, ignores_unknown=True)
    topic_audit = NotificationTopicAudit(requests, events, window)
    readers: dict[str, Callable[[Any], None]] = {
        requests.name: topic_audit.add_request,
        settings.topic(REQUESTS.dead_letter_topic): requests.add_dead_letter,
        events.name: topic_audit.add_order_event,
        settings.topic(orders.EVENTS.dead_letter_topic): events.add_dead_letter,
    }
    async for record in read_topic(settings, readers):
        readers[record.topic](record)
    async with await postgres.connect(settings, SERVICE) as connection:
        stored = {(user, cause) async for user, cause in await connection.execute(QUERIES["stored_causes"])}
        violations_by_kind = [
            *topic_audit.violations(stored),
            *[await _sentences(connection, name, grace) for name in CHECKS],
        ]
        digest = hashlib.sha256()
        async for (line,) in await connection.execute(QUERIES["digest"]):
            digest.update(line.encode() + b"\n")
        async with connection.cursor(row_factory=dict_row) as cursor:
            figures = dict(await (await cursor.execute(QUERIES["figures"])).fetchone() or {})
    violations = [sentence for kind in violations_by_kind for sentence in truncate_violations(kind)]
    return {"ok": not violations, "violations": violations, "digest": digest.hexdigest(), "figures": figures}


async def _sentences(connection: Connection, name: str, grace: timedelta) -> list[str]:
    rows = await (await connection.execute(QUERIES[name], {"grace": grace.total_seconds()})).fetchall()
    return [row[0] for row in rows]
