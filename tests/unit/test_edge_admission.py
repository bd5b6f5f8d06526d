"""Admission control against a shop with a fixed pace: admitted requests are answered soon, others refused at once."""

from collections import deque

import pytest

from rest_api.security.admission import (
    FORGET_SECONDS,
    LONG_TURN_SECONDS,
    MIN_IN_FLIGHT,
    RELAPSE_SECONDS,
    RUSH_SECONDS,
    TURN_VALID_SECONDS,
    WAIT_SECONDS,
    Admission,
)
from rest_api.websocket.in_flight import InFlight, Registration


class Edge:
    """The in-flight table of an edge with room for `room` requests."""

    def __init__(self, room: int | None) -> None:
        self.in_flight = InFlight(Admission(room))

    def admits(self, user_id: str, request_id: str, now: float) -> bool:
        return self.in_flight.register(user_id, request_id, now, limit=None) is Registration.ACCEPTED

    def settle(self, user_id: str, request_id: str) -> None:
        self.in_flight.release(user_id, request_id)


def run(pace: int, rate: int, seconds: float, room: int) -> tuple[int, int, float]:
    """Offer `rate` requests per second to a shop that answers `pace`; return admitted, refused and longest wait (s)."""
    admission = Edge(room)
    queue: deque[tuple[str, float]] = deque()
    admitted = refused = 0
    longest = 0.0
    served = 0.0
    for step in range(int(seconds * 1000)):
        now = 100 + step / 1000
        for arrival in range(rate // 1000 + (step % 1000 < rate % 1000)):
            name = f"{step}-{arrival}"
            if admission.admits("u", name, now):
                admitted += 1
                queue.append((name, now))
            else:
                refused += 1
        served += pace / 1000
        while served >= 1 and queue:
            name, since = queue.popleft()
            admission.settle("u", name)
            longest = max(longest, now - since)
            served -= 1
        served = min(served, 1.0)
    return admitted, refused, longest


def test_nothing_is_refused_while_the_shop_keeps_up() -> None:
    admitted, refused, _ = run(pace=1500, rate=1400, seconds=4, room=256)
    assert (admitted, refused) == (5600, 0)


@pytest.mark.parametrize("times", [2, 5])
def test_excess_load_is_refused_and_the_rest_is_served_at_full_pace(times: int) -> None:
    admitted, refused, longest = run(pace=1000, rate=1000 * times, seconds=6, room=256)
    assert refused > 0
    assert admitted >= 0.9 * 1000 * 6
    assert longest <= 2 * WAIT_SECONDS


def test_a_slow_shop_is_not_given_more_than_it_can_answer_soon() -> None:
    admitted, refused, longest = run(pace=200, rate=1000, seconds=12, room=1024)
    assert refused > 0
    assert admitted >= 0.9 * 200 * 12
    assert longest <= (MIN_IN_FLIGHT + 1000 * RUSH_SECONDS) / 200, "not what 1,024 requests take"


def test_a_burst_is_admitted_however_slow_the_shop_was() -> None:
    admission = Edge(200)
    assert [admission.admits("u", str(number), 5.0) for number in range(201)] == [True] * 200 + [False]


def test_a_repeated_request_takes_no_room() -> None:
    admission = Edge(1)
    assert admission.admits("u", "a", 1.0)
    assert admission.admits("u", "a", 1.1)
    assert not admission.admits("v", "a", 1.2)
    admission.settle("u", "a")
    assert admission.admits("v", "a", 1.4)


def test_a_request_without_an_answer_is_forgotten() -> None:
    admission = Edge(1)
    assert admission.admits("u", "a", 1.0)
    assert not admission.admits("u", "b", FORGET_SECONDS)
    assert admission.admits("u", "b", 1.1 + FORGET_SECONDS)


def test_without_a_limit_everything_is_admitted() -> None:
    admission = Edge(None)
    assert all(admission.admits("u", str(number), 1.0) for number in range(10_000))


# ---- a slow event loop ----------------------------------------------------------------------------------------------


class Loop:
    """An edge with room for everything, whose turns last as long as the test says."""

    def __init__(self) -> None:
        self.edge = Edge(10_000)
        self.now = 100.0
        self.open: list[str] = []

    def turn(self, seconds: float, requests: int = 400, *, is_measured: bool = True) -> int:
        """Answer all, measure a turn of the event loop, and offer requests; return how many are admitted."""
        self.now += seconds
        while self.open:
            self.edge.settle("u", self.open.pop())
        if is_measured:
            self.edge.in_flight.observe_turn(seconds, self.now)
        names = [f"{self.now}-{number}" for number in range(requests)]
        self.open = [name for name in names if self.edge.admits("u", name, self.now)]
        return len(self.open)


def test_a_moment_of_long_turns_is_a_rush_and_nothing_is_refused() -> None:
    loop = Loop()
    assert [loop.turn(0.1), loop.turn(0.2), loop.turn(0.01), loop.turn(0.3)] == [400] * 4


def test_while_turns_stay_long_only_few_requests_are_in_flight() -> None:
    loop = Loop()
    assert loop.turn(RUSH_SECONDS) == MIN_IN_FLIGHT, "fewer are never refused for it"
    assert loop.turn(0.1) == MIN_IN_FLIGHT
    assert loop.turn(LONG_TURN_SECONDS) == 400, "this turn is not long"
    assert loop.turn(0.1) == MIN_IN_FLIGHT, "from the first long turn on, because the last refusals were just now"


def test_long_turns_of_the_past_are_forgotten() -> None:
    loop = Loop()
    loop.turn(RUSH_SECONDS)
    assert loop.turn(TURN_VALID_SECONDS + 0.1, is_measured=False) == 400, "nothing was measured since"
    loop.turn(0.01)
    loop.turn(RELAPSE_SECONDS, is_measured=False)
    assert [loop.turn(0.1), loop.turn(0.2)] == [400, 400]


def test_room_is_reserved_before_a_request_is_registered() -> None:
    in_flight = InFlight(Admission(2))
    assert [in_flight.reserve(1.0) for _ in range(3)] == [True, True, False]
    assert in_flight.register("u", "a", 1.0, limit=None) is Registration.OVERLOADED
    in_flight.unreserve()
    assert in_flight.register("u", "a", 1.0, limit=None) is Registration.ACCEPTED
    assert not in_flight.has_room(1.0)
    in_flight.unreserve()
    assert in_flight.has_room(1.0)
