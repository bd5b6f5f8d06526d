"""Signed tokens that say who somebody is until when: JSON Web Tokens with one algorithm (RFC 8725).

The algorithm is a literal here and never read from a token. A token's header must be exactly the one that `issue`
writes: a header that names another key, or a place to fetch one from, is refused and nothing is fetched.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt

from infrastructure.ids import uuid7

ISSUER: Final = "holdfast"
AUDIENCE: Final = "holdfast"
TYPE: Final = "at+jwt"
"""The type of an access token (RFC 9068); a token for another purpose bears another."""
LEEWAY: Final = timedelta(seconds=30)
"""How far two machines' clocks may differ."""
MAX_LENGTH: Final = 4096
MAX_SUBJECT_LENGTH: Final = 64

_REQUIRED: Final = ("exp", "iat", "aud", "iss", "sub", "jti")


class InvalidToken(Exception):
    """Not a token of ours, or no longer one; whoever shows it is nobody."""


class ExpiredToken(InvalidToken):
    """It was one of ours, and its time is over."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token speaks for. `expires_at` is without the leeway."""

    user_id: str
    roles: frozenset[str]
    expires_at: datetime
    token_id: str


def issue(
    secret: str, *, user_id: str, roles: Iterable[str], lifetime: timedelta, now: datetime
) -> tuple[str, datetime]:
    """A token for `user_id` with `roles`, and the whole second at which it expires."""
    issued_at = int(now.timestamp())
    expires_at = issued_at + int(lifetime.total_seconds())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user_id,
        "jti": uuid7(),
        "iat": issued_at,
        "exp": expires_at,
        "roles": sorted(roles),
    }
    token = jwt.encode(claims, secret, algorithm="HS256", headers={"typ": TYPE, "kid": _key_id(secret)})
    return token, datetime.fromtimestamp(expires_at, UTC)


def verify(secret: str, token: str, *, now: datetime, previous: str | None = None) -> Identity:
    """Whom `token` speaks for; `ExpiredToken` when its time is over, `InvalidToken` for everything else.

    While keys are rotated, `previous` is the one that signed before `secret`: its tokens still count.
    """
    if len(token) > MAX_LENGTH:
        raise InvalidToken("too long")
    headers = {key: {"alg": "HS256", "typ": TYPE, "kid": _key_id(key)} for key in (secret, previous) if key}
    try:
        header = jwt.get_unverified_header(token)
        key = next((key for key, ours in headers.items() if header == ours), None)
        if key is None:
            raise InvalidToken("not a header of ours")
        claims = jwt.decode(
            token,
            key,
            algorithms=["HS256"],
            audience=AUDIENCE,
            issuer=ISSUER,
            # The times are compared below, with the `now` that was passed in.
            options={"require": [*_REQUIRED], "verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidToken(type(error).__name__) from None
    return _identity(claims, now)


def _identity(claims: dict[str, Any], now: datetime) -> Identity:
    roles, subject = claims.get("roles", []), claims["sub"]
    times = [claims[name] for name in ("exp", "iat", "nbf") if name in claims]
    if not (isinstance(roles, list) and all(isinstance(role, str) for role in roles)):
        raise InvalidToken("roles are a list of words")
    if not (isinstance(subject, str) and _is_id(subject)):
        raise InvalidToken("the subject is no id")
    if not all(type(moment) is int and 0 <= moment < 2**40 for moment in times):
        raise InvalidToken("a time is not in seconds")
    instant, leeway = now.timestamp(), LEEWAY.total_seconds()
    if any(moment > instant + leeway for moment in times[1:]):
        raise InvalidToken("from the future")
    if claims["exp"] + leeway <= instant:
        raise ExpiredToken("expired")
    return Identity(subject, frozenset(roles), datetime.fromtimestamp(claims["exp"], UTC), str(claims["jti"]))


def _is_id(subject: str) -> bool:
    return 0 < len(subject) <= MAX_SUBJECT_LENGTH and subject.isascii() and subject.isprintable()


def _key_id(secret: str) -> str:
    """Which key signed: tells keys apart, and nothing of the key."""
    return hashlib.sha256(b"holdfast key id\0" + secret.encode()).hexdigest()[:8]
