"""History of a run in the order of one clock: every request, answer and fault, one JSON line each.

An `invoke` is written before the frame is sent, an `ok` or `fail` after the answer arrived. `info` means that the
outcome is unknown: no answer in time, or the connection was lost. Such a request may or may not have been executed; a
later `ok` for the same id settles it. Faults are entries of the process `nemesis`.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self, TextIO

EntryType = Literal["invoke", "ok", "fail", "info", "heard"]
NEMESIS: Final = "nemesis"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line. `f` is the operation or fault, or the type of a frame that answers no request (`heard`)."""

    t_ns: int
    """Nanoseconds since the history began, monotonic."""
    proc: str
    type: EntryType
    f: str
    id: str | None = None
    user: str | None = None
    product: str | None = None
    quantity: int | None = None
    session: str | None = None
    """Socket on which an answer arrived."""
    value: Mapping[str, Any] = field(default_factory=dict)
    """Received frame, or the effect of a fault."""

    def encode(self) -> str:
        """Return the entry as one JSON line, without unset fields."""
        return json.dumps({name: value for name, value in asdict(self).items() if value not in (None, {})})

    @classmethod
    def decode(cls, line: str) -> Self:
        """Return the entry in a JSON line."""
        return cls(**json.loads(line))

    @property
    def seconds(self) -> float:
        """Seconds since the history began."""
        return self.t_ns / 1e9


class HistoryRecorder:
    """Writer of a history to `path`, also kept in memory. The first line maps its clock to wall-clock time."""

    def __init__(self, path: Path, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.path = path
        self.entries: list[HistoryEntry] = []
        self._clock = clock
        self._started = clock()
        self._file: TextIO = path.open("w", encoding="utf-8", buffering=1)
        self._file.write(json.dumps({"wall": datetime.now(UTC).isoformat(), "t_ns": 0}) + "\n")

    def record(self, proc: str, type_: EntryType, f: str, **fields: Any) -> None:
        """Append an entry with the current time."""
        entry = HistoryEntry(self._clock() - self._started, proc, type_, f, **fields)
        self.entries.append(entry)
        self._file.write(entry.encode() + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_history(path: Path) -> list[HistoryEntry]:
    """Return the history in a file."""
    with path.open(encoding="utf-8") as lines:
        next(lines)
        return [HistoryEntry.decode(line) for line in lines]


def excerpt(history: Iterable[HistoryEntry], *, words: Iterable[str], last: int) -> list[HistoryEntry]:
    """Return the last entries about the requests in `words`, or else its shoppers and products, and all faults.

    Without words: faults, and unknown or failed requests.
    """
    wanted_words = set(words)
    entries = list(history)
    ids = wanted_words & {entry.id for entry in entries if entry.id}

    def concerns(entry: HistoryEntry) -> bool:
        if ids:
            return entry.id in ids
        return bool(wanted_words & {entry.user, entry.product}) if wanted_words else entry.type in {"info", "fail"}

    return [entry for entry in entries if entry.proc == NEMESIS or concerns(entry)][-last:]
