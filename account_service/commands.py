"""The commands of accounts: each reads, decides with `model`, and writes in one transaction.

A command is named by the edge and carries its own proof: a password, an access token, a refresh token or a token of a
mail. The caller is not trusted with anything else.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from account_service import mails, model
from account_service.common_passwords import common_passwords
from account_service.keys import KeyRing, NoSigningKeyError
from account_service.model import Account, Email, InvalidValueError, Password, Purpose, Session
from account_service.passwords import Hasher, HashingBusyError
from account_service.settings import Settings
from account_service.store import SOURCE, UNAVAILABLE_ERRORS, Store, Transaction
from contracts import notifications
from contracts.accounts import EndReason
from contracts.envelope import Envelope, rfc3339
from contracts.ids import uuid7
from infrastructure.process import clock
from infrastructure.security.sealing import derive_key
from infrastructure.security.tokens import (
    ExpiredToken,
    Identity,
    InvalidToken,
    account_key_id,
    issue_for_account,
    verify,
    verify_for_account,
)

log = logging.getLogger(__name__)

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 100
RETRY_AFTER: Final = 1
BUSY_RETRY_AFTER: Final = 1
STATUS_CONFIRMATION_SENT: Final = {"status": "confirmation_sent"}
STATUS_RESET_SENT: Final = {"status": "reset_sent"}

LEVEL_SECONDS: Final = 0.1
"""Time that the answer about an address takes, whether an account has it or not."""

T = TypeVar("T")
Result = dict[str, Any]


@dataclass
class CommandError(Exception):
    """The command was refused. `slug` names the problem as in the contract."""

    slug: str
    detail: str = ""
    pointer: str | None = None
    """Place of an invalid value in the client's body."""
    retry_after: int | None = None
    errors: list[dict[str, str]] = field(default_factory=list)

    def body(self) -> Result:
        """Return the error as JSON."""
        errors = [{"pointer": self.pointer, "detail": self.detail}] if self.pointer is not None else self.errors
        found = {"problem": self.slug, "detail": self.detail, "errors": errors, "retry_after": self.retry_after}
        return {name: value for name, value in found.items() if value}


class Body(BaseModel):
    """The fields of a command."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


Text = Annotated[str, Field(max_length=4096)]


class Register(Body):
    """Create an account."""

    email: Text
    password: Text
    name: Text = ""


class Token(Body):
    """Use a one-time token."""

    token: Text


class Address(Body):
    """Send a mail to an address."""

    email: Text


class ResetPassword(Body):
    """Set a password with a token of a mail."""

    token: Text
    password: Text


class LogIn(Body):
    """Begin a session."""

    email: Text
    password: Text


class Refresh(Body):
    """Continue a session."""

    refresh_token: Text


class Authorized(Body):
    """A command with an access token."""

    access_token: Text


class OneSession(Authorized):
    """End a session; `current` is the one of the access token."""

    session_id: Text


class UpdateMe(Authorized):
    """Change the own account. With `versions` only if its version is one of them."""

    name: Text | None = None
    profile: dict[str, Any] | None = None
    versions: list[int] | None = None


class ChangePassword(Authorized):
    """Set another password of the own account."""

    current_password: Text
    password: Text


class DeleteMe(Authorized):
    """Delete the own account."""

    password: Text
    versions: list[int] | None = None


class ListUsers(Authorized):
    """List accounts."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE
    after: Text = ""


class OneUser(Authorized):
    """Read or disable an account."""

    user_id: Text


class SetRoles(OneUser):
    """Give an account exactly these roles."""

    roles: list[Text]


@dataclass(frozen=True, slots=True)
class Caller:
    """The account and the session of an access token, as they are now."""

    account: Account
    session: Session


