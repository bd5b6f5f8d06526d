"""Ends the older tokens of a guest who has renewed one, at every edge.

A token is verified without a lookup; that it has been replaced is stored in Postgres, one row for each guest who
renewed. An edge remembers the rows of the users it served lately, and reads every second which ones other edges have
changed. So a request costs no lookup, except the first one of a user.

A token that was replaced stays valid for an overlap, because a client may have several requests and pages under way. A
renewal within the overlap of the last one moves nothing, so that repeated renewals do not prolong old tokens.
"""

import asyncio
import logging
from collections import OrderedDict
from datetime import datetime
from typing import Final, NamedTuple, Protocol

from infrastructure.process import clock
from infrastructure.security.tokens import Identity
from rest_api.protocol.problems import Problem

log = logging.getLogger(__name__)

MAX_KNOWN: Final = 50_000
"""Users whose session an edge remembers; the least recently used one is dropped, and read again if it comes back."""
POLL_SECONDS: Final = 1.0
POLL_WINDOW_SECONDS: Final = 30.0
"""A poll reads the changes of so many seconds: transactions become visible some time after they began."""
LOOKUP_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 5.0
"""After a failed lookup or poll, no lookup is tried for so long."""


GUEST_ROLES: Final = frozenset({"guest", "shopper"})
"""Roles without any right beyond a user's own cart and orders."""


def is_guest(identity: Identity) -> bool:
    """Return whether a token is a guest's, which `POST /v1/guests` may renew."""
    return identity.session_id is None and identity.roles <= GUEST_ROLES


class GuestSession(NamedTuple):
    """The tokens of a guest that have ended: from before `valid_from`, and an overlap later from before `issued_at`."""

    valid_from: int = 0
    issued_at: int = 0

    def has_ended(self, issued_at: float, now: float, overlap: float) -> bool:
        """Return whether a token that was issued at `issued_at` has been replaced for longer than `overlap`."""
        return issued_at < (self.issued_at if now - self.issued_at >= overlap else self.valid_from)


class SessionStore(Protocol):
    """The part of the edge's store that is needed here."""

    async def replace_tokens(self, user_id: str, issued_at: int, ends_at: datetime, overlap: float) -> GuestSession:
        """Store that a guest has a newer token."""

    async def guest_session(self, user_id: str) -> GuestSession:
        """Return which tokens of a guest have ended."""

    async def changed_sessions(self, seconds: float) -> dict[str, GuestSession]:
        """Return the sessions that changed lately, by user."""


class GuestSessions:
    """The sessions of the guests that this edge serves."""

    def __init__(self, store: SessionStore, *, overlap: float, errors: tuple[type[BaseException], ...]) -> None:
        """`errors` are those that the store raises while Postgres is unavailable."""
        self._store = store
        self._overlap = overlap
        self._errors: tuple[type[BaseException], ...] = (*errors, TimeoutError)
        self._known: OrderedDict[str, GuestSession] = OrderedDict()
        self._retry_at = 0.0

    async def check(self, identity: Identity) -> None:
        """Raise `Problem` if the token was replaced by a newer one longer ago than the overlap.

        While Postgres is unavailable, an unknown session is taken as not renewed: the token itself has been verified.
        """
        if not is_guest(identity):
            return
        now = clock.now().timestamp()
        session = self._known.get(identity.user_id)
        if session is None:
            if now < self._retry_at:
                return
            session = await self._look_up(identity.user_id, now)
            if session is None:
                return
        self._remember(identity.user_id, session)
        if session.has_ended(identity.issued_at.timestamp(), now, self._overlap):
            raise Problem("token-expired", "the token was renewed, and only the newest one is valid")

    async def replace(self, user_id: str, issued_at: datetime, ends_at: datetime) -> None:
        """Store that a guest has a newer token. While Postgres is unavailable, the older ones stay valid."""
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                session = await self._store.replace_tokens(user_id, int(issued_at.timestamp()), ends_at, self._overlap)
        except self._errors:
            log.warning("the sessions of guests cannot be written; the tokens before a renewed one stay valid")
            return
        self._remember(user_id, session)

    async def run(self) -> None:
        """Run indefinitely: learn from Postgres which sessions other edges have changed."""
        while True:
            try:
                changed = await self._store.changed_sessions(POLL_WINDOW_SECONDS)
            except self._errors:
                # Changes may be missed from here on, so each session is read again.
                self._known.clear()
                self._retry_at = clock.now().timestamp() + RETRY_SECONDS
                changed = {}
            for user_id in changed.keys() & self._known.keys():
                self._known[user_id] = changed[user_id]
            await asyncio.sleep(POLL_SECONDS)

    async def _look_up(self, user_id: str, now: float) -> GuestSession | None:
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                return await self._store.guest_session(user_id)
        except self._errors:
            self._retry_at = now + RETRY_SECONDS
            log.warning("the sessions of guests cannot be read; tokens that were renewed are accepted")
            return None

    def _remember(self, user_id: str, session: GuestSession) -> None:
        self._known[user_id] = session
        self._known.move_to_end(user_id)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
