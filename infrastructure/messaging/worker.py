"""Process of a service that consumes topics: one Faust app with its agents, tables and background loops.

A worker ends in one of three ways:
- stopped by SIGTERM or SIGINT: batches in hand are finished and committed, other replicas get the partitions; status 0
- crashed: status 1
- hard: a batch could not be finished while the worker was stopping. It is not acknowledged, so another process reads
  it again; status 75
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from faust.contrib.asgi import faust_app_running

from contracts.envelope import HEADERS, Envelope, Message
from contracts.ids import uuid7
from contracts.topics import Topic
from infrastructure.messaging.batch_processor import BatchProcessor, Handler
from infrastructure.messaging.broker import ensure_topics, partition_of
from infrastructure.messaging.dead_letters import Record
from infrastructure.messaging.faust.app import PartitionedTable, create_app
from infrastructure.messaging.liveness import LivenessProbe
from infrastructure.process.private_files import create_private_directory
from infrastructure.process.service import EX_TEMPFAIL, STOP_SECONDS, ServiceProcess
from infrastructure.process.settings import Settings

log = logging.getLogger(__name__)

LEAVE_SECONDS: Final = 5.0
"""Time for which a failing batch is still retried after the app has begun to stop or to rebalance."""
WRITE_SECONDS: Final = 0.5
"""Seconds by which a table may lag behind its worker. The table is a cache, so a lost write does no harm."""

M = TypeVar("M", bound=Message)


class ReplicaInUseError(RuntimeError):
    """Another process with this replica's name runs on this machine."""


