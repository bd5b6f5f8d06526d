"""Remembers frames recently sent to each user, so that repeats can be marked `replayed`. No I/O."""

from typing import Final

MIN_AGE_SECONDS: Final = 60.0
"""A frame is remembered for at least this long, and at most twice as long."""
MAX_FRAMES: Final = 100_000
"""At most twice this many frames are remembered; then the older half is dropped."""


class RecentFrames:
    """Two generations of hashes of user and frame. `now` is in seconds of any one clock."""

    def __init__(self) -> None:
        self._current: set[int] = set()
        self._previous: set[int] = set()
        self._rotates_at = 0.0

    def seen(self, user_id: str, frame: bytes, now: float) -> bool:
        """Record that a frame is sent to a user; True if the same frame was sent recently."""
        if now >= self._rotates_at or len(self._current) >= MAX_FRAMES:
            self._current, self._previous = set(), self._current
            self._rotates_at = now + MIN_AGE_SECONDS
        key = hash((user_id, frame))
        known = key in self._current or key in self._previous
        self._current.add(key)
        return known
