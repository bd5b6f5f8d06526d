"""The store of the account service: the Postgres schema `accounts`.

Every command is one transaction, and its events and mails are rows of the outbox in the same transaction. Locks are
taken in one order: the account first, then its sessions and tokens.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

from account_service.model import Account, AccountChange, Email, Purpose, Session
from account_service.settings import Settings
from contracts.accounts import EVENTS, EndReason, SessionsEnded
from contracts.envelope import Envelope
from contracts.ids import uuid7
from contracts.topics import Topic
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.postgres import TRANSIENT_ERRORS, create_pool, load_queries

SERVICE: Final = "accounts"
SOURCE: Final = "/accounts"
QUERIES: Final = load_queries(Path(__file__).with_name("queries.sql"))
MIGRATIONS: Final = Path(__file__).with_name("migrations")
UNAVAILABLE_ERRORS: Final[tuple[type[BaseException], ...]] = (*TRANSIENT_ERRORS, PoolTimeout)
"""Exceptions raised when Postgres is unavailable."""
_OPTIONS: Final = (
    "-c statement_timeout=5000 -c lock_timeout=3000 -c idle_in_transaction_session_timeout=5000 -c jit=off"
)
POOL_SIZE: Final = 6

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class SigningKeyRow:
    """A signing key as it is stored; the private key is encrypted."""

    kid: str
    sealed: bytes
    public_key: bytes
    created_at: datetime
    active_at: datetime


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A record to publish. `topic` is the name without the prefix."""

    seq: int
    topic: str
    subject: str
    value: str


class Store:
    """The pool of connections. Call `open` before use and `close` at the end."""

    def __init__(self, settings: Settings, *, size: int = POOL_SIZE) -> None:
        self._pool = create_pool(settings, SERVICE, size=size, options=f"-c TimeZone=UTC {_OPTIONS}", max_waiting=256)

    async def open(self) -> None:
        """Start the pool, which connects and reconnects in the background."""
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close(timeout=2)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["Transaction"]:
        """Run a transaction. If the body raises, nothing of it is stored."""
        async with self._pool.connection() as connection:
            async with connection.transaction():
                transaction = Transaction(connection)
                yield transaction
                if transaction.has_written:
                    failpoint("accounts.written")
            if transaction.has_written:
                failpoint("accounts.committed")


