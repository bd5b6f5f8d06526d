"""Access tokens: JSON Web Tokens with a user id, roles and an expiry time, with one fixed algorithm (RFC 8725).

The algorithm is a literal here and never read from a token. The header must be exactly the one that `issue` writes:
a header with another key, or with an address to fetch one from, is refused and nothing is fetched.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt

from contracts.ids import uuid7

ISSUER: Final = "holdfast"
AUDIENCE: Final = "holdfast"
TYPE: Final = "at+jwt"
"""Type of an access token (RFC 9068). Tokens for other purposes have other types."""
LEEWAY: Final = timedelta(seconds=30)
"""Allowed difference between the clocks of two machines."""
MAX_LENGTH: Final = 4096
MAX_SUBJECT_LENGTH: Final = 64

_REQUIRED: Final = ("exp", "iat", "aud", "iss", "sub", "jti")


class InvalidToken(Exception):
    """The token was not issued by this shop, is malformed, or is no longer valid."""


class ExpiredToken(InvalidToken):
    """The token was issued by this shop and has expired."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The claims of a verified token. `expires_at` does not include the leeway."""

    user_id: str
    roles: frozenset[str]
    expires_at: datetime
    token_id: str
    issued_at: datetime
    auth_time: datetime
    """When the user's first token was issued, from which all later ones were renewed."""


def issue(
    secret: str,
    *,
    user_id: str,
    roles: Iterable[str],
    lifetime: timedelta,
    now: datetime,
    auth_time: datetime | None = None,
) -> tuple[str, datetime]:
    """Return a token for `user_id` with `roles`, and the time of its expiry in whole seconds.

    `auth_time` is the time of the first token, if this one renews another.
    """
    issued_at = int(now.timestamp())
    expires_at = issued_at + int(lifetime.total_seconds())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user_id,
        "jti": uuid7(),
        "iat": issued_at,
        "exp": expires_at,
        "auth_time": issued_at if auth_time is None else int(auth_time.timestamp()),
        "roles": sorted(roles),
    }
    token = jwt.encode(claims, secret, algorithm="HS256", headers={"typ": TYPE, "kid": _key_id(secret)})
    return token, datetime.fromtimestamp(expires_at, UTC)


def verify(secret: str, token: str, *, now: datetime, previous: str | None = None) -> Identity:
    """Return the claims of `token`. Raise `ExpiredToken` if it has expired, `InvalidToken` for any other fault.

    While secrets are rotated, `previous` is the one before `secret`: tokens that it signed are still valid.
    """
    if len(token) > MAX_LENGTH:
        raise InvalidToken("too long")
    headers = {key: {"alg": "HS256", "typ": TYPE, "kid": _key_id(key)} for key in (secret, previous) if key}
    try:
        header = jwt.get_unverified_header(token)
        key = next((key for key, ours in headers.items() if header == ours), None)
        if key is None:
            raise InvalidToken("the header is not one that this shop writes")
        claims = jwt.decode(
            token,
            key,
            algorithms=["HS256"],
            audience=AUDIENCE,
            issuer=ISSUER,
            # Times are checked below, against the `now` that was passed in.
            options={"require": [*_REQUIRED], "verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidToken(type(error).__name__) from None
    return _identity(claims, now)


def _identity(claims: dict[str, Any], now: datetime) -> Identity:
    roles, subject = claims.get("roles", []), claims["sub"]
    auth_time = claims.get("auth_time", claims["iat"])  # tokens of earlier versions have no such claim
    times = [claims["exp"], auth_time, *(claims[name] for name in ("iat", "nbf") if name in claims)]
    if not (isinstance(roles, list) and all(isinstance(role, str) for role in roles)):
        raise InvalidToken("roles: expected a list of strings")
    if not (isinstance(subject, str) and _is_id(subject)):
        raise InvalidToken("sub: expected 1 to 64 printable ASCII characters")
    if not all(type(moment) is int and 0 <= moment < 2**40 for moment in times):
        raise InvalidToken("exp, iat, nbf, auth_time: expected Unix times in whole seconds")
    instant, leeway = now.timestamp(), LEEWAY.total_seconds()
    if any(moment > instant + leeway for moment in times[1:]):
        raise InvalidToken("iat, nbf or auth_time is in the future")
    if claims["exp"] + leeway <= instant:
        raise ExpiredToken("expired")
    expires_at, issued_at, first = (
        datetime.fromtimestamp(each, UTC) for each in (claims["exp"], claims["iat"], auth_time)
    )
    return Identity(subject, frozenset(roles), expires_at, str(claims["jti"]), issued_at, first)


def _is_id(subject: str) -> bool:
    return 0 < len(subject) <= MAX_SUBJECT_LENGTH and subject.isascii() and subject.isprintable()


def _key_id(secret: str) -> str:
    """Return an id for the header that distinguishes secrets without revealing them."""
    return hashlib.sha256(b"holdfast key id\0" + secret.encode()).hexdigest()[:8]
