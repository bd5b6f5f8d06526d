"""What a supervisor says while it works.

So that it can be shown here, written to a log, or sent through a pipe to the command that detached it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    | kind | fields |
    |---|---|
    | `note` | `text` |
    | `jars` | `done` of `total` jars are there |
    | `ready` | `name`, `text` (its address), `seconds`, `pid`, `how` (started, reused, external) |
    | `lost` | `name`, `text` (why); it is started again |
    | `up` | `seconds`: all is ready |
    | `running` | another supervisor has this root |
    | `failed` | `text` (the sentence), `code` (the exit code) |
    | `down` | `seconds`: all is stopped |
    """

    kind: str
    name: str = ""
    text: str = ""
    how: str = ""
    seconds: float = 0.0
    pid: int = 0
    done: int = 0
    total: int = 0
    code: int = 0

    def encode(self) -> str:
        """One JSON line, without what is not set."""
        given = {name: value for name, value in asdict(self).items() if value or name == "kind"}
        return json.dumps({**given, "seconds": round(self.seconds, 3)})

    @classmethod
    def decode(cls, line: str) -> Event:
        """The reverse; fields that this version does not know are left out."""
        given: dict[str, Any] = json.loads(line)
        known = {field.name for field in fields(cls)}
        return cls(**{k: v for k, v in given.items() if k in known})


if TYPE_CHECKING:
    Tell = Callable[[Event], None]
