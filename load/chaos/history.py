"""What happened, in the order of one clock: every request, every answer, every fault, one JSON line each.

An `invoke` is written before the frame leaves, an `ok` or `fail` after the answer came. `info` says that nobody knows
yet: no answer within its time, or the line was cut. Such a request has happened or has not, and a later `ok` for the
same id tells which. Faults stand in the same history as the process `nemesis`.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self, TextIO

Type = Literal["invoke", "ok", "fail", "info", "heard"]
NEMESIS: Final = "nemesis"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `f` is what was asked or broken, or the type of a frame that answers nothing (`heard`)."""

    t_ns: int
    """Nanoseconds since the history began, monotonic."""
    proc: str
    type: Type
    f: str
    id: str | None = None
    user: str | None = None
    product: str | None = None
    quantity: int | None = None
    session: str | None = None
    """The socket that an answer came on."""
    value: Mapping[str, Any] = field(default_factory=dict)
    """The frame that was heard, or what a fault did."""

    def encode(self) -> str:
        """One JSON line, without what is not set."""
        return json.dumps({name: value for name, value in asdict(self).items() if value not in (None, {})})

    @classmethod
    def decode(cls, line: str) -> Self:
        """The reverse."""
        return cls(**json.loads(line))

    @property
    def seconds(self) -> float:
        """Since the history began."""
        return self.t_ns / 1e9


class Recorder:
    """Writes a history to `path` and keeps it. The first line anchors its clock to the wall's."""

    def __init__(self, path: Path, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._clock = clock
        self._began = clock()
        self._file: TextIO = path.open("w", encoding="utf-8", buffering=1)
        self._file.write(json.dumps({"wall": datetime.now(UTC).isoformat(), "t_ns": 0}) + "\n")

    def note(self, proc: str, type_: Type, f: str, **fields: Any) -> None:
        """Write a line down, now."""
        entry = Entry(self._clock() - self._began, proc, type_, f, **fields)
        self.entries.append(entry)
        self._file.write(entry.encode() + "\n")

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()


def read(path: Path) -> list[Entry]:
    """The history in a file."""
    with path.open(encoding="utf-8") as lines:
        next(lines)
        return [Entry.decode(line) for line in lines]


def about(history: Iterable[Entry], *, words: Iterable[str], last: int) -> list[Entry]:
    """The last lines about some requests, else about the shoppers or products named, with the faults between them.

    Where no word is named: faults, and what nobody knew or what failed.
    """
    wanted = set(words)
    entries = list(history)
    ids = wanted & {entry.id for entry in entries if entry.id}

    def concerns(entry: Entry) -> bool:
        if ids:
            return entry.id in ids
        return bool(wanted & {entry.user, entry.product}) if wanted else entry.type in {"info", "fail"}

    return [entry for entry in entries if entry.proc == NEMESIS or concerns(entry)][-last:]
