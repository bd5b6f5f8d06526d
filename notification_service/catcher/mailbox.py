"""Storage of received mails: one SQLite file with the last thousand mails, one row per Message-ID."""

import hashlib
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Final

MAX_MAILS: Final = 1000

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS mail (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  message_id TEXT NOT NULL UNIQUE,
  sender TEXT NOT NULL,
  recipients TEXT NOT NULL,
  subject TEXT NOT NULL,
  received_at TEXT NOT NULL,
  raw BLOB NOT NULL,
  copies INTEGER NOT NULL DEFAULT 1
);
"""


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail as it was first received; `copies` counts how often it was received."""

    number: int
    message_id: str
    sender: str
    recipients: str
    subject: str
    received_at: str
    raw: bytes
    copies: int

    @property
    def parsed(self) -> EmailMessage:
        """The mail as a message."""
        parsed = message_from_bytes(self.raw, policy=policy.default)
        assert isinstance(parsed, EmailMessage)  # guaranteed by the default policy
        return parsed

    def part(self, kind: str) -> str:
        """Return the `plain` or the `html` part; empty if there is none."""
        found = self.parsed.get_body((kind,))
        return str(found.get_content()) if found is not None else ""


class Mailbox:
    """The mails in a file. Committed mails survive a crash of the process."""

    def __init__(self, file: Path, *, keep: int = MAX_MAILS) -> None:
        self.keep = keep
        file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)

    def put(self, sender: str, recipients: str, raw: bytes, now: datetime) -> None:
        """Store a mail, or count it if it is stored already."""
        parsed = message_from_bytes(raw, policy=policy.default)
        message_id = str(parsed["Message-ID"] or "").strip() or f"<{hashlib.sha256(raw).hexdigest()[:32]}@none>"
        with self._database:
            self._database.execute(
                "INSERT INTO mail (message_id, sender, recipients, subject, received_at, raw) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (message_id) DO UPDATE SET copies = copies + 1",
                (message_id, sender, recipients, str(parsed["Subject"] or ""), now.isoformat(), raw),
            )
            self._database.execute("DELETE FROM mail WHERE number <= (SELECT max(number) FROM mail) - ?", (self.keep,))

    def mails(self) -> list[Mail]:
        """Return all mails, the latest first."""
        return [Mail(*row) for row in self._database.execute("SELECT * FROM mail ORDER BY number DESC")]

    def mail(self, number: int) -> Mail | None:
        """Return one mail, or `None`."""
        row = self._database.execute("SELECT * FROM mail WHERE number = ?", (number,)).fetchone()
        return Mail(*row) if row else None

    def close(self) -> None:
        """Close the file."""
        self._database.close()
