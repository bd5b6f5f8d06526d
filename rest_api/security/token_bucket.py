"""Token buckets that limit requests per user or network. The time is passed in."""

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
    """A token bucket: holds up to `size` tokens and gains `size` per `window` seconds; each request takes some."""

    __slots__ = ("level", "size", "updated_at", "window")

    def __init__(self, size: float, now: float, window: float = WINDOW_SECONDS) -> None:
        self.size = size
        self.window = window
        self.level = size
        self.updated_at = now

    def take(self, now: float, cost: int = 1) -> bool:
        """Take `cost` tokens; return False, and take none, if there are fewer."""
        # If the clock is set back, the level neither rises nor falls.
        self.level = min(self.size, self.level + max(0.0, now - self.updated_at) * self.size / self.window)
        self.updated_at = now
        if self.level < cost:
            return False
        self.level -= cost
        return True

    def seconds_until_token(self, cost: int = 1) -> float:
        """Return the seconds from the last `take` until `cost` tokens are there."""
        return max(0.0, cost - self.level) * self.window / self.size


class Allowance:
    """A soft limit and a hard limit of twice its size, taken from together.

    Beyond the soft limit requests are refused; beyond the hard limit the client is to be disconnected.
    """

    __slots__ = ("_cost", "hard", "size", "soft")

    def __init__(self, size: int, now: float, window: float = WINDOW_SECONDS) -> None:
        self.size = size
        self.soft = TokenBucket(size, now, window)
        self.hard = TokenBucket(2 * size, now, window)
        self._cost = 1
        """Cost of the last request."""

    def take(self, now: float, cost: int = 1) -> LimitResult:
        """Count one request of `cost` against both limits and return the result. The hard limit counts it as one."""
        self._cost = min(cost, self.size)
        within_hard = self.hard.take(now)
        if self.soft.take(now, self._cost):
            return LimitResult.GRANTED
        return LimitResult.REFUSED if within_hard else LimitResult.EXHAUSTED

    @property
    def retry_after(self) -> int:
        """Whole seconds until a request like the last one is granted, at least 1."""
        return max(1, math.ceil(self.soft.seconds_until_token(self._cost)))

    @property
    def remaining(self) -> int:
        """Number of requests that would be granted right now."""
        return int(self.soft.level)
