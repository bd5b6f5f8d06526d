"""The rules of accounts, pure: addresses, passwords, roles, sessions, refresh tokens and one-time tokens.

Changes of an account are functions from an account to an `AccountChange`: the account afterwards, and its event.
"""

import base64
import hashlib
import hmac
import unicodedata
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal, Self

import orjson

from contracts.accounts import (
    MAX_SESSIONS,
    ROLES,
    Deleted,
    Disabled,
    Enabled,
    Event,
    Registered,
    Role,
    RolesChanged,
    Updated,
)
from contracts.addresses import parse_email

MIN_PASSWORD_BYTES: Final = 8
MAX_PASSWORD_BYTES: Final = 1024
MAX_NAME_LENGTH: Final = 200
MAX_PROFILE_BYTES: Final = 16 * 1024
SESSION_IDLE: Final = timedelta(days=30)
"""A session that was not refreshed for so long has ended."""
SESSION_LIFETIME: Final = timedelta(days=180)
"""A session ends so long after its login, however often it is refreshed."""
CONFIRM_LIFETIME: Final = timedelta(hours=24)
RESET_LIFETIME: Final = timedelta(minutes=30)
MAX_ONE_TIME_TOKENS: Final = 5
"""Valid one-time tokens of one account and purpose; a further one ends the oldest."""

Purpose = Literal["confirm", "reset"]
LIFETIMES: Final[Mapping[Purpose, timedelta]] = {"confirm": CONFIRM_LIFETIME, "reset": RESET_LIFETIME}


class InvalidValueError(ValueError):
    """A value from a client breaks a rule; the message is for the client and does not repeat the value."""


# ---- value objects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Email:
    """An e-mail address. `text` is its normal form, to which mails are sent; `key` identifies the account."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address in its normal form. Raise `InvalidValueError` if no mail can be sent to it."""
        try:
            return cls(parse_email(text))
        except ValueError as error:
            raise InvalidValueError(str(error)) from None

    @property
    def key(self) -> str:
        """The address without the distinction of upper and lower case: two accounts never share it."""
        return self.text.casefold()


@dataclass(frozen=True, slots=True, repr=False)
class Password:
    """A password that may be chosen, as the bytes to hash. Its representation never shows it."""

    normalized: bytes

    @classmethod
    def parse(cls, text: str, common: Container[str] = frozenset()) -> Self:
        """Return a new password in its normal form (NFKC). Raise `InvalidValueError` if it is too weak or too long.

        `common` has the passwords in lower case that are refused because they are tried first.
        """
        password = cls.entered(text)
        if password is None or len(password.normalized) > MAX_PASSWORD_BYTES:
            raise InvalidValueError(f"a password has at most {MAX_PASSWORD_BYTES} bytes in UTF-8")
        if len(password.normalized) < MIN_PASSWORD_BYTES:
            raise InvalidValueError(f"a password has at least {MIN_PASSWORD_BYTES} bytes in UTF-8")
        if password.normalized.decode().lower() in common:
            raise InvalidValueError("this password is one of the most common ones; choose another")
        return password

    @classmethod
    def entered(cls, text: str) -> Self | None:
        """Return a password that was entered at a login; `None` if it is too long to be anybody's.

        Nothing that is longer than the limit is normalised or hashed.
        """
        if len(text) > MAX_PASSWORD_BYTES:
            return None
        try:
            normalized = unicodedata.normalize("NFKC", text).encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return None
        return cls(normalized)

    def __repr__(self) -> str:
        return "Password(…)"


def parse_name(text: str) -> str:
    """Return a person's name without blanks around it. Raise `InvalidValueError` for an unprintable or long one."""
    name = unicodedata.normalize("NFC", text).strip()
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidValueError(f"a name has at most {MAX_NAME_LENGTH} characters")
    if not all(character.isprintable() for character in name):
        raise InvalidValueError("a name has printable characters only")
    return name


