"""Authentication by bearer token, session cookie, or WebSocket ticket. No other module of the edge verifies any.

Tokens of guests are the edge's own. Those of accounts are verified with the public keys of the account service.
"""

import logging
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.requests import HTTPConnection

from contracts.ids import uuid7
from infrastructure.process import clock
from infrastructure.security.tokens import (
    ExpiredToken,
    Identity,
    InvalidToken,
    account_key_id,
    issue,
    verify,
    verify_for_account,
)
from rest_api.protocol.problems import Problem
from rest_api.security.account_keys import AccountKeys
from rest_api.security.account_sessions import AccountSessions
from rest_api.security.costs import SAFE_METHODS
from rest_api.security.guest_sessions import GuestSessions, is_guest
from rest_api.settings import EdgeSettings

log = logging.getLogger(__name__)

SESSION_COOKIE: Final = "holdfast_session"
"""Name of the session cookie. In production it has the prefix `__Host-`, so that no sibling host can set it."""
REFRESH_COOKIE: Final = "holdfast_refresh"
"""Name of the cookie with the refresh token of an account, for the routes of sessions only."""
REFRESH_COOKIE_PATH: Final = "/v1/sessions"
TICKET_SECONDS: Final = 30
MAX_VERIFIED: Final = 10_000
"""Tokens whose verification is remembered, about 1 KiB each; the oldest one is dropped first."""
_TICKET: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class Authenticator:
    """Issues and verifies tokens and tickets."""

    def __init__(  # noqa: PLR0913 - the parts that verify a token
        self,
        settings: EdgeSettings,
        redis: "Redis",
        origins: frozenset[str],
        guest_sessions: GuestSessions,
        account_keys: AccountKeys,
        account_sessions: AccountSessions,
        *,
        accounts_fault: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`accounts_fault` returns why it is not known which tokens of accounts have ended, or `None`."""
        self.origins = origins
        self.guest_sessions = guest_sessions
        self.account_keys = account_keys
        self.account_sessions = account_sessions
        self.accounts_fault = accounts_fault
        production = settings.profile == "production"
        self.cookie = f"__Host-{SESSION_COOKIE}" if production else SESSION_COOKIE
        self.refresh_cookie = f"__Secure-{REFRESH_COOKIE}" if production else REFRESH_COOKIE
        self._max_session = timedelta(hours=settings.guest_session_hours)
        self._settings = settings
        self._redis = redis
        self._secret = settings.secret.get_secret_value()
        previous = settings.secret_previous
        self._previous = previous.get_secret_value() if previous else None
        self._verified: dict[str, Identity] = {}
        """Tokens with a valid signature, oldest first."""

    # ---- tokens -----------------------------------------------------------------------------------------------------

    def issue_guest_token(
        self, user_id: str | None = None, auth_time: datetime | None = None
    ) -> tuple[str, str, datetime]:
        """Issue a token for a new guest, or for `user_id`; return the user id, the token and its expiry time.

        `auth_time` is the time of the guest's first token. However often it is renewed, the last token ends a fixed
        time after that.
        """
        user_id, now = user_id or uuid7(), clock.now()
        lifetime = min(timedelta(hours=self._settings.guest_token_hours), (auth_time or now) + self._max_session - now)
        token, expires_at = issue(
            self._secret, user_id=user_id, roles=("guest",), lifetime=lifetime, now=now, auth_time=auth_time
        )
        return user_id, token, expires_at

    async def renew(self, identity: Identity) -> tuple[str, str, datetime]:
        """Issue a fresh token to a guest, and end the older ones; return the same as `issue_guest_token`.

        Raise `Problem` for the token of any other role: its holder would get a guest's token for the same user.
        """
        if identity.session_id is not None:
            raise Problem("forbidden", "this token belongs to an account; refresh it with POST /v1/sessions/refresh")
        if not is_guest(identity):
            roles = ", ".join(sorted(identity.roles))
            raise Problem(
                "forbidden", f"only a guest's token can be renewed here, and this one has the role {roles}; send none"
            )
        renewed = self.issue_guest_token(identity.user_id, identity.auth_time)
        await self.guest_sessions.replace(identity.user_id, clock.now(), max(renewed[2], identity.expires_at))
        return renewed

    async def authenticate(self, connection: HTTPConnection) -> Identity | None:
        """Authenticate a request or WebSocket handshake; return `None` if it has no credentials.

        Raise `Problem` if the credentials are invalid, or if the token has ended before its time.
        """
        token = self.credential(connection)
        if token is None:
            return None
        key_id = account_key_id(token)
        identity = self._verify(token) if key_id is None else await self._verify_for_account(token, key_id)
        await self._check_not_ended(identity)
        return identity

    def credential(self, connection: HTTPConnection) -> str | None:
        """Return the token or cookie of a request or WebSocket handshake, not verified; `None` if it has none.

        Raise `Problem` for another scheme. A cookie is accepted only from an allowed page, because a browser attaches
        it to requests of any page.
        """
        bearer = connection.headers.get("authorization")
        if bearer is not None:
            scheme, _, token = bearer.partition(" ")
            if scheme.lower() != "bearer":
                raise Problem("unauthenticated", "unsupported authorization scheme; use Bearer")
            return token.strip()
        # The plain name is still accepted: cookies live for a month.
        cookie = connection.cookies.get(self.cookie) or connection.cookies.get(SESSION_COOKIE)
        if not cookie:
            return None
        self.check_page(connection)
        return cookie

    def check_page(self, connection: HTTPConnection) -> None:
        """Raise `Problem` if a cookie must not count: for a change or a socket that no allowed page asks for."""
        method = connection.scope.get("method", "")  # a WebSocket handshake has no method
        if method not in SAFE_METHODS and not self._from_allowed_page(connection, socket=not method):
            raise Problem("bad-origin", "the session cookie is accepted only from an allowed Origin")

    def check_origin(self, connection: HTTPConnection) -> None:
        """Raise `Problem` if an `Origin` header is not allowed, regardless of credentials."""
        origins = connection.headers.getlist("origin")
        if any(origin not in self.origins for origin in origins):
            raise Problem("bad-origin", "this origin is not allowed")

    def _from_allowed_page(self, connection: HTTPConnection, *, socket: bool) -> bool:
        origins = connection.headers.getlist("origin")
        if origins:
            return all(origin in self.origins for origin in origins)
        return not socket and connection.headers.get("sec-fetch-site") == "same-origin"

    def _verify(self, token: str) -> Identity:
        now = clock.now()
        known = self._verified.get(token)
        if known is not None and known.issued_at <= now < known.expires_at:
            return self._within_session(known, now)
        try:
            identity = verify(self._secret, token, now=now, previous=self._previous)
        except ExpiredToken:
            raise Problem("token-expired", "the token has expired") from None
        except InvalidToken as error:
            log.info("token rejected: %s", error)
            raise Problem("unauthenticated", "the token is not valid") from None
        if len(self._verified) >= MAX_VERIFIED:
            del self._verified[next(iter(self._verified))]
        self._verified[token] = identity
        return self._within_session(identity, now)

    def _within_session(self, identity: Identity, now: datetime) -> Identity:
        """Return the identity; raise `Problem` if the session of a guest has ended."""
        if is_guest(identity) and identity.auth_time + self._max_session <= now:
            raise Problem(
                "token-expired", "the session has ended; begin a new one with POST /v1/guests without a token"
            )
        return identity

    async def _verify_for_account(self, token: str, key_id: str) -> Identity:
        if self.accounts_fault() is not None:
            raise Problem("unavailable", "tokens of accounts cannot be checked now", retry_after=2)
        try:
            return verify_for_account(await self.account_keys.with_key(key_id), token, now=clock.now())
        except ExpiredToken:
            raise Problem("token-expired", "the token has expired; refresh it") from None
        except InvalidToken as error:
            log.info("token rejected: %s", error)
            raise Problem("unauthenticated", "the token is not valid") from None

    async def _check_not_ended(self, identity: Identity) -> None:
        refusal = self.account_sessions.refusal(identity)
        if refusal is not None:
            raise Problem(refusal.slug, refusal.detail)
        await self.guest_sessions.check(identity)

    # ---- tickets ----------------------------------------------------------------------------------------------------

    async def issue_ticket(self, identity: Identity) -> str:
        """Issue a ticket that opens one socket for `identity` within 30 seconds; raise `Problem` if Redis is down."""
        ticket = secrets.token_urlsafe(32)
        identity_fields = {
            "user_id": identity.user_id,
            "roles": sorted(identity.roles),
            "expires_at": identity.expires_at.timestamp(),
            "token_id": identity.token_id,
            "issued_at": identity.issued_at.timestamp(),
            "auth_time": identity.auth_time.timestamp(),
            "session_id": identity.session_id,
            "account_version": identity.account_version,
        }
        try:
            await self._redis.set(self._key(ticket), orjson.dumps(identity_fields), ex=TICKET_SECONDS)
        except (RedisError, OSError, TimeoutError):
            raise Problem("unavailable", "tickets are unavailable", retry_after=2) from None
        return ticket

    async def redeem_ticket(self, ticket: str) -> Identity:
        """Consume a ticket and return its identity; raise `Problem` if it is malformed, used, expired or unknown."""
        if not _TICKET.fullmatch(ticket):
            raise Problem("unauthenticated", "malformed ticket; get one from POST /v1/ws-tickets")
        try:
            stored = await self._redis.getdel(self._key(ticket))
        except (RedisError, OSError, TimeoutError):
            raise Problem("unavailable", "tickets are unavailable", retry_after=2) from None
        if stored is None:
            raise Problem(
                "token-expired",
                "the ticket is used, older than 30 s, or unknown; get a new one from POST /v1/ws-tickets",
            )
        identity_fields = orjson.loads(stored)
        now = clock.now().timestamp()  # for tickets of the previous version, which lack two of the times
        identity = Identity(
            identity_fields["user_id"],
            frozenset(identity_fields["roles"]),
            datetime.fromtimestamp(identity_fields["expires_at"], UTC),
            identity_fields["token_id"],
            datetime.fromtimestamp(identity_fields.get("issued_at", now), UTC),
            datetime.fromtimestamp(identity_fields.get("auth_time", now), UTC),
            identity_fields.get("session_id"),
            identity_fields.get("account_version", 0),
        )
        await self._check_not_ended(identity)
        return identity

    def _key(self, ticket: str) -> str:
        return f"{self._settings.prefix}ticket:{ticket}"
