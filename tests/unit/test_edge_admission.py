"""What is let in is answered soon, the rest is told at once: the rule, against a shop that serves at a fixed pace."""

from collections import deque

import pytest

from rest_api.admission import FORGET_SECONDS, WAIT_SECONDS, Admission


def run(pace: int, rate: int, seconds: float, room: int) -> tuple[int, int, float]:
    """Offer `rate` a second to a shop that answers `pace` a second: let in, refused, the longest wait in seconds."""
    admission = Admission(room)
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


def test_a_shop_that_keeps_up_refuses_nobody() -> None:
    admitted, refused, _ = run(pace=1500, rate=1400, seconds=4, room=256)
    assert (admitted, refused) == (5600, 0)


@pytest.mark.parametrize("times", [2, 5])
def test_what_is_too_much_is_refused_and_the_rest_served_at_full_pace(times: int) -> None:
    admitted, refused, longest = run(pace=1000, rate=1000 * times, seconds=6, room=256)
    assert refused > 0
    assert admitted >= 0.9 * 1000 * 6
    assert longest <= 2 * WAIT_SECONDS


def test_a_rush_finds_room_however_slow_the_shop_was() -> None:
    admission = Admission(200)
    assert [admission.admits("u", str(number), 5.0) for number in range(201)] == [True] * 200 + [False]


def test_the_same_request_again_takes_no_room() -> None:
    admission = Admission(1)
    assert admission.admits("u", "a", 1.0)
    assert admission.admits("u", "a", 1.1)
    assert not admission.admits("v", "a", 1.2)
    admission.settle("u", "a")
    assert admission.admits("v", "a", 1.4)


def test_what_is_never_answered_is_forgotten() -> None:
    admission = Admission(1)
    assert admission.admits("u", "a", 1.0)
    assert not admission.admits("u", "b", FORGET_SECONDS)
    assert admission.admits("u", "b", 1.1 + FORGET_SECONDS)


def test_without_a_limit_everything_is_let_in() -> None:
    admission = Admission(None)
    assert all(admission.admits("u", str(number), 1.0) for number in range(10_000))
