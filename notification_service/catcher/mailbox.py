"""Storage of received mails: one SQLite file with the last thousand mails, one row per Message-ID.

A mail is parsed once, when it arrives. The pages read columns, so that polling them costs no parsing.
"""

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final

from infrastructure.process.private_files import create_private_file

MAX_MAILS: Final = 1000
MAX_BYTES: Final = 32 * 1024 * 1024
"""Bound on the size of all mails together, as received. The oldest are removed beyond it."""

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
_PARSED_COLUMNS: Final = ("template", "cause", "text", "html", "headers")
"""Columns that a file of an earlier version lacks."""
_SHOWN: Final = "number, message_id, sender, recipients, subject, received_at, copies, template, cause, text"


@dataclass(frozen=True, slots=True)
class ParsedMail:
    """Parsed parts of a mail that the pages show."""

    message_id: str
    subject: str
    template: str | None
    cause: str | None
    text: str
    html: str
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, raw: bytes) -> "ParsedMail":
        """Parse a mail; parts that cannot be decoded are empty."""
        parsed = message_from_bytes(raw, policy=policy.default)
        assert isinstance(parsed, EmailMessage)  # guaranteed by the default policy
        message_id = str(parsed["Message-ID"] or "").strip() or f"<{hashlib.sha256(raw).hexdigest()[:32]}@none>"
        template, cause = parsed["X-Holdfast-Template"], parsed["X-Holdfast-Cause"]
        return cls(
            message_id,
            str(parsed["Subject"] or ""),
            None if template is None else str(template),
            None if cause is None else str(cause),
            _part(parsed, "plain"),
            _part(parsed, "html"),
            tuple((name, str(value)) for name, value in parsed.items()),
        )


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail as it was first received; `copies` counts how often it was received."""

    number: int
    message_id: str
    sender: str
    recipients: str
    subject: str
    received_at: str
    copies: int
    template: str | None
    cause: str | None
    text: str


class Mailbox:
    """The mails in a file that only this user may read. Committed mails survive a crash of the process.

    At most `keep` mails and `max_bytes` bytes of mails are kept, the latest.
    """

    def __init__(self, file: Path, *, keep: int = MAX_MAILS, max_bytes: int = MAX_BYTES) -> None:
        self.keep = keep
        self.max_bytes = max_bytes
        self.version = 0
        """Number of changes since the start: a page made of the same version is still right."""
        create_private_file(file)
        self._database = sqlite3.connect(file)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)
        self._add_parsed_columns()

    def put(self, sender: str, recipients: str, raw: bytes, now: datetime) -> None:
        """Store a mail, or count it if it is stored already."""
        parsed = ParsedMail.parse(raw)
        with self._database:
            self._database.execute(
                "INSERT INTO mail (message_id, sender, recipients, subject, received_at, raw, template, cause, text,"
                " html, headers) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (message_id) DO UPDATE SET copies = copies + 1",
                (parsed.message_id, sender, recipients, parsed.subject, now.isoformat(), raw, *_parsed_row(parsed)),
            )
            self._database.execute("DELETE FROM mail WHERE number <= (SELECT max(number) FROM mail) - ?", (self.keep,))
            self._database.execute(
                "DELETE FROM mail WHERE number IN (SELECT number FROM (SELECT number, sum(length(raw)) OVER"
                " (ORDER BY number DESC) AS size FROM mail) WHERE size > ?)",
                (self.max_bytes,),
            )
        self.version += 1

    def mails(self) -> list[Mail]:
        """Return all mails, the latest first."""
        rows = self._database.execute(f"SELECT {_SHOWN} FROM mail ORDER BY number DESC")  # noqa: S608 - a constant
        return [Mail(*row) for row in rows]

    def mail(self, number: int) -> Mail | None:
        """Return one mail, or `None`."""
        row = self._database.execute(f"SELECT {_SHOWN} FROM mail WHERE number = ?", (number,)).fetchone()  # noqa: S608 - a constant
        return Mail(*row) if row else None

    def html(self, number: int) -> str:
        """Return the HTML part of a mail; empty if there is none."""
        return str(self._value("html", number) or "")

    def headers(self, number: int) -> list[tuple[str, str]]:
        """Return the headers of a mail."""
        return [(name, value) for name, value in json.loads(self._value("headers", number) or "[]")]

    def raw(self, number: int) -> bytes:
        """Return a mail as it was received; empty if there is none."""
        return bytes(self._value("raw", number) or b"")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _value(self, column: str, number: int) -> Any:
        row = self._database.execute(f"SELECT {column} FROM mail WHERE number = ?", (number,)).fetchone()  # noqa: S608 - a constant
        return row[0] if row else None

    def _add_parsed_columns(self) -> None:
        """Parse the mails of a file of an earlier version."""
        there = {name for _, name, *_ in self._database.execute("PRAGMA table_info(mail)")}
        missing = [name for name in _PARSED_COLUMNS if name not in there]
        if not missing:
            return
        with self._database:
            for name in missing:
                default = " NOT NULL DEFAULT ''" if name in {"text", "html"} else ""
                self._database.execute(f"ALTER TABLE mail ADD COLUMN {name} TEXT{default}")
            for number, raw in self._database.execute("SELECT number, raw FROM mail").fetchall():
                self._database.execute(
                    "UPDATE mail SET template = ?, cause = ?, text = ?, html = ?, headers = ? WHERE number = ?",
                    (*_parsed_row(ParsedMail.parse(raw)), number),
                )


def _parsed_row(parsed: ParsedMail) -> tuple[str | None, ...]:
    return parsed.template, parsed.cause, parsed.text, parsed.html, json.dumps(parsed.headers)


def _part(parsed: EmailMessage, kind: str) -> str:
    """Return the `plain` or the `html` part; empty if there is none."""
    found = parsed.get_body((kind,))
    try:
        return str(found.get_content()) if found is not None else ""
    except (LookupError, ValueError):  # an unknown character set
        return ""
