"""Is a worker alive? Not that it answers, but that what it has to do moves."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import faust

from infrastructure.guard import Guard
from infrastructure.health import Stall

STALL_SECONDS: Final = 30.0
"""A worker that has something to do and stands still for this long is not alive."""


class Liveness:
    """What is known of one worker's progress; asked again and again, it sees what does not change."""

    def __init__(self, app: faust.App, guards: Sequence[Guard[Any]]) -> None:
        self._app = app
        self._guards = guards
        self.finished: Counter[str] = Counter()
        """Batches of each topic that have left their guard."""
        self._stalls: dict[str, Stall] = {}

    def why_not(self, *, begun: bool, running: bool) -> str | None:
        """What has stood still for `STALL_SECONDS`, of a worker that has `begun` to start or is `running` already."""
        known, self._stalls = self._stalls, {}
        verdict = None
        for what, mark, waiting in self._signs(self._app.consumer if running else None, begun=begun):
            stall = self._stalls[what] = known.get(what) or Stall()
            if (seconds := stall.seconds(mark, waiting=waiting)) > STALL_SECONDS:
                verdict = verdict or f"{what} for {seconds:.0f} s"
        return verdict

    def _signs(self, consumer: Any, *, begun: bool) -> Iterator[tuple[str, object, bool]]:
        """What may stand still: how that would be said, what changes as long as it moves, and whether it has to."""
        generation, recovered = self._app.consumer_generation_id, self._recovered()
        settled = generation > 0 and not self._app.rebalancing
        assigned = consumer.assignment() if consumer else ()
        # A table whose last record never comes would wait for ever, and with it all of the worker's partitions.
        moves = (self._app.rebalancing_count, generation, recovered)
        yield "a start, a rebalance or a recovery has stood still", moves, begun and not settled
        # An error counts as well as an answer: that Kafka is away is no reason to end a worker.
        yield "nothing was asked of Kafka", consumer and consumer.fetches, bool(settled and assigned)
        ours = {guard.name for guard in self._guards}
        waiting = {tp: _waits(consumer, tp) for tp in assigned if tp.topic in ours}
        tried = (sum(guard.attempts for guard in self._guards), recovered)
        yield "records wait, but none was tried", tried, any(waiting.values())
        # One partition alone: what is read of the others goes on. To fail again and again is not to stand still.
        failed = {guard.name: guard.attempts - self.finished[guard.name] for guard in self._guards}
        for tp, waits in waiting.items():
            mark = (generation, _committed(consumer, tp), failed[tp.topic])
            yield f"records wait on {tp.topic} {tp.partition}, but none was finished", mark, waits

    def _recovered(self) -> int:
        """Grows while tables are read back: a long recovery is slow, not dead, and ending it makes it longer."""
        tables: Any = self._app.tables
        return sum(offset or 0 for offset in tables.recovery.active_offsets.values()) if len(tables) else 0


def _waits(consumer: Any, tp: Any) -> bool:
    """Whether a partition has records that are not acknowledged, as far as the broker has told."""
    end = consumer.highwater(tp)
    return bool(end) and (_committed(consumer, tp) or 0) < end


def _committed(consumer: Any, tp: Any) -> int | None:
    offset: int | None = consumer._committed_offset[tp]  # noqa: SLF001 - Faust keeps it there only
    return offset
