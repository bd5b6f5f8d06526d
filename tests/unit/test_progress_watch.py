"""When a worker counts as stalled: only if work waits and makes no progress, not if it is idle or slow."""

from infrastructure.process.health import ProgressWatch


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time

    def after(self, seconds: float) -> None:
        self.time += seconds


def test_an_idle_worker_is_not_stalled() -> None:
    clock = Clock()
    stall = ProgressWatch(clock)
    for _ in range(3):
        clock.after(60)
        assert stall.stalled_seconds(1, waiting=False) == 0


def test_a_slow_worker_is_not_stalled() -> None:
    clock = Clock()
    stall = ProgressWatch(clock)
    for attempts in range(3):
        clock.after(60)
        assert stall.stalled_seconds((attempts, 0), waiting=True) == 0
    clock.after(60)
    assert stall.stalled_seconds((2, 1), waiting=True) == 0, "a table's recovery is progress"


def test_waiting_work_without_progress_is_a_stall_from_when_it_was_first_seen() -> None:
    clock = Clock()
    stall = ProgressWatch(clock)
    assert stall.stalled_seconds(1, waiting=False) == 0
    clock.after(60)
    assert stall.stalled_seconds(1, waiting=True) == 0, "the work may have arrived since the last probe"
    clock.after(10)
    assert stall.stalled_seconds(1, waiting=True) == 10
    clock.after(10)
    assert stall.stalled_seconds(1, waiting=True) == 20
    assert stall.stalled_seconds(2, waiting=True) == 0
