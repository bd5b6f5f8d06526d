"""When a worker counts as stuck: not when idle, not when slow, only when something waits and nothing moves."""

from infrastructure.health import Stall


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time

    def after(self, seconds: float) -> None:
        self.time += seconds


def test_who_has_nothing_to_do_is_not_stuck() -> None:
    clock = Clock()
    stall = Stall(clock)
    for _ in range(3):
        clock.after(60)
        assert stall.seconds(1, waiting=False) == 0


def test_who_moves_is_not_stuck_however_slowly() -> None:
    clock = Clock()
    stall = Stall(clock)
    for attempts in range(3):
        clock.after(60)
        assert stall.seconds((attempts, 0), waiting=True) == 0
    clock.after(60)
    assert stall.seconds((2, 1), waiting=True) == 0, "reading a table back is moving"


def test_who_has_something_to_do_and_does_nothing_is_stuck_from_when_that_was_seen() -> None:
    clock = Clock()
    stall = Stall(clock)
    assert stall.seconds(1, waiting=False) == 0
    clock.after(60)
    assert stall.seconds(1, waiting=True) == 0, "what waits may have come just now, however long ago somebody looked"
    clock.after(10)
    assert stall.seconds(1, waiting=True) == 10
    clock.after(10)
    assert stall.seconds(1, waiting=True) == 20
    assert stall.seconds(2, waiting=True) == 0