def check_profile(profile: Mapping[str, Any]) -> None:
    """Raise `InvalidValueError` if a profile is too large. Its content is the client's own."""
    try:
        encoded = orjson.dumps(profile)
    except TypeError as error:
        raise InvalidValueError(f"the profile is not JSON: {error}") from None
    if b"\\u0000" in encoded:
        raise InvalidValueError("a profile has no text with U+0000")
    if len(encoded) > MAX_PROFILE_BYTES:
        raise InvalidValueError(f"a profile has at most {MAX_PROFILE_BYTES} bytes as JSON")


def parse_roles(roles: Iterable[str]) -> tuple[Role, ...]:
    """Return roles in their order without repeats. Raise `InvalidValueError` for an unknown one, or for none."""
    given = frozenset(roles)
    if unknown := given.difference(ROLES):
        raise InvalidValueError(f"unknown role {min(unknown)[:32]!r}; the roles are {', '.join(ROLES)}")
    if not given:
        raise InvalidValueError(f"an account has at least one role of {', '.join(ROLES)}")
    return tuple(role for role in ROLES if role in given)


# ---- accounts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Account:
    """An account as it is stored. `version` rises by one with each change."""

    user_id: str
    email: str
    name: str
    profile: Mapping[str, Any]
    roles: tuple[Role, ...]
    created_at: datetime
    version: int = 1
    confirmed: bool = False
    disabled: bool = False
    password_hash: str = ""
    tokens_from: int = 1
    """Access tokens of an earlier version of the account are not valid."""


@dataclass(frozen=True, slots=True)
class AccountChange:
    """An account after a change, and the event about it; `None` if nothing was changed."""

    account: Account
    event: Event | None


def register(account: Account) -> AccountChange:
    """Return the change that creates an account."""
    return AccountChange(account, Registered(user_id=account.user_id, version=account.version, roles=account.roles))


def update_profile(
    account: Account, *, name: str | None = None, profile: Mapping[str, Any] | None = None
) -> AccountChange:
    """Set the fields that are not `None`."""
    given = {"name": name, "profile": profile}
    fields = {field: value for field, value in given.items() if value is not None and value != getattr(account, field)}
    return _update(account, fields)


def confirm_email(account: Account, password_hash: str | None) -> AccountChange:
    """Confirm the address, and set the password that the confirmed registration chose.

    Several persons may have registered an address that none of them has confirmed. The confirmation proves that the
    one who can read its mail meant this registration, so no other password may open the account.
    """
    if account.confirmed:
        return AccountChange(account, None)
    return _update(account, {"confirmed": True, "password_hash": password_hash or account.password_hash})


def change_password(account: Account, password_hash: str, *, proves_address: bool = False) -> AccountChange:
    """Set another password. With `proves_address` the person has read a mail to the account's address."""
    changes: dict[str, Any] = {"password_hash": password_hash}
    if proves_address and not account.confirmed:
        changes["confirmed"] = True
    return _update(account, changes)


def rehash_password(account: Account, password_hash: str) -> Account:
    """Replace the hash of the same password by one with today's parameters, and leave its version."""
    return replace(account, password_hash=password_hash)


def set_roles(account: Account, roles: tuple[Role, ...]) -> AccountChange:
    """Give an account exactly these roles."""
    if roles == account.roles:
        return AccountChange(account, None)
    changed = replace(account, roles=roles, version=account.version + 1, tokens_from=account.version + 1)
    return AccountChange(changed, RolesChanged(user_id=account.user_id, version=changed.version, roles=roles))


def set_disabled(account: Account, *, disabled: bool) -> AccountChange:
    """Disable an account, or enable it again."""
    if disabled == account.disabled:
        return AccountChange(account, None)
    changed = replace(account, disabled=disabled, version=account.version + 1, tokens_from=account.version + 1)
    event = Disabled if disabled else Enabled
    return AccountChange(changed, event(user_id=account.user_id, version=changed.version))


