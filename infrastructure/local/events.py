"""Events that a supervisor emits while it works.

An event can be printed here, written to a log, or sent through a pipe to the command that started the supervisor.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Event:
    """One event of a supervisor.

    | kind | fields |
    |---|---|
    | `note` | `text` |
    | `jars` | `done` of `total` jars are downloaded |
    | `ready` | a program is ready: `name`, `text` (address), `seconds`, `pid`, `how` (started, reused, external) |
    | `lost` | a program ended and is restarted: `name`, `text` (reason), `done` (crashes in a row) |
    | `up` | all programs are ready after `seconds` |
    | `running` | another supervisor runs in this root directory |
    | `failed` | the command failed: `text` (error message), `code` (exit code) |
    | `down` | all programs are stopped after `seconds` |
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
        """Return the event as one line of JSON without the fields that are not set."""
        given = {name: value for name, value in asdict(self).items() if value or name == "kind"}
        return json.dumps({**given, "seconds": round(self.seconds, 3)})

    @classmethod
    def decode(cls, line: str) -> Event:
        """Return the event in a line made by `encode`; fields unknown to this version are ignored."""
        given: dict[str, Any] = json.loads(line)
        known = {field.name for field in fields(cls)}
        return cls(**{k: v for k, v in given.items() if k in known})


if TYPE_CHECKING:
    EventSink = Callable[[Event], None]
