"""Admission control of the whole edge: an admitted request is answered soon, the rest is refused at once. Pure.

A growing queue is useless: each request in it waits longer, until all of them are answered too late. So the edge allows
as many requests in flight as the shop has lately answered per second (by Little's law they then wait about a second),
and a thousand in any case for a rush that lasts a moment. If the oldest one waits for longer than that, the shop is
behind, and only a few hundred are allowed in any case. Nothing of a refused request is done.

The edge itself may be what is too slow. Then requests wait for its event loop before they are counted, and so do
refusals. So while turns of the loop stay long for more than a moment, fewer requests are allowed in flight.
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
LONG_TURN_SECONDS: Final = 0.05
"""A turn of the event loop that lasts longer is long: nothing that arrives meanwhile is read before its end."""
RUSH_SECONDS: Final = 0.5
"""A moment: requests may wait, and turns may be long, for this time before fewer are allowed in flight."""
LOOP_WAIT_SECONDS: Final = 0.5
"""The longest wait of an admitted request, approximately, while turns are long."""
RELAPSE_SECONDS: Final = 5.0
"""For this time after such a refusal, requests are refused from the first long turn on."""
TURN_VALID_SECONDS: Final = 1.0
"""After this time without a further turn that was measured, the last one says nothing about the load."""
MIN_IN_FLIGHT: Final = 256
"""Requests that are allowed in flight however slow the shop is, unless the setting says fewer."""
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
        self._long_since: float | None = None
        """When the first of the consecutive long turns began; `None` if the last one was not long."""
        self._turn_ended_at = float("-inf")
        self._relapse_until = float("-inf")

    @property
    def is_limited(self) -> bool:
        """True if requests can be refused at all."""
        return self._capacity is not None

    def has_room(self, in_flight: int, now: float, oldest: float | None = None) -> bool:
        """Return True if one more request may be sent while `in_flight` requests have no answer yet.

        `oldest` is the time at which the oldest of them was admitted.
        """
        if self._capacity is None:
            return True
        self._sample(now)
        pace = (self._answered - self._pace[0][1]) / WINDOW_SECONDS
        always, wait = self._capacity, WAIT_SECONDS
        if in_flight >= min(MIN_IN_FLIGHT, self._capacity):
            is_behind = oldest is not None and now - oldest > RUSH_SECONDS
            if self._is_loop_overloaded(now):
                always, wait = min(MIN_IN_FLIGHT, self._capacity), LOOP_WAIT_SECONDS
            elif is_behind:
                always = min(MIN_IN_FLIGHT, self._capacity)
        return in_flight < max(always, pace * wait)

    def count_answer(self) -> None:
        """Count an admitted request that was answered, or given up."""
        self._answered += 1

    def observe_turn(self, seconds: float, now: float) -> None:
        """Take notice of a turn of the event loop that ends `now` and lasted `seconds`."""
        self._turn_ended_at = now
        if seconds <= LONG_TURN_SECONDS:
            self._long_since = None
        elif self._long_since is None:
            self._long_since = now - seconds

    def _is_loop_overloaded(self, now: float) -> bool:
        if self._long_since is None or now - self._turn_ended_at > TURN_VALID_SECONDS:
            return False
        if now - self._long_since < RUSH_SECONDS and now >= self._relapse_until:
            return False
        self._relapse_until = now + RELAPSE_SECONDS
        return True

    def _sample(self, now: float) -> None:
        if not self._pace or now - self._pace[-1][0] >= SAMPLE_SECONDS:
            self._pace.append((now, self._answered))
        while len(self._pace) > 1 and self._pace[1][0] <= now - WINDOW_SECONDS:
            self._pace.popleft()
