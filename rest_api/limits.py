"""How much one user or one address may ask for: token buckets, with the time passed in."""

import math
from enum import IntEnum
from typing import Final

WINDOW: Final = 60.0
"""Seconds; every limit of the contract is one a minute."""


class Verdict(IntEnum):
    """What a limit says to a request."""

    GRANTED = 0
    REFUSED = 1
    EXHAUSTED = 2


class Bucket:
    """Holds up to `size` tokens and gains `size` of them in a minute; each request takes one."""

    __slots__ = ("at", "level", "size")

    def __init__(self, size: float, now: float) -> None:
        self.size = size
        self.level = size
        self.at = now

    def take(self, now: float) -> bool:
        """Take a token; False when there is none."""
        self._fill(now)
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def wait(self) -> float:
        """Seconds from the last `take` until there is a token again."""
        return max(0.0, 1 - self.level) * WINDOW / self.size

    def _fill(self, now: float) -> None:
        # A clock that was set back gives nothing and takes nothing.
        self.level = min(self.size, self.level + max(0.0, now - self.at) * self.size / WINDOW)
        self.at = now


class Allowance:
    """A limit and its double: past the first a request is refused, past the second the patience is over."""

    __slots__ = ("hard", "soft")

    def __init__(self, size: int, now: float) -> None:
        self.soft = Bucket(size, now)
        self.hard = Bucket(2 * size, now)

    def take(self, now: float) -> Verdict:
        """What becomes of one more request."""
        within_hard = self.hard.take(now)
        if self.soft.take(now):
            return Verdict.GRANTED
        return Verdict.REFUSED if within_hard else Verdict.EXHAUSTED

    @property
    def retry_after(self) -> int:
        """Whole seconds until one more request is granted, at least 1."""
        return max(1, math.ceil(self.soft.wait()))

    @property
    def remaining(self) -> int:
        """How many more requests are granted right now."""
        return int(self.soft.level)
