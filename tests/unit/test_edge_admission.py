"""Admission control against a shop with a fixed pace: admitted requests are answered soon, others refused at once."""

from collections import deque

import pytest

from rest_api.security.admission import FORGET_SECONDS, WAIT_SECONDS, Admission
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
