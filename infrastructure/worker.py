"""The process around a service's agents: one Faust app, its health, its background loops, its end.

A worker ends in one of three ways: asked to (SIGTERM: what is in hand is finished and committed, its partitions go to
the others; exit 0), crashed (exit 1), or hard (exit 75: an attempt could not be finished while leaving; nothing is
acknowledged, another reads it again).
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop
from faust.contrib.asgi import faust_app_running

from infrastructure.broker import ensure_topics, partition_of
from infrastructure.daemon import unless
from infrastructure.dead_letters import Record
from infrastructure.envelope import HEADERS, Envelope, Message
from infrastructure.faust_app import PartitionedTable, create_app
from infrastructure.guard import Guard, Handler
from infrastructure.health import Check, HealthServer
from infrastructure.liveness import Liveness
from infrastructure.settings import Settings
from infrastructure.topics import Topic

log = logging.getLogger(__name__)

EX_TEMPFAIL: Final = 75
LEAVE_SECONDS: Final = 5.0
"""How long a failing attempt may go on once the app stops or rebalances."""
STOP_SECONDS: Final = 8.0
FORGOTTEN_SECONDS: Final = 30.0
"""A background loop that ran for this long begins its pauses anew when it fails."""
WRITE_EVERY: Final = 0.25
"""A table may lag this much behind what its worker knows: it is a cache, and a lost write of it costs nothing."""
PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0)

M = TypeVar("M", bound=Message)


class ReplicaInUseError(RuntimeError):
    """Another process runs under this replica's name on this machine."""


