"""The keys that sign access tokens: made, published, used and removed without a restart.

A new key is published before it signs, so that every edge has it by then. A key that signs no more stays published
until the last access token that it signed has expired. All processes read the same rows.
"""

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from account_service.settings import Settings
from account_service.store import SigningKeyRow, Store, Transaction
from infrastructure.security.key_set import encode_key_set
from infrastructure.security.sealing import UnsealableError, derive_key, seal, unseal
from infrastructure.security.tokens import LEEWAY

log = logging.getLogger(__name__)

RETIREMENT_MARGIN: Final = timedelta(minutes=1)
"""Time that a key stays published after its last token has expired."""


class NoSigningKeyError(RuntimeError):
    """No signing key can be read: `HOLDFAST_ACCOUNTS_SECRET` is not the one that encrypted them."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that this process can sign with."""

    kid: str
    private: Ed25519PrivateKey
    active_at: datetime


def retired(rows: Sequence[SigningKeyRow], now: datetime, lifetime: timedelta) -> list[str]:
    """Return the ids of the keys whose tokens have all expired; `lifetime` is that of an access token.

    A key signs until the next one becomes active.
    """
    newest_first = sorted(rows, key=lambda row: row.active_at, reverse=True)
    keep = lifetime + LEEWAY + RETIREMENT_MARGIN
    return [
        row.kid
        for row, successor in zip(newest_first[1:], newest_first, strict=False)
        if successor.active_at + keep <= now
    ]


class KeyRing:
    """The keys of this process, as of the last `refresh`."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._sealing = derive_key(settings.accounts_secret.get_secret_value(), "signing keys")
        previous = settings.accounts_secret_previous
        self._sealing_previous = derive_key(previous.get_secret_value(), "signing keys") if previous else None
        self._signing: list[SigningKey] = []
        self._public: dict[str, Ed25519PublicKey] = {}

    @property
    def public_keys(self) -> Mapping[str, Ed25519PublicKey]:
        """The published keys by id."""
        return self._public

    def key_set(self) -> dict[str, Any]:
        """Return the published keys as a JSON Web Key Set."""
        return encode_key_set(self._public)

    def signing_key(self, now: datetime) -> SigningKey:
        """Return the newest active key. Raise `NoSigningKeyError` if there is none."""
        for key in self._signing:
            if key.active_at <= now:
                return key
        raise NoSigningKeyError("no signing key is active")

    async def refresh(self, now: datetime) -> None:
        """Read the keys; make one if there is none or the newest is old, and remove those that are not needed."""
        async with self._store.transaction() as transaction:
            rows = await transaction.signing_keys()
            if self._is_due(rows, now) or retired(rows, now, self._settings.access_lifetime):
                await transaction.fetch("lock_keys")
                rows = await transaction.signing_keys()  # another process may have been faster
                if self._is_due(rows, now):
                    delay = timedelta(seconds=self._settings.accounts_key_delay_seconds if rows else 0)
                    await self._insert(transaction, now, now + delay)
                if old := retired(rows, now, self._settings.access_lifetime):
                    await transaction.fetch("delete_keys", {"kids": old})
                rows = await transaction.signing_keys()
            await self._load(transaction, rows)

    async def rotate(self, now: datetime, *, revoke: bool) -> str:
        """Make a new key and return its id. With `revoke` it signs at once, and all other keys are removed."""
        async with self._store.transaction() as transaction:
            await transaction.fetch("lock_keys")
            rows = await transaction.signing_keys()
            if revoke:
                await transaction.fetch("delete_keys", {"kids": [row.kid for row in rows]})
            delay = 0 if revoke else self._settings.accounts_key_delay_seconds
            return await self._insert(transaction, now, now + timedelta(seconds=delay))

    def _is_due(self, rows: Sequence[SigningKeyRow], now: datetime) -> bool:
        newest = max((row.created_at for row in rows), default=None)
        return newest is None or newest + timedelta(days=self._settings.accounts_key_days) <= now

    async def _insert(self, transaction: Transaction, now: datetime, active_at: datetime) -> str:
        private, kid = Ed25519PrivateKey.generate(), secrets.token_hex(8)
        values = {
            "kid": kid,
            "sealed": seal(self._sealing, private.private_bytes_raw(), kid),
            "public_key": private.public_key().public_bytes_raw(),
            "now": now,
            "active_at": active_at,
        }
        await transaction.fetch("insert_key", values)
        log.info("a new signing key was made", extra={"kid": kid})
        return kid

    async def _load(self, transaction: Transaction, rows: Sequence[SigningKeyRow]) -> None:
        known = {key.kid: key for key in self._signing}
        signing = []
        for row in rows:
            key = known.get(row.kid) or await self._unsealed(transaction, row)
            if key is not None:
                signing.append(key)
        self._signing = signing
        self._public = {row.kid: Ed25519PublicKey.from_public_bytes(row.public_key) for row in rows}

    async def _unsealed(self, transaction: Transaction, row: SigningKeyRow) -> SigningKey | None:
        raw: bytes | None
        try:
            raw = unseal(self._sealing, row.sealed, row.kid)
        except UnsealableError:
            raw = self._unsealed_with_the_previous_secret(row)
            if raw is None:
                return None
            await transaction.fetch("reseal_key", {"kid": row.kid, "sealed": seal(self._sealing, raw, row.kid)})
        return SigningKey(row.kid, Ed25519PrivateKey.from_private_bytes(raw), row.active_at)

    def _unsealed_with_the_previous_secret(self, row: SigningKeyRow) -> bytes | None:
        if self._sealing_previous is not None:
            try:
                return unseal(self._sealing_previous, row.sealed, row.kid)
            except UnsealableError:
                pass
        log.error("the signing key %s was encrypted with another HOLDFAST_ACCOUNTS_SECRET and is not used", row.kid)
        return None
