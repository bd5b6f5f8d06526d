"""The storage of the simulated provider in SQLite: charges by key, refunds, and a history of outcomes.

The outcome of a key never changes. Each change is committed before the response, so `kill -9` loses nothing.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from infrastructure.process.private_files import create_private_file

ChargeOutcome = tuple[Literal["captured", "declined"], int | None]
"""The outcome of a charge, and the captured amount."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS charge (
  key TEXT PRIMARY KEY, amount INTEGER, currency TEXT, token TEXT, status TEXT NOT NULL, taken INTEGER,
  order_id TEXT, user_id TEXT, webhook_url TEXT, captures_at REAL);
CREATE TABLE IF NOT EXISTS refund (key TEXT PRIMARY KEY, charge TEXT NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS history (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, charge TEXT NOT NULL, key TEXT NOT NULL, type TEXT NOT NULL, amount INTEGER,
  currency TEXT, order_id TEXT);
"""


class Conflict(Exception):
    """The call conflicts with stored data; `type` is `key-reused`, `not-captured` or `refund-too-large`."""

    def __init__(self, type_: str, detail: str) -> None:
        super().__init__(detail)
        self.type = type_
        self.detail = detail


@dataclass(frozen=True, slots=True)
class RequestedCharge:
    """A requested charge; `amount` is in minor units."""

    key: str
    amount: int
    currency: str
    token: str
    order_id: str | None = None
    user_id: str | None = None
    webhook_url: str | None = None


class ProviderDatabase:
    """The database of the provider in `file`; with `:memory:` its content is lost on `close`."""

    def __init__(self, file: str) -> None:
        if file != ":memory:":
            create_private_file(Path(file))
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")  # survives a crash of the process, but not of the machine
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def charge(self, key: str) -> dict[str, Any] | None:
        """Return the description of a charge for its owner, `None` if the key is unknown."""
        row = self._row(key)
        return None if row is None else _description(row)

    def webhook_url(self, key: str) -> str | None:
        """Return the URL for webhooks about a charge, `None` if there is none."""
        row = self._row(key)
        return None if row is None else row["webhook_url"]

    def create_charge(
        self, requested: RequestedCharge, outcome: ChargeOutcome | None, *, captures_at: float | None = None
    ) -> bool:
        """Store a charge with its outcome, or as pending. Return False if the key is known.

        Raise `Conflict` if the key belongs to another charge.
        """
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._row(requested.key)
            if row is None:
                metadata = (requested.order_id, requested.user_id, requested.webhook_url)
                self._db.execute(
                    "INSERT INTO charge VALUES (?, ?, ?, ?, 'pending', NULL, ?, ?, ?, ?)",
                    (requested.key, requested.amount, requested.currency, requested.token, *metadata, captures_at),
                )
                if outcome is not None:
                    self._apply_outcome(requested.key, outcome)
                return True
        # A tombstone has no amount, so it matches every charge under its key.
        same = (requested.amount, requested.currency, requested.token)
        if row["amount"] is not None and (row["amount"], row["currency"], row["token"]) != same:
            raise Conflict("key-reused", "this key belongs to a charge of another amount or token")
        return False

    def settle_charge(self, key: str, outcome: ChargeOutcome) -> bool:
        """Set the outcome of a pending charge. Return False if it has one already, for example after a void."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            return self._apply_outcome(key, outcome)

    def void(self, key: str) -> dict[str, Any]:
        """Prevent any capture under `key`, even if it is unknown. Return the charge, which may be captured already."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._row(key)
            if row is None:
                self._db.execute("INSERT INTO charge (key, status) VALUES (?, 'voided')", (key,))
                self._append_history(key, key, "voided", None)
            elif row["status"] == "pending":
                self._db.execute("UPDATE charge SET status = 'voided', captures_at = NULL WHERE key = ?", (key,))
                self._append_history(key, key, "voided", None)
            row = self._row(key)
        if row is None:
            raise RuntimeError("the charge that was just written is missing")
        return _description(row)

    def refund(self, charge: str, key: str, amount: int) -> dict[str, Any] | None:
        """Refund `amount`. Return `None` if the charge is unknown, raise `Conflict` if too little is left of it."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._row(charge)
            if row is None:
                return None
            existing = self._db.execute("SELECT * FROM refund WHERE key = ?", (key,)).fetchone()
            if existing is None:
                self._store_refund(row, key, amount)
            elif (existing["charge"], existing["amount"]) != (charge, amount):
                raise Conflict("key-reused", "this key belongs to another refund")
        return {"key": key, "charge": charge, "status": "refunded", "amount": amount, "currency": row["currency"]}

    def scheduled_captures(self) -> list[tuple[str, float]]:
        """Return the pending charges that will be captured, with the time of the capture (Unix time)."""
        rows = self._db.execute(
            "SELECT key, captures_at FROM charge WHERE captures_at IS NOT NULL ORDER BY 2"
        ).fetchall()
        return [(row["key"], row["captures_at"]) for row in rows]

    def history(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Return at most `limit` outcomes in order, starting after the sequence number `after`."""
        rows = self._db.execute("SELECT * FROM history WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        return [dict(row) for row in rows]

    def _apply_outcome(self, key: str, outcome: ChargeOutcome) -> bool:
        status, taken = outcome
        done = self._db.execute(
            "UPDATE charge SET status = ?, taken = ?, captures_at = NULL WHERE key = ? AND status = 'pending'",
            (status, taken, key),
        )
        if done.rowcount:
            self._append_history(key, key, status, taken)
        return bool(done.rowcount)

    def _store_refund(self, row: sqlite3.Row, key: str, amount: int) -> None:
        if row["status"] != "captured":
            raise Conflict("not-captured", f"the charge is {row['status']}")
        [refunded] = self._db.execute(
            "SELECT coalesce(sum(amount), 0) FROM refund WHERE charge = ?", (row["key"],)
        ).fetchone()
        if refunded + amount > row["taken"]:
            raise Conflict("refund-too-large", f"{row['taken'] - refunded} are left of {row['taken']}")
        self._db.execute("INSERT INTO refund VALUES (?, ?, ?)", (key, row["key"], amount))
        self._append_history(row["key"], key, "refunded", amount)

    def _row(self, key: str) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self._db.execute("SELECT * FROM charge WHERE key = ?", (key,)).fetchone()
        return found

    def _append_history(self, charge: str, key: str, type_: str, amount: int | None) -> None:
        self._db.execute(
            "INSERT INTO history (charge, key, type, amount, currency, order_id)"
            " SELECT ?, ?, ?, ?, currency, order_id FROM charge WHERE key = ?",
            (charge, key, type_, amount, charge),
        )


def _description(row: sqlite3.Row) -> dict[str, Any]:
    """Return the description of a charge. The amount of a captured charge is the captured one."""
    described = {
        "key": row["key"],
        "status": row["status"],
        "amount": row["amount"] if row["taken"] is None else row["taken"],
        "currency": row["currency"],
        "metadata": {"order_id": row["order_id"], "user_id": row["user_id"]},
    }
    return described | ({"reason": "card_declined"} if row["status"] == "declined" else {})
