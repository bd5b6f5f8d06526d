"""How much the edge lets in when the shop has more to do than it can: what is let in is answered soon. Pure.

A queue that grows serves nobody: each request in it waits longer, until all of them come too late. So no more requests
are under way than the shop has lately answered in a second (Little's law: they then wait about that long), and a few
hundred in any case, for a rush that lasts a moment. The rest is told at once to come back, and nothing of it is done.
"""

from collections import deque
from typing import Final

WAIT_SECONDS: Final = 1.0
"""What is let in waits about this long at most."""
WINDOW_SECONDS: Final = 2.0
"""The pace is that of the last so many seconds."""
NOTED_EVERY: Final = 0.1
FORGET_SECONDS: Final = 30.0
"""What has had no answer for so long no longer counts: it may have been lost with the process that knew of it."""
RETRY_AFTER: Final = 1
"""Seconds that a client is asked to wait."""


class Admission:
    """The requests that are under way, and whether there is room for one more. `now` is in seconds of any one clock.

    `room` is how many may be under way at least, however slow the shop has been; none lets everything in.
    """

    def __init__(self, room: int | None) -> None:
        self._room = room
        self._under_way: dict[tuple[str, str], float] = {}
        self._answered = 0
        self._pace: deque[tuple[float, int]] = deque()

    def admits(self, user_id: str, request_id: str, now: float) -> bool:
        """Let a request in and count it; False when there is no room. One that is under way already is let in again."""
        key = (user_id, request_id)
        if self._room is not None and key not in self._under_way:
            self._look_back(now)
            pace = (self._answered - self._pace[0][1]) / WINDOW_SECONDS
            if len(self._under_way) >= max(self._room, pace * WAIT_SECONDS):
                return False
        self._under_way.setdefault(key, now)
        return True

    def settle(self, user_id: str, request_id: str) -> None:
        """A request has its answer, or never went out."""
        if self._under_way.pop((user_id, request_id), None) is not None:
            self._answered += 1

    def _look_back(self, now: float) -> None:
        """Note how many have been answered until now, and forget what is too old to count."""
        if not self._pace or now - self._pace[-1][0] >= NOTED_EVERY:
            self._pace.append((now, self._answered))
        while len(self._pace) > 1 and self._pace[1][0] <= now - WINDOW_SECONDS:
            self._pace.popleft()
        while self._under_way and next(iter(self._under_way.values())) < now - FORGET_SECONDS:
            del self._under_way[next(iter(self._under_way))]
