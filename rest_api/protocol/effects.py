"""Effects that a session returns for the connection manager to execute; `bytes` is a frame to send. No I/O."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Publish:
    """Send a request to the carts. `data` is the envelope's data, `verb` the last word of its type."""

    request_id: str
    verb: str
    data: dict[str, Any]
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket after the frames that were sent before."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class StartWatching:
    """Send the stock of these products, or with `None` of all, now and whenever it changes."""

    products: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class StopWatching:
    """Stop sending the stock of these products, or with `None` of any."""

    products: tuple[str, ...] | None


Effect = bytes | Publish | Close | StartWatching | StopWatching
