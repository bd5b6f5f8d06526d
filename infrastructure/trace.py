"""W3C Trace Context (`traceparent`), carried from a browser's frame through every hop and back to it."""

import random
import re
from typing import Final

_random: Final = random.Random()  # noqa: S311 - names of spans, not secrets; seeded from the system's randomness
_TRACEPARENT: Final = re.compile(r"^00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})$")


def child(traceparent: str | None) -> str:
    """A `traceparent` with a span of its own in the same trace; a new trace when it is none or malformed."""
    match = _TRACEPARENT.match(traceparent or "")
    trace, flags = match.groups() if match else (f"{_random.getrandbits(128):032x}", "01")
    return f"00-{trace}-{_random.getrandbits(64):016x}-{flags}"


def trace_id(traceparent: str | None) -> str:
    """The 32 hexadecimal digits that name the trace; empty when `traceparent` is none or malformed."""
    match = _TRACEPARENT.match(traceparent or "")
    return match.group(1) if match else ""
