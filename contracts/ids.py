"""Ids: random ones are created once, at the edge; all others are derived from their cause."""

import secrets
import time
import uuid
from typing import Final

NAMESPACE: Final = uuid.UUID("6f1d0f0e-7b1e-5c53-9c3a-3b9b6a2f4c11")


def uuid7() -> str:
    """Return a new UUIDv7 (RFC 9562): ordered by time, otherwise random."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))


def derive_id(*cause: str) -> str:
    """Return the UUIDv5 of a cause: always the same id for the same cause, and another for any other."""
    return str(uuid.uuid5(NAMESPACE, "\0".join(cause)))
