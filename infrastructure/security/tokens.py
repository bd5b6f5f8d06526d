"""Access tokens: JSON Web Tokens with a user id, roles and an expiry time (RFC 8725).

There are two kinds. Tokens of guests and of `holdfast token` are signed with the shop's secret (HS256), which the edge
has. Tokens of accounts are signed by the account service (Ed25519), and the edge has the public keys only.

The algorithm of each key is a literal here and never read from a token. The header must be exactly the one that is
written for a known key: a header with another key, or with an address to fetch one from, is refused and nothing is
fetched.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from contracts.ids import uuid7

ISSUER: Final = "holdfast"
AUDIENCE: Final = "holdfast"
TYPE: Final = "at+jwt"
"""Type of an access token (RFC 9068). Tokens for other purposes have other types."""
ALGORITHM: Final = "EdDSA"
"""Algorithm of the tokens of accounts."""
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
    session_id: str | None = None
    """The session of an account; `None` for all tokens that the shop's secret signs."""
    account_version: int = 0
    """The version of the account when the token was issued."""


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
    claims = _claims(user_id, roles, lifetime, now, auth_time or now)
    token = jwt.encode(claims, secret, algorithm="HS256", headers={"typ": TYPE, "kid": _key_id(secret)})
    return token, datetime.fromtimestamp(claims["exp"], UTC)


def issue_for_account(  # noqa: PLR0913 - the claims of a token
    key: Ed25519PrivateKey,
    key_id: str,
    *,
    user_id: str,
    roles: Iterable[str],
    session_id: str,
    account_version: int,
    lifetime: timedelta,
    now: datetime,
    auth_time: datetime,
) -> tuple[str, datetime]:
    """Return a token for a session of an account, and the time of its expiry in whole seconds."""
    claims = _claims(user_id, roles, lifetime, now, auth_time) | {"sid": session_id, "ver": account_version}
    token = jwt.encode(claims, key, algorithm=ALGORITHM, headers=_account_header(key_id))
    return token, datetime.fromtimestamp(claims["exp"], UTC)


def _claims(
    user_id: str, roles: Iterable[str], lifetime: timedelta, now: datetime, auth_time: datetime
) -> dict[str, Any]:
    """Return the claims of every token."""
    issued_at = int(now.timestamp())
    return {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user_id,
        "jti": uuid7(),
        "iat": issued_at,
        "exp": issued_at + int(lifetime.total_seconds()),
        "auth_time": int(auth_time.timestamp()),
        "roles": sorted(roles),
    }


def account_key_id(token: str) -> str | None:
    """Return the id of the key that a token of an account names; `None` if its header is not one of an account's.

    Nothing is verified. The id is at most 64 printable ASCII characters.
    """
    if len(token) > MAX_LENGTH:
        return None
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    kid = header.get("kid")
    return kid if isinstance(kid, str) and _is_id(kid) and header == _account_header(kid) else None


def verify_for_account(keys: Mapping[str, Ed25519PublicKey], token: str, *, now: datetime) -> Identity:
    """Return the claims of a token of an account. Raise as `verify` does; an unknown key is an `InvalidToken`."""
    kid = account_key_id(token)
    key = keys.get(kid) if kid is not None else None
    if key is None:
        raise InvalidToken("the header is not one that this shop writes")
    identity, claims = _decode(token, key, ALGORITHM, now)
    session_id, version = claims.get("sid"), claims.get("ver")
    if not (isinstance(session_id, str) and _is_id(session_id)):
        raise InvalidToken("sid: expected 1 to 64 printable ASCII characters")
    if not (type(version) is int and 0 < version < 2**63):
        raise InvalidToken("ver: expected a positive whole number")
    return replace(identity, session_id=session_id, account_version=version)


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
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidToken(type(error).__name__) from None
    if key is None:
        raise InvalidToken("the header is not one that this shop writes")
    identity, _ = _decode(token, key, "HS256", now)
    return identity


def _decode(token: str, key: Any, algorithm: str, now: datetime) -> tuple[Identity, dict[str, Any]]:
    """Verify the signature and the claims; the caller has chosen key and algorithm together."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=AUDIENCE,
            issuer=ISSUER,
            # Times are checked below, against the `now` that was passed in.
            options={"require": [*_REQUIRED], "verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidToken(type(error).__name__) from None
    return _identity(claims, now), claims


def _account_header(key_id: str) -> dict[str, str]:
    return {"alg": ALGORITHM, "typ": TYPE, "kid": key_id}


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