class Commands:
    """Executes commands. `wake` is called after each one that queued a record."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        hasher: Hasher,
        keys: KeyRing,
        *,
        wake: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self._settings = settings
        self._store = store
        self._hasher = hasher
        self._keys = keys
        self._wake = wake
        self._now = now
        given = (settings.accounts_secret, settings.accounts_secret_previous)
        self._refresh_keys: Collection[bytes] = [
            derive_key(each.get_secret_value(), "refresh tokens") for each in given if each
        ]
        self._table: Mapping[str, tuple[type[Body], Callable[[Any], Awaitable[Result]]]] = {
            "register": (Register, self.register),
            "confirm": (Token, self.confirm),
            "request_reset": (Address, self.request_reset),
            "reset_password": (ResetPassword, self.reset_password),
            "log_in": (LogIn, self.log_in),
            "refresh": (Refresh, self.refresh),
            "sessions": (Authorized, self.sessions),
            "end_session": (OneSession, self.end_session),
            "end_all_sessions": (Authorized, self.end_all_sessions),
            "me": (Authorized, self.me),
            "update_me": (UpdateMe, self.update_me),
            "change_password": (ChangePassword, self.change_password),
            "delete_me": (DeleteMe, self.delete_me),
            "users": (ListUsers, self.users),
            "user": (OneUser, self.user),
            "set_roles": (SetRoles, self.set_roles),
            "disable": (OneUser, self.disable),
        }

    async def execute(self, name: str, body: Any) -> Result:
        """Execute the command `name` with a JSON body, and return its result. Raise `CommandError`."""
        found = self._table.get(name)
        if found is None:
            raise CommandError("not-found", "there is no such command")
        kind, command = found
        try:
            return await command(kind.model_validate(body))
        except ValidationError as error:
            errors = [
                {"pointer": "".join(f"/{step}" for step in fault["loc"]), "detail": fault["msg"]}
                for fault in error.errors(include_input=False, include_url=False)
            ]
            raise CommandError("invalid", errors=errors) from None
        except HashingBusyError:
            raise CommandError(
                "rate-limited", "too many passwords are being checked", retry_after=BUSY_RETRY_AFTER
            ) from None
        except UNAVAILABLE_ERRORS:
            raise CommandError("unavailable", "accounts are unavailable", retry_after=RETRY_AFTER) from None
        except NoSigningKeyError as error:
            log.error("no access token can be signed: %s", error)  # noqa: TRY400 - the message has it all
            raise CommandError("unavailable", "accounts are unavailable", retry_after=RETRY_AFTER) from None
        finally:
            self._wake()

    # ---- registration and mails -------------------------------------------------------------------------------------

    async def register(self, body: Register) -> Result:
        """Create an account and send its confirmation. The answer says nothing about the address."""
        email = _parse(lambda: Email.parse(body.email), "/email")
        password = self._new_password(body.password)
        name = _parse(lambda: model.parse_name(body.name), "/name")
        password_hash = await self._hasher.hash(password)
        now = self._now()
        async with _level_time(), self._store.transaction() as transaction:
            account = Account(uuid7(), email.text, name, {}, ("shopper",), now, password_hash=password_hash)
            if not await transaction.insert_account(model.register(account), now):
                found = await transaction.account_of(email)
                if found is None:  # it was deleted a moment ago
                    raise CommandError("unavailable", "accounts are busy", retry_after=RETRY_AFTER)
                account = found
            if account.confirmed:
                mail = mails.address_taken_mail(account, cause=f"account/exists/{uuid7()}")
                await _send(transaction, mail, now)
            else:
                await self._send_token(transaction, account, "confirm", now, password_hash=password_hash)
        return STATUS_CONFIRMATION_SENT

    async def confirm(self, body: Token) -> Result:
        """Confirm an address with the token of a mail."""
        now = self._now()
        async with self._store.transaction() as transaction:
            account, password_hash = await self._use_token(transaction, body.token, "confirm", now)
            change = model.confirm_email(account, password_hash)
            if change.account.password_hash != account.password_hash:
                # These sessions follow from another registration, which has not proven to own the address.
                await self._end_all(transaction, account, "password_changed", now)
            await transaction.save(change, now)
        return {"status": "confirmed"}

    async def request_reset(self, body: Address) -> Result:
        """Send a mail with which the password can be set. The answer says nothing about the address."""
        email = _parse(lambda: Email.parse(body.email), "/email")
        now = self._now()
        async with _level_time(), self._store.transaction() as transaction:
            account = await transaction.account_of(email)
            if account is not None and not account.disabled:
                await self._send_token(transaction, account, "reset", now)
        return STATUS_RESET_SENT

    async def reset_password(self, body: ResetPassword) -> Result:
        """Set a password with the token of a mail, and end all sessions."""
        password = self._new_password(body.password)
        now = self._now()
        async with self._store.transaction() as transaction:  # nobody gets a password hashed without a token
            if await transaction.token(model.token_digest(body.token), "reset", now) is None:
                raise _invalid_token()
        password_hash = await self._hasher.hash(password)
        async with self._store.transaction() as transaction:
            account, _ = await self._use_token(transaction, body.token, "reset", now)
            change = model.change_password(account, password_hash, proves_address=True)
            await self._save_password(transaction, change, now)
            await self._end_all(transaction, account, "password_changed", now)
        return {"status": "password_changed"}

    # ---- sessions ---------------------------------------------------------------------------------------------------

    async def log_in(self, body: LogIn) -> Result:
        """Begin a session. An unknown address takes the same time and gets the same answer as a wrong password."""
        try:
            email = Email.parse(body.email)
        except InvalidValueError:
            email = None
        known = None
        if email is not None:
            async with self._store.transaction() as transaction:
                known = await transaction.account_of(email)
        password = Password.entered(body.password)
        if not await self._hasher.verify(known.password_hash if known else None, password):
            raise _invalid_credentials()
        assert known is not None
        assert password is not None
        rehashed = None
        if self._hasher.needs_rehash(known.password_hash):
            rehashed = await self._hasher.hash(password)
        now = self._now()
        async with self._store.transaction() as transaction:
            account = await transaction.account(known.user_id, lock=True)
            if account is None or account.password_hash != known.password_hash:
                raise _invalid_credentials()  # the password was changed in the meantime
            refusal = model.login_refusal(account, requires_confirmation=self._settings.requires_confirmation)
            if refusal == "disabled":
                raise CommandError("account-disabled", "the account is disabled; ask the shop's support")
            if refusal == "unconfirmed":
                raise CommandError("email-not-confirmed", "confirm the address with the mail that was sent to it")
            if rehashed is not None:
                await transaction.save_hash(model.rehash_password(account, rehashed))
            surplus = model.surplus_sessions(await transaction.sessions_of(account.user_id), now)
            await transaction.end_sessions(account.user_id, surplus, "surplus", now)
            session = Session(uuid7(), account.user_id, now, now)
            await transaction.insert_session(session.session_id, account.user_id, now)
            return self._tokens(account, session, now)

    async def refresh(self, body: Refresh) -> Result:
        """Continue a session with its newest refresh token. An older one ends the session."""
        named = model.decode_refresh_token(self._refresh_keys, body.refresh_token)
        if named is None:
            raise _ended_session()
        session_id, generation = named
        now = self._now()
        async with self._store.transaction() as transaction:
            found = await transaction.session(session_id)
            account = await transaction.account(found.user_id, lock=True) if found else None
            session = await transaction.session(session_id)  # as it is under the lock of the account
            result = model.refresh(session, account, generation, now)
            if isinstance(result, model.Rotated):
                assert account is not None
                await transaction.update_session(result.session)
                return self._tokens(account, result.session, now)
            if result == "reused":
                assert account is not None
                await transaction.end_sessions(account.user_id, [session_id], "reused", now)
        if result == "reused":
            log.warning("a refresh token was used twice, and its session was ended", extra={"session": session_id})
            raise CommandError("token-expired", "the refresh token was used before, so the session was ended; log in")
        raise _ended_session()

    async def sessions(self, body: Authorized) -> Result:
        """List the running sessions of the caller, newest first."""
        now = self._now()
        async with self._store.transaction() as transaction:
            caller = await self._caller(transaction, body.access_token)
            running = [
                each for each in await transaction.sessions_of(caller.account.user_id) if not each.has_ended(now)
            ]
        return {
            "items": [
                {
                    "session_id": each.session_id,
                    "created_at": rfc3339(each.created_at),
                    "seen_at": rfc3339(each.seen_at),
                    "expires_at": rfc3339(each.expires_at),
                    "current": each.session_id == caller.session.session_id,
                }
                for each in running
            ]
        }

    async def end_session(self, body: OneSession) -> Result:
        """End one session of the caller. Another user's is not found, and one that has ended is ended again."""
        now = self._now()
        async with self._store.transaction() as transaction:
            caller = await self._caller(transaction, body.access_token, lock=True)
            session_id = caller.session.session_id if body.session_id == "current" else body.session_id
            session = await transaction.session(session_id)
            if session is None or session.user_id != caller.account.user_id:
                raise CommandError("not-found", "you have no such session")
            await transaction.end_sessions(session.user_id, [session_id], "logged_out", now)
        return {"current": session_id == caller.session.session_id}

    async def end_all_sessions(self, body: Authorized) -> Result:
        """End all sessions of the caller."""
        async with self._store.transaction() as transaction:
            caller = await self._caller(transaction, body.access_token, lock=True)
            await self._end_all(transaction, caller.account, "logged_out", self._now())
        return {}

    # ---- the own account --------------------------------------------------------------------------------------------

    async def me(self, body: Authorized) -> Result:
        """Return the caller's account."""
        async with self._store.transaction() as transaction:
            caller = await self._caller(transaction, body.access_token)
        return describe(caller.account)

    async def update_me(self, body: UpdateMe) -> Result:
        """Change the caller's name and profile."""
        name, profile = body.name, body.profile
        if name is not None:
            given = name
            name = _parse(lambda: model.parse_name(given), "/name")
        if profile is not None:
            content = profile
            _parse(lambda: model.check_profile(content), "/profile")
        async with self._store.transaction() as transaction:
            caller = await self._caller(transaction, body.access_token, lock=True)
            _check_version(caller.account, body.versions)
            change = model.update_profile(caller.account, name=name, profile=profile)
            await transaction.save(change, self._now())
        return describe(change.account)

    async def change_password(self, body: ChangePassword) -> Result:
        """Set another password, and end all other sessions of the caller."""
        password = self._new_password(body.password)
        async with self._store.transaction() as transaction:
            caller = await self._caller(transaction, body.access_token)
        await self._require_password(caller.account, body.current_password, "/current_password")
        password_hash = await self._hasher.hash(password)
        now = self._now()
        async with self._store.transaction() as transaction:
            caller = await self._caller(
                transaction, body.access_token, lock=True, password_hash=caller.account.password_hash
            )
            change = model.change_password(caller.account, password_hash)
            await self._save_password(transaction, change, now)
            others = {each.session_id for each in await transaction.sessions_of(caller.account.user_id)}
            others.discard(caller.session.session_id)
            await transaction.end_sessions(caller.account.user_id, others, "password_changed", now)
        return {"status": "password_changed"}

    async def delete_me(self, body: DeleteMe) -> Result:
        """Delete the caller's account, after the password was entered once more."""
        async with self._store.transaction() as transaction:
            caller = await self._caller(transaction, body.access_token)
        await self._require_password(caller.account, body.password, "/password")
        now = self._now()
        async with self._store.transaction() as transaction:
            caller = await self._caller(
                transaction, body.access_token, lock=True, password_hash=caller.account.password_hash
            )
            _check_version(caller.account, body.versions)
            await self.delete_account(transaction, caller.account, now)
        return {}

    # ---- administration ---------------------------------------------------------------------------------------------

    async def users(self, body: ListUsers) -> Result:
        """Return a page of accounts, oldest first."""
        async with self._store.transaction() as transaction:
            await self._require_admin(transaction, body.access_token)
            page = await transaction.accounts_page(after=body.after, limit=body.limit + 1)
        more = len(page) > body.limit
        items = page[: body.limit]
        return {"items": [describe_user(each) for each in items], "after": items[-1].user_id if more else None}

    async def user(self, body: OneUser) -> Result:
        """Return any account."""
        async with self._store.transaction() as transaction:
            await self._require_admin(transaction, body.access_token)
            return describe_user(await _require_account(transaction, body.user_id))

    async def set_roles(self, body: SetRoles) -> Result:
        """Give an account exactly these roles."""
        roles = _parse(lambda: model.parse_roles(body.roles), "/roles")
        async with self._store.transaction() as transaction:
            await self._require_admin(transaction, body.access_token)
            account = await _require_account(transaction, body.user_id, lock=True)
            change = model.set_roles(account, roles)
            await transaction.save(change, self._now())
        return describe_user(change.account)

    async def disable(self, body: OneUser) -> Result:
        """Disable an account, and end its sessions."""
        async with self._store.transaction() as transaction:
            await self._require_admin(transaction, body.access_token)
            account = await _require_account(transaction, body.user_id, lock=True)
            return describe_user(await self.disable_account(transaction, account, self._now()))

    async def disable_account(self, transaction: Transaction, account: Account, now: datetime) -> Account:
        """Disable a locked account, and end its sessions; return it afterwards."""
        change = model.set_disabled(account, disabled=True)
        await transaction.save(change, now)
        await self._end_all(transaction, account, "disabled", now)
        return change.account

    async def delete_account(self, transaction: Transaction, account: Account, now: datetime) -> None:
        """Delete a locked account, and end its sessions."""
        await self._end_all(transaction, account, "deleted", now)
        await transaction.delete(model.delete(account), now)

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _new_password(self, text: str) -> Password:
        return _parse(lambda: Password.parse(text, common_passwords()), "/password")

    async def _require_password(self, account: Account, entered: str, pointer: str) -> None:
        if not await self._hasher.verify(account.password_hash, Password.entered(entered)):
            raise CommandError("invalid-credentials", f"the password in {pointer} is not right")

    async def _save_password(self, transaction: Transaction, change: model.AccountChange, now: datetime) -> None:
        await transaction.save(change, now)
        for purpose in model.LIFETIMES:
            await transaction.delete_tokens(change.account.user_id, purpose)
        await _send(transaction, mails.password_changed_mail(change.account), now)

    async def _send_token(
        self,
        transaction: Transaction,
        account: Account,
        purpose: Purpose,
        now: datetime,
        *,
        password_hash: str | None = None,
    ) -> None:
        token = secrets.token_urlsafe(32)
        digest = model.token_digest(token)
        await transaction.insert_token(
            digest,
            account.user_id,
            purpose,
            now=now,
            expires_at=now + model.LIFETIMES[purpose],
            keep=model.MAX_ONE_TIME_TOKENS,
            password_hash=password_hash,
        )
        cause = f"account/{purpose}/{digest.hex()[:32]}"
        link_url = self._settings.accounts_link_url
        await _send(
            transaction,
            mails.token_mail(account, purpose, token, cause=cause, now=now, link_url=link_url),
            now,
        )

    async def _use_token(
        self, transaction: Transaction, token: str, purpose: Purpose, now: datetime
    ) -> tuple[Account, str | None]:
        """Return the account of a one-time token and its password hash, and delete all tokens of that purpose."""
        digest = model.token_digest(token)
        found = await transaction.token(digest, purpose, now)
        account = await transaction.account(found[0], lock=True) if found else None
        found = await transaction.token(digest, purpose, now)  # as it is under the lock of the account
        if found is None or account is None:
            raise _invalid_token()
        await transaction.delete_tokens(account.user_id, purpose)
        return account, found[1]

    async def _end_all(self, transaction: Transaction, account: Account, reason: EndReason, now: datetime) -> None:
        sessions = [each.session_id for each in await transaction.sessions_of(account.user_id)]
        await transaction.end_sessions(account.user_id, sessions, reason, now)

    async def _caller(
        self, transaction: Transaction, token: str, *, lock: bool = False, password_hash: str | None = None
    ) -> Caller:
        """Return the account and session of an access token. With `password_hash` the password must still be that one.

        Raise `CommandError` if the token is not valid, or its session or its roles have ended.
        """
        identity = self._identify(token)
        if identity.session_id is None:
            raise CommandError("forbidden", "this token belongs to no account; log in with POST /v1/sessions")
        account = await transaction.account(identity.user_id, lock=lock)
        session = await transaction.session(identity.session_id)
        if account is None or session is None or session.user_id != account.user_id or session.has_ended(self._now()):
            raise CommandError("token-expired", "the session has ended; log in again")
        if account.disabled:
            raise CommandError("account-disabled", "the account is disabled")
        if identity.account_version < account.tokens_from:
            raise CommandError("token-expired", "the roles of the account have changed; refresh the token")
        if password_hash is not None and account.password_hash != password_hash:
            raise CommandError("token-expired", "the password was changed; log in again")
        return Caller(account, session)

    def _identify(self, token: str) -> Identity:
        now = self._now()
        try:
            if account_key_id(token) is not None:
                return verify_for_account(self._keys.public_keys, token, now=now)
            previous = self._settings.secret_previous
            return verify(
                self._settings.secret.get_secret_value(),
                token,
                now=now,
                previous=previous.get_secret_value() if previous else None,
            )
        except ExpiredToken:
            raise CommandError("token-expired", "the token has expired") from None
        except InvalidToken:
            raise CommandError("unauthenticated", "the token is not valid") from None

    async def _require_admin(self, transaction: Transaction, token: str) -> None:
        """Raise `CommandError` unless the token is an administrator's: an account's, or one of `holdfast token`."""
        identity = self._identify(token)
        roles: Collection[str] = identity.roles
        if identity.session_id is not None:
            roles = (await self._caller(transaction, token)).account.roles
        if "admin" not in roles:
            raise CommandError("forbidden", "the role admin is required")

    def _tokens(self, account: Account, session: Session, now: datetime) -> Result:
        key = self._keys.signing_key(now)
        access_token, expires_at = issue_for_account(
            key.private,
            key.kid,
            user_id=account.user_id,
            roles=account.roles,
            session_id=session.session_id,
            account_version=account.version,
            lifetime=self._settings.access_lifetime,
            now=now,
            auth_time=session.created_at,
        )
        first, *_ = self._refresh_keys
        return {
            "user_id": account.user_id,
            "access_token": access_token,
            "refresh_token": model.encode_refresh_token(first, session.session_id, session.generation),
            "expires_at": rfc3339(expires_at),
            "session_expires_at": rfc3339(session.expires_at),
        }


