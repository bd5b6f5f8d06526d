"""Liveness of a worker: the probe fails if there is work and none of it makes progress."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import faust

from infrastructure.messaging.batch_processor import BatchProcessor
from infrastructure.process.health import ProgressWatch

STALL_SECONDS: Final = 30.0
"""Seconds without progress after which a worker that has work counts as stalled."""


class LivenessProbe:
    """Progress of one worker. Each probe compares it with the probe before."""

    def __init__(self, app: faust.App, batch_processors: Sequence[BatchProcessor[Any]]) -> None:
        self._app = app
        self._batch_processors = batch_processors
        self.finished_batches: Counter[str] = Counter()
        """Number of finished batches, by topic."""
        self._watches: dict[str, ProgressWatch] = {}

    def problem(self, *, begun: bool, running: bool) -> str | None:
        """Return a sentence about work that has made no progress for `STALL_SECONDS`; `None` if there is none.

        `begun` is true once the worker has begun to start, `running` once its app runs.
        """
        previous, self._watches = self._watches, {}
        problem = None
        for stall, mark, waiting in self._signs(self._app.consumer if running else None, begun=begun):
            watch = self._watches[stall] = previous.get(stall) or ProgressWatch()
            if (seconds := watch.stalled_seconds(mark, waiting=waiting)) > STALL_SECONDS:
                problem = problem or f"{stall} for {seconds:.0f} s"
        return problem

    def _signs(self, consumer: Any, *, begun: bool) -> Iterator[tuple[str, object, bool]]:
        """Yield for each kind of work: a sentence for a stall, a mark that progress changes, whether there is work."""
        generation, recovered = self._app.consumer_generation_id, self._recovered()
        settled = generation > 0 and not self._app.rebalancing
        assigned = consumer.assignment() if consumer else ()
        # A table whose last record never comes would wait indefinitely, and all of the worker's partitions with it.
        moves = (self._app.rebalancing_count, generation, recovered)
        yield "a start, a rebalance or a recovery has stood still", moves, begun and not settled
        # A failed fetch counts too: if Kafka is down, a restart does not help. So do attempts: while a batch is retried
        # or held, queues fill up, and Kafka's client does not fetch a partition of which it still has records.
        tried = (sum(processor.attempts for processor in self._batch_processors), recovered)
        yield "nothing was asked of Kafka", (consumer and consumer.completed_fetches, tried), bool(settled and assigned)
        ours = {processor.name for processor in self._batch_processors}
        waiting = {tp: consumer.has_unfinished_records(tp) for tp in assigned if tp.topic in ours}
        yield "records wait, but none was tried", tried, any(waiting.values())
        # A single partition may stall while the others go on. Attempts that fail again and again are not a stall.
        failed = {
            processor.name: processor.attempts - self.finished_batches[processor.name]
            for processor in self._batch_processors
        }
        for tp, waits in waiting.items():
            mark = (generation, _committed(consumer, tp), failed[tp.topic])
            yield f"records wait on {tp.topic} {tp.partition}, but none was finished", mark, waits

    def _recovered(self) -> int:
        """Return the sum of recovered offsets. It grows during a long recovery, which a restart would only prolong."""
        tables: Any = self._app.tables
        return sum(offset or 0 for offset in tables.recovery.active_offsets.values()) if len(tables) else 0


def _committed(consumer: Any, tp: Any) -> int | None:
    offset: int | None = consumer._committed_offset[tp]  # noqa: SLF001 - there is no public way
    return offset
