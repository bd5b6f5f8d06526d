"""Token buckets that limit requests per user or address. The time is passed in."""

import math
from enum import IntEnum
from typing import Final

WINDOW_SECONDS: Final = 60.0
"""Seconds in which an empty bucket fills: every limit of the contract is per minute."""


class LimitResult(IntEnum):
    """The result of taking a request from an allowance."""

    GRANTED = 0
    """The request is within the limit."""
    REFUSED = 1
    """The request exceeds the limit."""
    EXHAUSTED = 2
    """The request exceeds twice the limit: the connection is to be closed."""


class TokenBucket:
    """A token bucket: holds up to `size` tokens and gains `size` per minute; each request takes one."""

    __slots__ = ("level", "size", "updated_at")

    def __init__(self, size: float, now: float) -> None:
        self.size = size
        self.level = size
        self.updated_at = now

    def take(self, now: float) -> bool:
        """Take a token; return False if there is none."""
        # If the clock is set back, the level neither rises nor falls.
        self.level = min(self.size, self.level + max(0.0, now - self.updated_at) * self.size / WINDOW_SECONDS)
        self.updated_at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def seconds_until_token(self) -> float:
        """Return the seconds from the last `take` until the next token."""
        return max(0.0, 1 - self.level) * WINDOW_SECONDS / self.size


class Allowance:
    """A soft limit and a hard limit of twice its size, taken from together.

    Beyond the soft limit requests are refused; beyond the hard limit the client is to be disconnected.
    """

    __slots__ = ("hard", "soft")

    def __init__(self, size: int, now: float) -> None:
        self.soft = TokenBucket(size, now)
        self.hard = TokenBucket(2 * size, now)

    def take(self, now: float) -> LimitResult:
        """Count one request against both limits and return the result."""
        within_hard = self.hard.take(now)
        if self.soft.take(now):
            return LimitResult.GRANTED
        return LimitResult.REFUSED if within_hard else LimitResult.EXHAUSTED

    @property
    def retry_after(self) -> int:
        """Whole seconds until the next request is granted, at least 1."""
        return max(1, math.ceil(self.soft.seconds_until_token()))

    @property
    def remaining(self) -> int:
        """Number of requests that would be granted right now."""
        return int(self.soft.level)
