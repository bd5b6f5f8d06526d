"""What sockets were told lately, so that what is told once more is known for that. Pure."""

from typing import Final

KEPT_SECONDS: Final = 60.0
"""What was told is remembered for at least so long, and at most twice as long."""
MOST: Final = 100_000
"""Tellings remembered at once are at most twice as many; then the older half goes first."""


class Told:
    """Remembers tellings by a number that stands for shopper and frame. `now` is in seconds of any one clock."""

    def __init__(self) -> None:
        self._new: set[int] = set()
        self._old: set[int] = set()
        self._until = 0.0

    def before(self, user_id: str, frame: bytes, now: float) -> bool:
        """Note that a shopper is told this; True when they were told the same lately."""
        if now >= self._until or len(self._new) >= MOST:
            self._new, self._old = set(), self._new
            self._until = now + KEPT_SECONDS
        key = hash((user_id, frame))
        known = key in self._new or key in self._old
        self._new.add(key)
        return known
