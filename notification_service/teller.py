"""Works off the stored notices of one channel: the same for e-mail, SMS and push, which differ in their port alone.

A notice is handed over and then marked, so a process that dies in between hands it over twice, under the same id. What
fails is tried again by the pump; what fails for good is marked so, and the service puts its request into the dead
letters.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import psycopg
from psycopg import sql

from infrastructure import clock, metrics
from infrastructure.crashpoints import crashpoint
from infrastructure.pump import Done, Row, Verdict
from notification_service.messages import Channel, Template
from notification_service.words import Words, words

log = logging.getLogger(__name__)

NOW: Final = sql.SQL("now()")
"""Times of the table are its own clock's."""
MARGIN: Final = 0.8
"""How much of the pump's deadline handing over may take: the rest is for finding out where to and for marking."""


@dataclass(frozen=True, slots=True)
class Contact:
    """How somebody is reached."""

    email: str
    phone: str | None


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice that is to be handed over now."""

    notice_id: str
    user_id: str
    cause: str
    channel: Channel
    template: Template
    order_id: str | None
    accepted_at: datetime
    too_late_at: datetime | None
    traceparent: str | None
    words: Words

    @classmethod
    def of(cls, row: Row) -> "Notice":
        """The notice of a row."""
        kept = {name: row[name] for name in cls.__slots__ if name != "words"}
        return cls(**kept, words=words(row["template"], row["params"]))


class Undeliverable(Exception):
    """Nobody will ever take it as it is; to try again is no use."""


class NotWanted(Exception):
    """There is nothing to hand over to on this channel, and that is all right: who gave no number gets no SMS."""


class Port(Protocol):
    """Where notices of one channel go."""

    async def hand_over(self, notice: Notice) -> None:
        """Return when it was taken over. Raises `Undeliverable`, `NotWanted`, or anything else: try again."""
        ...


Rows = Callable[[str, Mapping[str, Any]], Awaitable[list[tuple[Any, ...]]]]


class Book:
    """Looks up how the user of a notice is reached; `rows` says a named query."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    async def __call__(self, notice: Notice) -> Contact:
        """The contact of its order, else the user's last. `LookupError` when none is known (yet)."""
        found = await self.rows("contact", {"order_id": notice.order_id, "user_id": notice.user_id})
        if not found:
            raise LookupError("it is not known how this user is reached")
        return Contact(*found[0])


class Teller:
    """What a pump does with a row of `notice`: hands it over at most `attempts` times, each within `seconds`."""

    def __init__(self, port: Port, *, attempts: int, seconds: float) -> None:
        self.port = port
        self.attempts = attempts
        self.seconds = seconds

    async def __call__(self, row: Row, attempt: int) -> Verdict:
        """Try once. Raises what the port raises, unless this was the last attempt."""
        notice = Notice.of(row)
        if notice.too_late_at is not None and notice.too_late_at <= clock.now():
            return _settled(notice, attempt, "skipped", "too_late")
        try:
            async with asyncio.timeout(self.seconds):
                await self.port.hand_over(notice)
        except NotWanted as none:
            return _settled(notice, attempt, "skipped", str(none))
        except Exception as error:
            # That our own tables are away is no fault of the notice's, however often.
            final = attempt >= self.attempts and not isinstance(error, psycopg.Error)
            if not isinstance(error, Undeliverable) and not final:
                raise
            log.warning("a notice can not be handed over: %s", error, extra={"notice": notice.notice_id})
            return _settled(notice, attempt, "failed", f"{type(error).__name__}: {error}"[:500])
        crashpoint("notifications.handed_over")
        return _settled(notice, attempt, "sent", "")


def _settled(notice: Notice, attempt: int, status: str, reason: str) -> Done:
    """What the row says from now on; what was sent or has failed is to be made known."""
    metrics.NOTICES.labels(notice.channel, status).inc()
    told = NOW if status in {"sent", "failed"} else None
    return Done({"status": status, "reason": reason, "settled_at": NOW, "tries": attempt, "told_at": told})