def delete(account: Account) -> AccountChange:
    """Return the change that deletes an account. Its version is one above the last, so that all tokens are older."""
    changed = replace(account, version=account.version + 1)
    return AccountChange(changed, Deleted(user_id=account.user_id, version=changed.version))


def _update(account: Account, changes: Mapping[str, Any]) -> AccountChange:
    if not changes:
        return AccountChange(account, None)
    changed = replace(account, **changes, version=account.version + 1)
    # The name of the column is nobody else's business.
    fields = tuple(sorted("password" if name == "password_hash" else name for name in changes))
    return AccountChange(changed, Updated(user_id=account.user_id, version=changed.version, fields=fields))


def login_refusal(account: Account, *, requires_confirmation: bool) -> Literal["disabled", "unconfirmed"] | None:
    """Return why an account cannot log in although its password is right; `None` if it can."""
    if account.disabled:
        return "disabled"
    return "unconfirmed" if requires_confirmation and not account.confirmed else None


# ---- sessions and refresh tokens ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    """A session: one login, and the family of refresh tokens that follow from it, of which the newest is valid."""

    session_id: str
    user_id: str
    created_at: datetime
    seen_at: datetime
    generation: int = 0
    ended_at: datetime | None = None

    @property
    def expires_at(self) -> datetime:
        """When the session ends unless it is refreshed before."""
        return min(self.seen_at + SESSION_IDLE, self.created_at + SESSION_LIFETIME)

    def has_ended(self, now: datetime) -> bool:
        """Return whether the session was ended, or has expired."""
        return self.ended_at is not None or self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Rotated:
    """The refresh token was the newest one: the session continues with the next."""

    session: Session


RefreshResult = Rotated | Literal["reused", "refused"]


def refresh(session: Session | None, account: Account | None, generation: int, now: datetime) -> RefreshResult:
    """Decide about a genuine refresh token of `generation`.

    A token that was replaced already is `reused`: two clients have it, and one of them has stolen it. The session must
    then be ended.
    """
    if session is None or account is None or account.disabled or session.has_ended(now):
        return "refused"
    if generation != session.generation:
        return "reused"
    return Rotated(replace(session, generation=generation + 1, seen_at=now))


def surplus_sessions(sessions: Sequence[Session], now: datetime) -> list[str]:
    """Return the ids of the sessions to end before one more begins: those used longest ago, beyond `MAX_SESSIONS`."""
    running = sorted((each for each in sessions if not each.has_ended(now)), key=lambda each: each.seen_at)
    return [each.session_id for each in running[: max(0, len(running) - MAX_SESSIONS + 1)]]


_MAC_BYTES: Final = 32


def encode_refresh_token(key: bytes, session_id: str, generation: int) -> str:
    """Return the refresh token of one generation of a session. Only the holder of `key` can make it.

    So a token needs no row of its own, and an old one is known for genuine: a forged token cannot end a session.
    """
    named = f"{session_id}.{generation}"
    mac = hmac.digest(key, named.encode(), hashlib.sha256)
    return f"{named}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def decode_refresh_token(keys: Collection[bytes], token: str) -> tuple[str, int] | None:
    """Return the session id and the generation of a genuine refresh token; `None` for any other text."""
    session_id, _, rest = token.partition(".")
    number, _, _ = rest.partition(".")
    if not (token.isascii() and number.isdigit() and len(number) < len("1000000000") and len(session_id) <= 64):  # noqa: PLR2004 - the length of an id
        return None
    for key in keys:
        if hmac.compare_digest(encode_refresh_token(key, session_id, int(number)), token):
            return session_id, int(number)
    return None


# ---- one-time tokens ------------------------------------------------------------------------------------------------


def token_digest(token: str) -> bytes:
    """Return the digest under which a one-time token is stored, so that a copy of the table opens no account."""
    return hashlib.sha256(b"holdfast one-time token\0" + token.encode(errors="replace")).digest()
