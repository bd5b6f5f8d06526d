"""Ids: random ones are made once, at the edge; every other is derived from its cause."""

import secrets
import time
import uuid
from typing import Final

NAMESPACE: Final = uuid.UUID("6f1d0f0e-7b1e-5c53-9c3a-3b9b6a2f4c11")


def uuid7() -> str:
    """A new UUIDv7 (RFC 9562): time-ordered, random."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))


def derived(*cause: str) -> str:
    """The UUIDv5 of a cause: the same cause always gives the same id, and no two causes share one."""
    return str(uuid.uuid5(NAMESPACE, "\0".join(cause)))
