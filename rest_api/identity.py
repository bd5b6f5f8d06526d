"""The one place where the edge finds out who is asking: by bearer token, session cookie, or ticket for a socket."""

import logging
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.requests import HTTPConnection

from infrastructure.ids import uuid7
from infrastructure.tokens import ExpiredToken, Identity, InvalidToken, issue, verify
from rest_api.problems import Problem
from rest_api.settings import EdgeSettings

log = logging.getLogger(__name__)

COOKIE: Final = "holdfast_session"
TICKET_SECONDS: Final = 30
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_TICKET: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class Identities:
    """Tokens and tickets of this shop."""

    def __init__(self, settings: EdgeSettings, redis: "Redis", origins: frozenset[str]) -> None:
        self.origins = origins
        self._settings = settings
        self._redis = redis
        self._secret = settings.secret.get_secret_value()
        previous = settings.secret_previous
        self._previous = previous.get_secret_value() if previous else None

    # ---- tokens -----------------------------------------------------------------------------------------------------

    def guest(self, user_id: str | None = None) -> tuple[str, str, datetime]:
        """The user id, the token and its end for a new guest, or afresh for one who is known."""
        user_id = user_id or uuid7()
        lifetime = timedelta(hours=self._settings.guest_token_hours)
        token, expires_at = issue(
            self._secret, user_id=user_id, roles=("guest",), lifetime=lifetime, now=datetime.now(UTC)
        )
        return user_id, token, expires_at

    def identify(self, connection: HTTPConnection) -> Identity | None:
        """Who sent a request or opens a socket; None when it shows nothing. Raises `Problem` for what is not valid.

        A cookie speaks only from an allowed page: a browser sends it along with whatever any page asks it to.
        """
        bearer = connection.headers.get("authorization")
        if bearer is not None:
            scheme, _, token = bearer.partition(" ")
            if scheme.lower() != "bearer":
                raise Problem("unauthenticated", "only bearer tokens are known here")
            return self._verify(token.strip())
        cookie = connection.cookies.get(COOKIE)
        if not cookie:
            return None
        method = connection.scope.get("method", "")  # none: a WebSocket
        if method not in SAFE and not self._from_allowed_page(connection, socket=not method):
            raise Problem("bad-origin", "a cookie counts only with an allowed Origin")
        return self._verify(cookie)

    def check_origin(self, connection: HTTPConnection) -> None:
        """Refuse what comes with an Origin that is not allowed, whatever its credentials."""
        origins = connection.headers.getlist("origin")
        if any(origin not in self.origins for origin in origins):
            raise Problem("bad-origin", "this origin may not use this shop")

    def _from_allowed_page(self, connection: HTTPConnection, *, socket: bool) -> bool:
        origins = connection.headers.getlist("origin")
        if origins:
            return all(origin in self.origins for origin in origins)
        return not socket and connection.headers.get("sec-fetch-site") == "same-origin"

    def _verify(self, token: str) -> Identity:
        try:
            return verify(self._secret, token, now=datetime.now(UTC), previous=self._previous)
        except ExpiredToken:
            raise Problem("token-expired", "the token has expired") from None
        except InvalidToken as error:
            log.info("a token was refused: %s", error)
            raise Problem("unauthenticated", "the token is not valid") from None

    # ---- tickets ----------------------------------------------------------------------------------------------------

    async def ticket(self, identity: Identity) -> str:
        """A ticket that opens one socket for `identity` within 30 seconds. `Problem` when Redis is away."""
        ticket = secrets.token_urlsafe(32)
        holder = {
            "user_id": identity.user_id,
            "roles": sorted(identity.roles),
            "expires_at": identity.expires_at.timestamp(),
            "token_id": identity.token_id,
        }
        try:
            await self._redis.set(self._key(ticket), orjson.dumps(holder), ex=TICKET_SECONDS)
        except (RedisError, OSError, TimeoutError):
            raise Problem("unavailable", "tickets are away", retry_after=2) from None
        return ticket

    async def redeem(self, ticket: str) -> Identity:
        """Whom a ticket was given to; it is used up. `Problem` when it is not, or no longer, one."""
        if not _TICKET.fullmatch(ticket):
            raise Problem("unauthenticated", "not a ticket")
        try:
            held = await self._redis.getdel(self._key(ticket))
        except (RedisError, OSError, TimeoutError):
            raise Problem("unavailable", "tickets are away", retry_after=2) from None
        if held is None:
            raise Problem("token-expired", "the ticket is used, older than 30 s, or never was one")
        holder = orjson.loads(held)
        return Identity(
            holder["user_id"],
            frozenset(holder["roles"]),
            datetime.fromtimestamp(holder["expires_at"], UTC),
            holder["token_id"],
        )

    def _key(self, ticket: str) -> str:
        return f"{self._settings.prefix}ticket:{ticket}"
