"""W3C Trace Context: `traceparent` is carried from a browser's frame through every hop and back."""

import random
import re
from typing import Final

_random: Final = random.Random()  # noqa: S311 - span ids, not secrets; seeded from the system's randomness
_TRACEPARENT: Final = re.compile(r"^00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})$")


def child_traceparent(traceparent: str | None) -> str:
    """Return a `traceparent` for a child span; of a new trace if the given one is `None` or malformed."""
    match = _TRACEPARENT.match(traceparent or "")
    trace, flags = match.groups() if match else (f"{_random.getrandbits(128):032x}", "01")
    return f"00-{trace}-{_random.getrandbits(64):016x}-{flags}"


def trace_id(traceparent: str | None) -> str:
    """Return the trace id, 32 hexadecimal digits; empty if `traceparent` is `None` or malformed."""
    match = _TRACEPARENT.match(traceparent or "")
    return match.group(1) if match else ""