class Transaction:
    """The statements of one transaction."""

    def __init__(self, connection: AsyncConnection[Row]) -> None:
        self._connection = connection
        self.has_written = False
        """True if a record was queued for publication."""

    async def fetch(self, name: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        """Run a named statement and return its rows; empty for a statement without a result."""
        cursor = await self._connection.execute(QUERIES[name].encode(), values or {})
        return await cursor.fetchall() if cursor.description else []

    # ---- accounts ---------------------------------------------------------------------------------------------------

    async def account(self, user_id: str, *, lock: bool = False) -> Account | None:
        """Return an account; with `lock` nobody else changes it until the end of the transaction."""
        return _account(await self.fetch("lock_account" if lock else "account", {"user_id": user_id}))

    async def account_of(self, email: Email) -> Account | None:
        """Return the account of an address."""
        return _account(await self.fetch("account_by_email", {"email_key": email.key}))

    async def accounts_page(self, *, after: str, limit: int) -> list[Account]:
        """Return `limit` accounts with ids above `after`."""
        rows = await self.fetch("accounts_page", {"after": after, "limit": limit})
        return [Account(*row) for row in map(_account_fields, rows)]

    async def insert_account(self, change: AccountChange, at: datetime) -> bool:
        """Create an account and queue its event; return false, and do nothing, if its address is taken."""
        account = change.account
        values = {**_columns(account), "email": account.email, "email_key": Email(account.email).key}
        values["created_at"] = account.created_at
        cursor = await self._connection.execute(QUERIES["insert_account"].encode(), values)
        if not cursor.rowcount:
            return False
        await self._publish_change(change, at)
        return True

    async def save(self, change: AccountChange, at: datetime) -> None:
        """Store a changed account and queue its event. A change without an event stores nothing."""
        if change.event is not None:
            await self.fetch("update_account", _columns(change.account))
            await self._publish_change(change, at)

    async def save_hash(self, account: Account) -> None:
        """Store another hash of the same password, without an event."""
        await self.fetch("update_account", _columns(account))

    async def delete(self, change: AccountChange, at: datetime) -> None:
        """Delete an account, its sessions and its tokens, and queue the event."""
        await self.fetch("delete_account", {"user_id": change.account.user_id})
        await self._publish_change(change, at)

    # ---- sessions ---------------------------------------------------------------------------------------------------

    async def session(self, session_id: str) -> Session | None:
        """Return a session."""
        rows = await self.fetch("session", {"session_id": session_id})
        return Session(*rows[0]) if rows else None

    async def sessions_of(self, user_id: str) -> list[Session]:
        """Return the sessions of an account that were not ended, newest first."""
        return [Session(*row) for row in await self.fetch("sessions_of", {"user_id": user_id})]

    async def insert_session(self, session_id: str, user_id: str, now: datetime) -> None:
        """Begin a session."""
        await self.fetch("insert_session", {"session_id": session_id, "user_id": user_id, "now": now})

    async def update_session(self, session: Session) -> None:
        """Store the next generation of a session."""
        values = {"session_id": session.session_id, "generation": session.generation, "seen_at": session.seen_at}
        await self.fetch("update_session", values)

    async def end_sessions(
        self, user_id: str, session_ids: Iterable[str], reason: EndReason, now: datetime
    ) -> tuple[str, ...]:
        """End some sessions of an account and queue the event; return the ids of those that had not ended."""
        values = {"user_id": user_id, "session_ids": list(session_ids), "now": now}
        ended = tuple(row[0] for row in await self.fetch("end_sessions", values))
        if ended:
            message = SessionsEnded(user_id=user_id, session_ids=ended, reason=reason)
            event_id = f"{user_id}/{uuid7()}/sessions-ended"
            await self.publish(EVENTS, Envelope.of(message, source=SOURCE, event_id=event_id, time=now))
        return ended

    # ---- one-time tokens --------------------------------------------------------------------------------------------

    async def insert_token(  # noqa: PLR0913 - the columns of a row
        self,
        digest: bytes,
        user_id: str,
        purpose: Purpose,
        *,
        now: datetime,
        expires_at: datetime,
        keep: int,
        password_hash: str | None = None,
    ) -> None:
        """Store a one-time token, and keep the newest `keep` of its account and purpose."""
        values = {"digest": digest, "user_id": user_id, "purpose": purpose, "now": now, "expires_at": expires_at}
        await self.fetch("insert_one_time_token", {**values, "password_hash": password_hash})
        await self.fetch("delete_surplus_tokens", {"user_id": user_id, "purpose": purpose, "keep": keep})

    async def token(self, digest: bytes, purpose: Purpose, now: datetime) -> tuple[str, str | None] | None:
        """Return the user id and the password hash of a token that is valid; `None` if there is none."""
        rows = await self.fetch("one_time_token", {"digest": digest, "purpose": purpose, "now": now})
        return (rows[0][0], rows[0][1]) if rows else None

    async def delete_tokens(self, user_id: str, purpose: Purpose) -> None:
        """Delete all one-time tokens of an account and purpose."""
        await self.fetch("delete_tokens", {"user_id": user_id, "purpose": purpose})

    # ---- keys -------------------------------------------------------------------------------------------------------

    async def signing_keys(self) -> list[SigningKeyRow]:
        """Return the keys, the newest first."""
        return [SigningKeyRow(*row) for row in await self.fetch("signing_keys")]

    # ---- outbox -----------------------------------------------------------------------------------------------------

    async def publish(self, topic: Topic, event: Envelope) -> None:
        """Queue a record for publication, if and only if this transaction is committed."""
        self.has_written = True
        values = {"topic": topic.name, "subject": event.subject, "value": event.encode().decode()}
        await self.fetch("insert_outbox", values)

    async def outbox(self, limit: int) -> list[OutboxRow]:
        """Return the first records to publish."""
        return [OutboxRow(*row) for row in await self.fetch("outbox", {"limit": limit})]

    async def delete_outbox(self, seqs: Sequence[int]) -> None:
        """Delete records that Kafka has."""
        await self.fetch("delete_outbox", {"seqs": list(seqs)})

    async def _publish_change(self, change: AccountChange, at: datetime) -> None:
        event = change.event
        assert event is not None
        account = change.account
        event_id = f"{account.user_id}/{account.version}/{event.TYPE.rpartition('.')[2]}"
        await self.publish(EVENTS, Envelope.of(event, source=SOURCE, event_id=event_id, time=at))


def _account(rows: list[Row]) -> Account | None:
    return Account(*_account_fields(rows[0])) if rows else None


def _account_fields(row: Row) -> Row:
    user_id, email, name, profile, roles, *rest = row
    return (user_id, email, name, profile, tuple(roles), *rest)


def _columns(account: Account) -> dict[str, Any]:
    return {
        "user_id": account.user_id,
        "name": account.name,
        "profile": Jsonb(dict(account.profile)),
        "password_hash": account.password_hash,
        "roles": list(account.roles),
        "version": account.version,
        "tokens_from": account.tokens_from,
        "confirmed": account.confirmed,
        "disabled": account.disabled,
    }