class Worker(ServiceProcess):
    """One replica of a service that consumes topics.

    Build it, register handlers with `add_agent` and loops, checks and closers as in `ServiceProcess`, then call `run`
    once. `topics` are the topics that the service publishes to: they are created at the start, like those of its
    agents. Records are fetched at most once per `fetch_interval` seconds: a service that nobody waits for processes
    the records of a busy topic in larger batches.
    """

    def __init__(
        self, settings: Settings, service: str, *, topics: Sequence[Topic], fetch_interval: float = 0.0
    ) -> None:
        super().__init__(settings)
        self.service = service
        self._process_id = uuid7()
        self.topics = [*topics]
        self.app = create_app(settings, service, fetch_interval=fetch_interval)
        self._destinations: dict[Topic, tuple[str, int]] = {}
        """The broker's name and the number of partitions of each topic that was published to."""
        self._batch_processors: list[BatchProcessor[Any]] = []
        self._writers: list[Callable[[], None]] = []
        self.app.on_partitions_revoked.connect(self._on_partitions_revoked)
        self._started = False
        """True from the start of the Faust app until the worker stops."""
        self._leaving_since: float | None = None
        self._liveness = LivenessProbe(self.app, self._batch_processors)

    # ---- registration -----------------------------------------------------------------------------------------------

    def add_agent(self, handler: Handler[M]) -> None:
        """Process `handler.topic`: in order, in batches of the records at hand, acknowledged after their effects."""
        name = self.settings.topic(handler.topic)
        self.topics += [handler.topic, handler.topic.dead_letter_topic]
        processor = BatchProcessor(
            handler,
            self.settings,
            service=self.service,
            send=self._send_raw,
            on_shutdown=self._enforce_leave_deadline,
        )
        self._batch_processors.append(processor)
        self.add_readiness_check(processor.readiness_problem)
        source = self.app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

        async def consume(stream: Any) -> None:
            queue = stream.channel.queue
            async for first in stream.events():
                drained: list[Any] = []
                while len(drained) < handler.max_batch_size - 1 and not queue.empty():
                    drained.append(queue.get_nowait())
                events = [first, *(event for event in drained if self._is_current(event))]
                try:
                    messages = [event.message for event in events]
                    await processor([Record(m.topic, m.partition, m.offset, m.key, m.value) for m in messages])
                    self._liveness.finished_batches[name] += 1
                except BaseException:  # cancelled in an attempt: returning would acknowledge the batch
                    log.exception("stopped in the middle of an attempt; exiting without acknowledging it")
                    os._exit(EX_TEMPFAIL)
                for event in events[1:]:  # the stream acknowledges the first one
                    event.ack()

        self.app.agent(source, name=f"{self.service}.{handler.topic.name}")(consume)

    def create_table(self, name: str) -> PartitionedTable:
        """Return a new table: a cache with a changelog topic that has as many partitions as every keyed topic."""
        table = PartitionedTable(self.app, name)
        unprefixed = table.changelog.removeprefix(self.settings.prefix)
        self.topics.append(Topic(unprefixed, keyed_by="user"))
        return table

    def add_table_writer(self, write: Callable[[], None]) -> None:
        """Call `write` every `WRITE_SECONDS` seconds and before partitions are revoked: for the writes of a cache."""
        if not self._writers:
            self.add_background_loop("writing", self._write_periodically)
        self._writers.append(write)

    async def publish(self, topic: Topic, events: Sequence[Envelope]) -> None:
        """Send `events` in order; return when the broker has acknowledged all of them."""
        if not events:
            return
        destination = self._destinations.get(topic)
        if destination is None:
            destination = self.settings.topic(topic), self.settings.partitions_of(topic)
            self._destinations[topic] = destination
        name, partitions = destination
        sent = []
        for event in events:
            key = event.subject.encode()
            partition = partition_of(key, partitions)  # cached, unlike aiokafka's
            sent.append(await self.app.producer.send(name, key, event.encode(), partition, None, HEADERS))
        for acknowledged in sent:
            await acknowledged

    def assigned_partitions(self, topic: Topic) -> set[int]:
        """Return the partitions of `topic` that are assigned to this replica now."""
        name = self.settings.topic(topic)
        return {partition.partition for partition in self.app.consumer.assignment() if partition.topic == name}

    def generation(self) -> str:
        """Return the name of the current assignment, which no other process has, with its tables recovered or not yet.

        When it changes, everything that was known of the assigned partitions is void.
        """
        return f"{self._process_id}/{self.app.consumer_generation_id}{'-unsettled' if self.app.rebalancing else ''}"

    # ---- life -------------------------------------------------------------------------------------------------------

    async def run(self, begin: Callable[[], Awaitable[None]] | None = None) -> int:
        """Create the topics, then work until SIGTERM, SIGINT or a crash; return the exit status. Call it once."""
        with self._replica_lock():
            return await super().run(begin or partial(ensure_topics, self.settings, self.topics))

    async def _work(self, stop: asyncio.Event) -> int:
        self._started = True
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(faust_app_running(self.app, stop_timeout=STOP_SECONDS))
                async with self._background_loops():
                    while not (stop.is_set() or self.app.should_stop or self.app.crashed):
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(stop.wait(), 0.2)
            finally:
                self._started = False
                # Faust's stop hangs if a handler does. Then the process ends hard and acknowledges nothing.
                self._exit_hard_after(STOP_SECONDS)
                self._write_as_far_as_possible()
        if stop.is_set():
            log.info("stopped")
            return 0
        log.error("crashed: %s", self.app.crash_reason)
        return 1

    async def _write_periodically(self) -> None:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            self._write()

    def _write(self) -> None:
        """Write all tables; raise the last error after that, so that one table does not stop the others."""
        failed: Exception | None = None
        for write in self._writers:
            try:
                write()
            except Exception as error:  # noqa: BLE001 - raised below
                failed = error
        if failed is not None:
            raise failed

    def _write_as_far_as_possible(self) -> None:
        """Write the tables before a rebalance or a stop, which a table that cannot be written must not prevent."""
        try:
            self._write()
        except Exception:
            log.exception("a table could not be written")

    async def _on_partitions_revoked(self, *_: Any, **__: Any) -> None:
        self._write_as_far_as_possible()

    @contextlib.contextmanager
    def _replica_lock(self) -> Any:
        """Lock the replica's name: two processes with one name would evict each other from the consumer group in turn.

        Raises `ReplicaInUseError`.
        """
        folder = Path(self.settings.state_dir)
        create_private_directory(folder)
        path = folder / f"{self.service}-{self.settings.replica}.lock"
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{self.settings.replica} runs already ({path} is locked): set another HOLDFAST_REPLICA"
                raise ReplicaInUseError(message) from None
            yield

    # ---- health -----------------------------------------------------------------------------------------------------

    def readiness_problem(self) -> str | None:
        """Return why `/readyz` must fail; `None` if partitions are assigned, tables recovered and all checks pass."""
        if not self._running:
            return "starting or stopping"
        if self.app.rebalancing:
            return "rebalancing"
        recovery = getattr(self.app.tables, "recovery", None)
        if len(self.app.tables) and recovery and not recovery.completed.is_set():
            return "recovering its tables"
        if not self.app.consumer.assignment():
            return "no partitions assigned"
        return self._failed_check()

    def liveness_problem(self) -> str | None:
        """Return why `/livez` must fail: there was work, and none of it was done for `STALL_SECONDS`; else `None`."""
        return self._liveness.problem(begun=self._started, running=self._running)

    def _enforce_leave_deadline(self) -> None:
        """End the process hard if it has been stopping or rebalancing for more than `LEAVE_SECONDS`."""
        leaving = self.app.should_stop or self.app.rebalancing or not self._running
        if not leaving:
            self._leaving_since = None
        elif self._leaving_since is None:
            self._leaving_since = time.monotonic()
        elif time.monotonic() - self._leaving_since > LEAVE_SECONDS:
            log.error("a batch could not be finished while the worker was leaving; exiting without acknowledging it")
            os._exit(EX_TEMPFAIL)

    def _is_current(self, event: Any) -> bool:
        """Return whether `event` was read in the current assignment."""
        return bool(event.message.generation_id == self.app.consumer_generation_id)

    async def _send_raw(self, topic: str, key: bytes | None, value: bytes) -> None:
        await (await self.app.producer.send(topic, key, value, None, None, HEADERS))
