"""The sender of stored notices. It is the same for e-mail, SMS and push, which differ in their port only.

A notice is handed over and then marked as sent, so a crash in between hands it over twice, under the same id. A failed
attempt is retried by the job queue. A notice that fails permanently is marked as failed, and the notification service
dead-letters its request.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from contracts.notifications import Channel, Template
from infrastructure.observability import metrics
from infrastructure.process import clock
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.job_queue import Done, JobResult, Reschedule, Row
from notification_service.templates import RenderedText, render

log = logging.getLogger(__name__)

NOW: Final = sql.SQL("now()")
"""Postgres' clock, for the times in the table."""
TOTAL_LIMIT_PAUSE: Final = timedelta(minutes=1)
"""Time after which a notice is tried again that exceeded the limit of all recipients together."""
SEND_DEADLINE_SHARE: Final = 0.8
"""Share of the job's deadline that handing over may take; the rest is for the contact lookup and the update."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A user's addresses."""

    email: str
    phone: str | None
    email_proven: bool
    """True if the user has paid an order with this address."""
    phone_proven: bool
    """True if the user has paid an order with this number."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice to be handed over now."""

    notice_id: str
    user_id: str
    cause: str
    channel: Channel
    template: Template
    order_id: str | None
    accepted_at: datetime
    too_late_at: datetime | None
    traceparent: str | None
    by_service: bool
    """True if another service requested the notice."""
    proven_only: bool
    """True if e-mail and SMS go only to a contact to which the user has paid an order before."""
    text: RenderedText
    recipient: str | None = None
    """Address of the user's account, for the mails about it."""

    @classmethod
    def from_row(cls, row: Row) -> "Notice":
        """Build the notice of a row."""
        return cls(
            notice_id=row["notice_id"],
            user_id=row["user_id"],
            cause=row["cause"],
            channel=row["channel"],
            template=row["template"],
            order_id=row["order_id"],
            accepted_at=row["accepted_at"],
            too_late_at=row["too_late_at"],
            traceparent=row["traceparent"],
            by_service=row["by_service"],
            proven_only=row["proven_only"],
            text=render(row["template"], row["params"]),
            recipient=row["recipient"],
        )


class UndeliverableError(Exception):
    """The notice can never be handed over as it is; a retry is of no use."""


class NoRecipientError(Exception):
    """The notice has no recipient on this channel, which is not an error: without a number there is no SMS."""


class RecipientLimitError(Exception):
    """The recipient has had as many notices as one may get. The notice is never sent, and listed with the reason."""


class TotalLimitError(Exception):
    """All recipients together have had as many notices as may be sent now. The notice is tried again later."""


class NoticePort(Protocol):
    """Destination of the notices of one channel."""

    async def send(self, notice: Notice) -> None:
        """Hand over a notice.

        Raise `UndeliverableError`, `NoRecipientError`, `RecipientLimitError` or `TotalLimitError`, or another error to
        have it retried.
        """
        ...


FetchRows = Callable[[str, Mapping[str, Any]], Awaitable[list[tuple[Any, ...]]]]


class ContactLookup:
    """Lookup of contacts; `fetch` runs a named query."""

    def __init__(self, fetch: FetchRows) -> None:
        self.fetch = fetch

    async def __call__(self, notice: Notice) -> Contact:
        """Return the notice's own recipient, or the contact of its order, or the latest with which an order was paid.

        Raises `LookupError` if none is known yet, and `UndeliverableError` if the order is another user's.
        """
        if notice.recipient is not None:
            return Contact(notice.recipient, None, email_proven=True, phone_proven=False)
        query = "contact" if notice.order_id else "latest_contact"
        rows = await self.fetch(query, {"order_id": notice.order_id, "user_id": notice.user_id})
        if not rows:
            raise LookupError("no contact is known for this user")
        user, *contact = rows[0]
        if user != notice.user_id:
            raise UndeliverableError(f"the order {notice.order_id} is another user's")
        return Contact(*contact)


class Sender:
    """Handler of a row of `notice`: hands it over, at most `attempts` times, each within `seconds`."""

    def __init__(self, port: NoticePort, *, attempts: int, seconds: float) -> None:
        self.port = port
        self.attempts = attempts
        self.seconds = seconds

    async def __call__(self, row: Row, attempt: int) -> JobResult:
        """Try once. Raises the error of the port, unless this was the last attempt."""
        notice = Notice.from_row(row)
        if notice.too_late_at is not None and notice.too_late_at <= clock.now():
            return _finish(notice, attempt, "skipped", "too_late")
        try:
            async with asyncio.timeout(self.seconds):
                await self.port.send(notice)
        except NoRecipientError as error:
            return _finish(notice, attempt, "skipped", str(error))
        except RecipientLimitError as error:
            return _finish(notice, attempt, "skipped", str(error), published=True)
        except TotalLimitError as error:
            log.warning("notices of the channel %s are delayed: %s", notice.channel, error)
            return Reschedule(TOTAL_LIMIT_PAUSE)
        except Exception as error:
            # An outage of the service's own database never counts as a failure of the notice.
            final = attempt >= self.attempts and not isinstance(error, psycopg.Error)
            if not isinstance(error, UndeliverableError) and not final:
                raise
            log.warning("notice failed permanently: %s", error, extra={"notice": notice.notice_id})
            return _finish(notice, attempt, "failed", f"{type(error).__name__}: {error}"[:500])
        failpoint("notifications.handed_over")
        return _finish(notice, attempt, "sent", "")


def _finish(notice: Notice, attempt: int, status: str, reason: str, *, published: bool = False) -> Done:
    """Return the columns of a finished notice. `told_at` queues the publication of its outcome."""
    metrics.NOTICES.labels(notice.channel, status).inc()
    publish_at = NOW if published or status in {"sent", "failed"} else None
    columns = {"status": status, "reason": reason, "settled_at": NOW, "tries": attempt, "told_at": publish_at}
    if notice.recipient is not None and status != "failed":
        # The mail was the only purpose of these. A failed notice is redriven with them.
        columns |= {"recipient": None, "request": None, "params": Jsonb({})}
    return Done(columns)
