"""What the provider remembers: charges by key, money given back, and a history of what was decided, in SQLite.

A key has one outcome for ever. Each change is committed before anything is answered, so that `kill -9` forgets nothing.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

Outcome = tuple[Literal["captured", "declined"], int | None]
"""What became of a charge, and how much was taken."""

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
    """It can't be done: another charge has the key, nothing was captured, or not so much. `type` says which."""

    def __init__(self, type_: str, detail: str) -> None:
        super().__init__(detail)
        self.type = type_
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Wanted:
    """A charge as it is asked for; `amount` in minor units."""

    key: str
    amount: int
    currency: str
    token: str
    order_id: str | None = None
    user_id: str | None = None
    webhook_url: str | None = None


class Books:
    """The provider's memory in a file; `:memory:` forgets when it is closed."""

    def __init__(self, file: str) -> None:
        if file != ":memory:":
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")  # enough for a process that dies; not for a machine that does
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def charge(self, key: str) -> dict[str, Any] | None:
        """A charge as it is described to its owner; none when the key is unknown."""
        row = self._row(key)
        return None if row is None else _described(row)

    def webhook_url(self, key: str) -> str | None:
        """Where to tell what becomes of a charge."""
        row = self._row(key)
        return None if row is None else row["webhook_url"]

    def begin(self, wanted: Wanted, outcome: Outcome | None, *, captures_at: float | None = None) -> bool:
        """Note a charge with its outcome, or as pending; false when the key is known, with whatever became of it.

        `Conflict` when the key is known for another charge.
        """
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._row(wanted.key)
            if row is None:
                named = (wanted.order_id, wanted.user_id, wanted.webhook_url)
                self._db.execute(
                    "INSERT INTO charge VALUES (?, ?, ?, ?, 'pending', NULL, ?, ?, ?, ?)",
                    (wanted.key, wanted.amount, wanted.currency, wanted.token, *named, captures_at),
                )
                if outcome is not None:
                    self._settle(wanted.key, outcome)
                return True
        # A tombstone has no amount: it refuses whatever comes under its key.
        same = (wanted.amount, wanted.currency, wanted.token)
        if row["amount"] is not None and (row["amount"], row["currency"], row["token"]) != same:
            raise Conflict("key-reused", "this key belongs to a charge of another amount or token")
        return False

    def decide(self, key: str, outcome: Outcome) -> bool:
        """Give a pending charge its outcome; false when it has one, as a voided one does."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            return self._settle(key, outcome)

    def void(self, key: str) -> dict[str, Any]:
        """Let nothing be captured under `key`, also if it is unknown; the charge as it then is, perhaps captured."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._row(key)
            if row is None:
                self._db.execute("INSERT INTO charge (key, status) VALUES (?, 'voided')", (key,))
                self._note(key, key, "voided", None)
            elif row["status"] == "pending":
                self._db.execute("UPDATE charge SET status = 'voided', captures_at = NULL WHERE key = ?", (key,))
                self._note(key, key, "voided", None)
            row = self._row(key)
        if row is None:
            raise RuntimeError("what was just written is gone")
        return _described(row)

    def refund(self, charge: str, key: str, amount: int) -> dict[str, Any] | None:
        """Give back; none when the charge is unknown. `Conflict` when that much was not captured."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._row(charge)
            if row is None:
                return None
            known = self._db.execute("SELECT * FROM refund WHERE key = ?", (key,)).fetchone()
            if known is None:
                self._give_back(row, key, amount)
            elif (known["charge"], known["amount"]) != (charge, amount):
                raise Conflict("key-reused", "this key belongs to another refund")
        return {"key": key, "charge": charge, "status": "refunded", "amount": amount, "currency": row["currency"]}

    def late(self) -> list[tuple[str, float]]:
        """The charges that will be captured, and when (Unix time)."""
        rows = self._db.execute(
            "SELECT key, captures_at FROM charge WHERE captures_at IS NOT NULL ORDER BY 2"
        ).fetchall()
        return [(row["key"], row["captures_at"]) for row in rows]

    def history(self, after: int, limit: int) -> list[dict[str, Any]]:
        """What was decided, in order, from beyond `after` on."""
        rows = self._db.execute("SELECT * FROM history WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        return [dict(row) for row in rows]

    def _settle(self, key: str, outcome: Outcome) -> bool:
        status, taken = outcome
        done = self._db.execute(
            "UPDATE charge SET status = ?, taken = ?, captures_at = NULL WHERE key = ? AND status = 'pending'",
            (status, taken, key),
        )
        if done.rowcount:
            self._note(key, key, status, taken)
        return bool(done.rowcount)

    def _give_back(self, row: sqlite3.Row, key: str, amount: int) -> None:
        if row["status"] != "captured":
            raise Conflict("not-captured", f"the charge is {row['status']}")
        [given] = self._db.execute(
            "SELECT coalesce(sum(amount), 0) FROM refund WHERE charge = ?", (row["key"],)
        ).fetchone()
        if given + amount > row["taken"]:
            raise Conflict("refund-too-large", f"{row['taken'] - given} are left of {row['taken']}")
        self._db.execute("INSERT INTO refund VALUES (?, ?, ?)", (key, row["key"], amount))
        self._note(row["key"], key, "refunded", amount)

    def _row(self, key: str) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self._db.execute("SELECT * FROM charge WHERE key = ?", (key,)).fetchone()
        return found

    def _note(self, charge: str, key: str, type_: str, amount: int | None) -> None:
        self._db.execute(
            "INSERT INTO history (charge, key, type, amount, currency, order_id)"
            " SELECT ?, ?, ?, ?, currency, order_id FROM charge WHERE key = ?",
            (charge, key, type_, amount, charge),
        )


def _described(row: sqlite3.Row) -> dict[str, Any]:
    """A charge as its owner sees it; a captured one says what was taken."""
    described = {
        "key": row["key"],
        "status": row["status"],
        "amount": row["amount"] if row["taken"] is None else row["taken"],
        "currency": row["currency"],
        "metadata": {"order_id": row["order_id"], "user_id": row["user_id"]},
    }
    return described | ({"reason": "card_declined"} if row["status"] == "declined" else {})