def describe(account: Account) -> Result:
    """Return an account as its owner sees it, with its version."""
    return {
        "user_id": account.user_id,
        "email": account.email,
        "name": account.name,
        "profile": dict(account.profile),
        "roles": list(account.roles),
        "created_at": rfc3339(account.created_at),
        "version": account.version,
    }


def describe_user(account: Account) -> Result:
    """Return an account as an administrator sees it."""
    status: Literal["disabled", "active"] = "disabled" if account.disabled else "active"
    return {
        "user_id": account.user_id,
        "email": account.email,
        "name": account.name,
        "roles": list(account.roles),
        "confirmed": account.confirmed,
        "status": status,
        "created_at": rfc3339(account.created_at),
        "version": account.version,
    }


@asynccontextmanager
async def _level_time() -> AsyncIterator[None]:
    """Take `LEVEL_SECONDS` for what may write more or less, so that the time does not say which it was."""
    until = time.monotonic() + LEVEL_SECONDS
    yield
    await asyncio.sleep(max(0.0, until - time.monotonic()))


def _parse(parse: Callable[[], T], pointer: str) -> T:
    try:
        return parse()
    except InvalidValueError as error:
        raise CommandError("invalid", str(error), pointer) from None


def _check_version(account: Account, versions: list[int] | None) -> None:
    if versions is not None and account.version not in versions:
        raise CommandError("precondition-failed", "the account has been changed; read it again")


async def _require_account(transaction: Transaction, user_id: str, *, lock: bool = False) -> Account:
    account = await transaction.account(user_id, lock=lock)
    if account is None:
        raise CommandError("not-found", "there is no such account")
    return account


async def _send(transaction: Transaction, send: notifications.Send, now: datetime) -> None:
    event_id = f"{send.user_id}/{uuid7()}/send"
    await transaction.publish(notifications.REQUESTS, Envelope.of(send, source=SOURCE, event_id=event_id, time=now))


def _invalid_credentials() -> CommandError:
    return CommandError("invalid-credentials", "the address or the password is not right")


def _ended_session() -> CommandError:
    return CommandError("token-expired", "the refresh token is not valid, or its session has ended; log in")


def _invalid_token() -> CommandError:
    return CommandError("invalid", "the token is unknown, used or expired; request another", "/token")