class Worker:
    """One replica of a service. Build it, register what it does, then `run` it."""

    def __init__(self, settings: Settings, service: str, *, topics: Sequence[Topic]) -> None:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        self.settings = settings
        self.service = service
        self.topics = [*topics]
        self.app = create_app(settings, service)
        self._guards: list[Guard[Any]] = []
        self._loops: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._checks: list[Check] = []
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._writers: list[Callable[[], None]] = []
        self.app.on_partitions_revoked.connect(self._before_revoke)
        self._begun = False
        """It has begun to start, and nobody has asked it to stop."""
        self._running = False
        self._leaving_since: float | None = None
        self._liveness = Liveness(self.app, self._guards)

    # ---- what it does -----------------------------------------------------------------------------------------------

    def agent(self, handler: Handler[M]) -> None:
        """Act on `handler.topic`: live batches, in order, acknowledged when their effects are stored and sent."""
        name = self.settings.topic(handler.topic)
        self.topics += [handler.topic, handler.topic.dead_letters]
        guard = Guard(
            handler,
            service=self.service,
            name=name,
            partitions=self.settings.partitions_of(handler.topic),
            send=self._send_raw,
            leaving=self._leave_or_stay,
        )
        self._guards.append(guard)
        source = self.app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

        async def consume(stream: Any) -> None:
            queue = stream.channel.queue
            async for first in stream.events():
                drained: list[Any] = []
                while len(drained) < handler.max_batch - 1 and not queue.empty():
                    drained.append(queue.get_nowait())
                events = [first, *(event for event in drained if self._current(event))]
                try:
                    await guard([_record(event) for event in events])
                    self._liveness.finished[name] += 1
                except BaseException:  # a cancelled attempt: to leave from here would acknowledge it
                    log.exception("stopped in the middle of an attempt; leaving without acknowledging it")
                    os._exit(EX_TEMPFAIL)
                for event in events[1:]:  # the first is acknowledged by its stream
                    event.ack()

        self.app.agent(source, name=f"{self.service}.{handler.topic.name}")(consume)

    def table(self, name: str) -> PartitionedTable:
        """A cache with a changelog, on as many partitions as every keyed topic."""
        table = PartitionedTable(self.app, name)
        unprefixed = table.changelog.removeprefix(self.settings.prefix)
        self.topics.append(Topic(unprefixed, keyed_by="user"))
        return table

    def writing(self, write: Callable[[], None]) -> None:
        """Call `write` every quarter of a second, and before partitions are given up: what a cache may be late with."""
        if not self._writers:
            self.background("writing", self._keep_writing)
        self._writers.append(write)

    def background(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run `loop` for the app's life, again after a pause when it raises."""
        self._loops.append((name, loop))

    def ready_when(self, check: Check) -> None:
        """One more condition for `/readyz`."""
        self._checks.append(check)

    def closing(self, close: Callable[[], Awaitable[None]]) -> None:
        """Call `close` after the agents have stopped."""
        self._closers.append(close)

    async def publish(self, topic: Topic, events: Sequence[Envelope]) -> None:
        """Send `events` in order and return when the broker has stored all of them."""
        name, partitions = self.settings.topic(topic), self.settings.partitions_of(topic)
        sent = []
        for event in events:
            place = partition_of(event.key, partitions)  # it is cached; Kafka's is not
            sent.append(await self.app.producer.send(name, event.key, event.encode(), place, None, HEADERS))
        for acknowledged in sent:
            await acknowledged

    def partitions(self, topic: Topic) -> set[int]:
        """Those of `topic` that this replica works on now."""
        name = self.settings.topic(topic)
        return {place.partition for place in self.app.consumer.assignment() if place.topic == name}

    @property
    def generation(self) -> str:
        """Another with each rebalance, and another when its tables are recovered: what was known before is void."""
        return f"{self.app.consumer_generation_id}{'-unsettled' if self.app.rebalancing else ''}"

    # ---- its life ---------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Start, work until asked to stop or crashed, stop; the exit code."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        health = HealthServer(
            self.settings.health_host, self.settings.health_port, live=self.why_not_live, ready=self.why_not_ready
        )
        with self._replica_lock():
            await health.start()
            try:
                if await unless(stop, ensure_topics(self.settings, self.topics)):
                    return await self._work(stop)
                return 0
            finally:
                for close in self._closers:
                    await close()
                await health.stop()

    async def _work(self, stop: asyncio.Event) -> int:
        tasks = []
        self._begun = True
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(faust_app_running(self.app, stop_timeout=STOP_SECONDS))
                self._running = True
                tasks = [asyncio.create_task(self._forever(name, each)) for name, each in self._loops]
                gc.collect()
                gc.freeze()  # what is alive now stays: the collector need not walk it again
                log.info("running", extra={"health": self.settings.health_port})
                while not (stop.is_set() or self.app.should_stop or self.app.crashed):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), 0.2)
            finally:
                self._begun = self._running = False
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                # Faust's own stop can hang on a handler that does; then nothing is acknowledged and the end is hard.
                loop = asyncio.get_running_loop()
                loop.call_later(STOP_SECONDS, lambda: os._exit(EX_TEMPFAIL))
                self._write()
        if stop.is_set():
            log.info("stopped")
            return 0
        log.error("crashed: %s", self.app.crash_reason)
        return 1

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY)
            self._write()

    def _write(self) -> None:
        for write in self._writers:
            write()

    async def _before_revoke(self, *_: Any, **__: Any) -> None:
        self._write()

    async def _forever(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await loop()
            except Exception as error:  # noqa: BLE001 - a loop beside the agents must not take them down
                failures = 0 if time.monotonic() - began > FORGOTTEN_SECONDS else failures + 1
                pause = PAUSES[min(failures, len(PAUSES)) - 1]
                log.warning("%s failed, again in %.1f s: %s: %s", name, pause, type(error).__name__, error)
                await asyncio.sleep(pause)

    @contextlib.contextmanager
    def _replica_lock(self) -> Any:
        """Two processes of one name would share an identity in the consumer group and evict each other in turn."""
        folder = Path(self.settings.state_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.service}-{self.settings.replica}.lock"
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = (
                    f"{self.settings.replica} runs already ({path} is locked); give this one another HOLDFAST_REPLICA"
                )
                raise ReplicaInUseError(message) from None
            yield

    # ---- its health -------------------------------------------------------------------------------------------------

    def why_not_ready(self) -> str | None:
        """None when it has its partitions, has recovered its tables and is not in a rebalance."""
        if not self._running:
            return "starting or stopping"
        if self.app.rebalancing:
            return "rebalancing"
        recovery = getattr(self.app.tables, "recovery", None)
        if len(self.app.tables) and recovery and not recovery.completed.is_set():
            return "recovering its tables"
        if not self.app.consumer.assignment():
            return "no partitions assigned"
        return next((problem for check in self._checks if (problem := check())), None)

    def why_not_live(self) -> str | None:
        """None unless there is something to do and for half a minute nothing of it was seen to be done."""
        return self._liveness.why_not(begun=self._begun, running=self._running)

    def _leave_or_stay(self) -> None:
        leaving = self.app.should_stop or self.app.rebalancing or not self._running
        if not leaving:
            self._leaving_since = None
        elif self._leaving_since is None:
            self._leaving_since = time.monotonic()
        elif time.monotonic() - self._leaving_since > LEAVE_SECONDS:
            log.error("an attempt still fails while leaving; ending without acknowledging it")
            os._exit(EX_TEMPFAIL)

    def _current(self, event: Any) -> bool:
        return bool(event.message.generation_id == self.app.consumer_generation_id)

    async def _send_raw(self, topic: str, key: bytes | None, value: bytes) -> None:
        await (await self.app.producer.send(topic, key, value, None, None, HEADERS))


def _record(event: Any) -> Record:
    message = event.message
    return Record(message.topic, message.partition, message.offset, message.key, message.value)
