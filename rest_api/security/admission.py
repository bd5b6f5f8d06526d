"""Admission control of the whole edge: an admitted request is answered soon, the rest is refused at once. Pure.

A growing queue is useless: each request in it waits longer, until all of them are answered too late. So the edge allows
as many requests in flight as the shop has lately answered per second (by Little's law they then wait about a second),
and a few hundred in any case, for a rush that lasts a moment. Nothing of a refused request is done.
"""

from collections import deque
from typing import Final

WAIT_SECONDS: Final = 1.0
"""The longest wait of an admitted request, approximately."""
WINDOW_SECONDS: Final = 2.0
"""The span over which the pace of answers is measured."""
SAMPLE_SECONDS: Final = 0.1
"""Seconds between two samples of the number of answers."""
FORGET_SECONDS: Final = 30.0
"""After this long without an answer a request no longer counts as in flight: it may have been lost with a process."""
RETRY_AFTER: Final = 1
"""Seconds after which a refused client should retry."""


class Admission:
    """Admission control: decides if one more request may be sent. `InFlight` counts the requests and calls it.

    `now` is in seconds of any one clock.
    """

    def __init__(self, capacity: int | None) -> None:
        """`capacity` is the number of requests that are always allowed in flight; `None` lifts the limit."""
        self._capacity = capacity
        self._answered = 0
        self._pace: deque[tuple[float, int]] = deque()
        """Samples of `_answered`, oldest first."""

    @property
    def is_limited(self) -> bool:
        """True if requests can be refused at all."""
        return self._capacity is not None

    def has_room(self, in_flight: int, now: float) -> bool:
        """Return True if one more request may be sent while `in_flight` requests have no answer yet."""
        if self._capacity is None:
            return True
        self._sample(now)
        pace = (self._answered - self._pace[0][1]) / WINDOW_SECONDS
        return in_flight < max(self._capacity, pace * WAIT_SECONDS)

    def count_answer(self) -> None:
        """Count an admitted request that was answered, or given up."""
        self._answered += 1

    def _sample(self, now: float) -> None:
        if not self._pace or now - self._pace[-1][0] >= SAMPLE_SECONDS:
            self._pace.append((now, self._answered))
        while len(self._pace) > 1 and self._pace[1][0] <= now - WINDOW_SECONDS:
            self._pace.popleft()
