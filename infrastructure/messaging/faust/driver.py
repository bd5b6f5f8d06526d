"""Faust transport whose consumer runs on the agents' own event loop; selected by broker URLs `holdfast://host:port`.

Faust's own driver runs its consumer in a second thread with a second loop, and creates two tasks for each message that
passes between them. The two loops then compete for the interpreter. Here there is one loop and no task per message;
everything else is Faust's. docs/performance/log.md has the measured effect.

The transport also keeps a consumer from stopping silently. No record is taken from Kafka's client that cannot be passed
on, an error that ends the client's tasks ends the worker, and a worker that stops leaves its consumer group.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from inspect import isawaitable
from typing import Any, ClassVar, Final, cast

from aiokafka.errors import ConsumerStoppedError
from aiokafka.protocol.fetch import FetchRequest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.services import Service

from contracts.envelope import UnreadableBatch
from infrastructure.messaging import consumers
from infrastructure.messaging.broker import ensure_fetcher_alive
from infrastructure.messaging.faust.leave_group import leave_group
from infrastructure.messaging.faust.recovery import count_as_recovered

log = logging.getLogger(__name__)

YIELD_EVERY: Final = 100
"""Messages passed to agents before other tasks get a chance to run."""
FETCH_MAX_WAIT_MS: Final = 250
"""Time that a broker holds a fetch that finds nothing, while records arrive or the group is changing."""
IDLE_FETCH_MAX_WAIT_MS: Final = 5_000
"""Time that a broker holds a fetch of an idle worker that finds nothing."""
IDLE_SECONDS: Final = 2.0
"""A worker is idle if no record has arrived, and no rebalance was made, for this time."""
RETRY_SECONDS: Final = 0.02
WATCH_SECONDS: Final = 1.0


class FetchConnection:
    """Kafka's client for the fetcher: fetches have a connection of their own, and a new one after each rebalance.

    A broker answers the requests of one connection in order. So every request behind a fetch that finds nothing waits
    for it.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.cluster = client.cluster  # looked up for each partition of each fetch
        self._group = "fetch-0"
        self._renewals = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: int, request: Any) -> Any:
        """Send a request and return the response."""
        if isinstance(request, FetchRequest):
            return await self._client.send(node_id, request, group=self._group)
        return await self._client.send(node_id, request)

    def renew(self) -> None:
        """Send the next fetch on a new connection. The old one is closed after the broker has answered its last."""
        old = self._group
        self._renewals += 1
        self._group = f"fetch-{self._renewals}"
        asyncio.get_running_loop().call_later(IDLE_FETCH_MAX_WAIT_MS / 1000 + 1, self._close, old)

    def _close(self, group: str) -> None:
        connections = self._client._conns  # noqa: SLF001 - aiokafka has no public way
        for key in [key for key in connections if key[1] == group]:
            connections.pop(key).close()


class LoopConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer "thread" without a thread: the hooks between the two loops are plain calls."""

    wait_for_shutdown = False
    consumer: "LoopConsumer"

    def __init__(self, consumer: Any, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(consumer, loop=loop, thread_loop=loop, **options)
        self.completed_fetches = 0
        """Number of completed fetches, with or without records or with an error: a sign that the client still works."""
        self._connection: FetchConnection | None = None
        self._active_at = self._fetched_at = 0.0

    # ---- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start on the running event loop."""
        self._thread_started.set()
        await self._default_start()

    async def on_start(self) -> None:
        """Connect, and begin to count fetches."""
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher  # noqa: SLF001 - aiokafka has no public way, in Faust's code neither
        fetcher._proc_fetch_request = self._pace_fetches(fetcher._proc_fetch_request)  # noqa: SLF001
        fetcher._client = self._connection = FetchConnection(fetcher._client)  # noqa: SLF001

    async def stop(self) -> None:
        """Stop. Does nothing if it was not started."""
        if self._started.is_set():
            await Service.stop(self)

    async def on_stop(self) -> None:
        """Leave the consumer group, so that the other members need not wait until the session ends."""
        if self._consumer is not None:
            await leave_group(self._consumer)
            await self._consumer.stop()

    def close(self) -> None:
        """Do nothing. Faust calls it on a rebalance while the app stops, when the last commit is yet to be made."""

    def set_shutdown(self) -> None:
        """Set the shutdown event directly: there is no other loop to notify."""
        self._shutdown.set()

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS  # noqa: SLF001 - Faust hard-codes its own value
        consumer._isolation_level = consumers.ISOLATION_LEVEL  # noqa: SLF001 - Faust derives it from `exactly_once`
        return consumer

    def _pace_fetches(self, fetch: Callable[..., Any]) -> Callable[..., Any]:
        """Return `fetch`, begun at most once per `app.fetch_interval`, with its completed calls counted."""
        fetcher = self._ensure_consumer()._fetcher  # noqa: SLF001
        interval: float = cast("Any", self.app).fetch_interval

        async def paced(*args: Any) -> Any:
            has_records = False
            try:
                if (pause := self._fetched_at + interval - time.monotonic()) > 0:
                    await asyncio.sleep(pause)
                self._fetched_at = time.monotonic()
                has_records = await fetch(*args)
            except asyncio.CancelledError:  # as `fetch` does: its caller awaits a task that it has cancelled
                return False
            finally:
                self.completed_fetches += 1
                if has_records:
                    self._active_at = time.monotonic()
                is_idle = time.monotonic() - self._active_at > IDLE_SECONDS
                fetcher._fetch_max_wait_ms = IDLE_FETCH_MAX_WAIT_MS if is_idle else FETCH_MAX_WAIT_MS  # noqa: SLF001
            return has_records

        return paced

    def _stopped_set(self) -> None:
        self._stopped.set()

    async def _stop_children(self) -> None:
        await self._default_stop_children()

    async def _stop_futures(self) -> None:
        await self._default_stop_futures()

    async def _stop_exit_stacks(self) -> None:
        await self._default_stop_exit_stacks()

    # ---- interface to Faust -----------------------------------------------------------------------------------------

    async def call_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of Kafka's client on this loop and return its result."""
        result = fun(*args, **kwargs)
        return await result if isawaitable(result) else result

    async def cast_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call a method of Kafka's client on this loop and discard its result."""
        await self.call_thread(fun, *args, **kwargs)

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Pass the revoked partitions on to the consumer. Fetches of the next ones do not wait for the last one."""
        self._active_at = time.monotonic()
        self._ensure_consumer()._fetcher._fetch_max_wait_ms = FETCH_MAX_WAIT_MS  # noqa: SLF001
        if self._connection is not None:
            self._connection.renew()
        await self.consumer.on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """Pass the assigned partitions on to the consumer."""
        self._active_at = time.monotonic()
        await self.consumer.on_partitions_assigned(assigned, generation_id)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek all partitions to their committed offsets, in one request: aiokafka sends one for each partition.

        Faust clears its agents' queues afterwards. Records in them of a partition without a committed offset would
        never be read again, so such a partition is sought to its beginning.
        """
        consumer = self._ensure_consumer()
        committed: dict[Any, Any] = dict.fromkeys(consumer.assignment())
        stored = await consumer._coordinator.fetch_committed_offsets(list(committed))  # noqa: SLF001
        for partition, found in stored.items():
            committed[partition] = found.offset
            if found.offset > 0:
                self._seek_if_needed(partition, found.offset)
        active = self.consumer._get_active_partitions()  # noqa: SLF001
        never = [partition for partition in active if partition in committed and (committed[partition] or 0) <= 0]
        states = consumer._fetcher._subscriptions  # noqa: SLF001
        never = [partition for partition in never if states.is_assigned(partition)]
        if read := [partition for partition in never if states._assigned_state(partition).has_valid_position]:  # noqa: SLF001
            for partition, offset in (await consumer.beginning_offsets(read)).items():
                self._seek_if_needed(partition, offset)
        for partition in never:
            self.consumer.taken.pop(partition, None)
            self.consumer.nothing_taken.add(partition)
        return committed

    async def _seek_wait(self, _: Any, partitions: Mapping[TP, int]) -> None:
        for partition, offset in partitions.items():
            self._seek_if_needed(partition, offset)
            if offset > 0:
                self.consumer._read_offset[partition] = offset  # noqa: SLF001
            else:
                self.consumer._read_offset.pop(partition, None)  # noqa: SLF001

    def _seek_if_needed(self, partition: Any, offset: int) -> None:
        """Seek to `offset` unless the position is there already: a seek discards prefetched records."""
        self.consumer.in_transit.discard(partition)
        self.consumer.taken[partition] = offset
        consumer = self._ensure_consumer()
        state = consumer._subscription._assigned_state(partition)  # noqa: SLF001
        if not (state.has_valid_position and state.position == offset):
            consumer.seek(partition, offset)

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 - Faust's signature
        max_records: int | None = None,
    ) -> Any:
        """Return the records of `active_partitions` that are there now or arrive within `timeout` seconds.

        aiokafka counts records as read when it returns them. While it waits, Faust may stop the flow or lose the
        partitions, and would discard records that arrive then: those of a table's changelog, and of a partition without
        a committed offset, would not be read again. So records are checked and taken in one step, without a wait.
        """
        fetcher = consumer._fetcher  # noqa: SLF001
        records = await self._take(fetcher, active_partitions, max_records)
        if not records:
            with fetcher._subscriptions.fetch_context():  # noqa: SLF001
                news = fetcher._create_fetch_waiter()  # noqa: SLF001
                await asyncio.wait([news], timeout=timeout)
            if news.done():
                news.result()
            else:
                news.cancel()
            records = await self._take(fetcher, active_partitions, max_records)
        return records

    async def _take(self, fetcher: Any, active_partitions: set[TP], max_records: int | None) -> Any:
        if fetcher._closed:  # noqa: SLF001
            raise ConsumerStoppedError
        # Without partitions aiokafka would return records of all of them, and in a rebalance it would wait.
        in_rebalance = fetcher._subscriptions.reassignment_in_progress  # noqa: SLF001
        if not self.consumer.flow_active or not active_partitions or in_rebalance:
            return {}
        records = await fetcher.fetched_records(active_partitions, timeout=0, max_records=max_records)
        for partition, taken in records.items():
            self.consumer.nothing_taken.discard(partition)
            self.consumer.taken[partition] = taken[-1].offset + 1
        return records

    def current_position(self, partition: Any) -> int | None:
        """Return the offset up to which a partition has been read; `None` if it has no position now."""
        return None if self._consumer is None else consumers.position(self._consumer, partition)

    def readable_end(self, partition: Any) -> int | None:
        """Return the offset up to which a partition could be read at the last fetch; `None` before the first one."""
        return None if self._consumer is None else consumers.readable_end(self._consumer, partition)

    def wake_fetches(self) -> None:
        """Wake waiting fetches: records that have arrived already may be taken now."""
        if self._consumer is not None:
            fetcher = self._consumer._fetcher  # noqa: SLF001
            for news in fetcher._fetch_waiters:  # noqa: SLF001
                fetcher._notify(news)  # noqa: SLF001


class LoopConsumer(driver.Consumer):
    """Consumer that passes messages from the fetcher to the agents one after the other, without a task for each."""

    _thread: LoopConsumerThread

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.in_transit: set[TP] = set()
        """Partitions of the records that are being passed on, except those sought meanwhile: they are read again."""
        self.taken: dict[TP, int] = {}
        """The offset behind the last record that was taken from a partition, or that was sought.

        The position may be greater: the offsets in between have no record for the agents. They belong to markers of
        transactions, to records of aborted ones, or to deleted records. They count as acknowledged when everything
        before them is, since nothing comes for them that could be acknowledged.
        """
        self.nothing_taken: set[TP] = set()
        """Partitions without a committed offset from which no record was taken since they were sought."""

    @property
    def completed_fetches(self) -> int:
        """Number of completed fetches: grows as long as Kafka's client tries to read."""
        return self._thread.completed_fetches

    def resume_flow(self) -> None:
        """Allow records to be taken, and wake waiting fetches."""
        super().resume_flow()
        self._thread.wake_fetches()

    def on_buffer_drop(self, tp: TP) -> None:
        """Wake waiting fetches when an agent's full queue has room again.

        The records have been fetched already, so no further event would wake them. Faust's own consumer then does
        nothing for a second.
        """
        was_full = tp in self._buffered_partitions
        super().on_buffer_drop(tp)
        if was_full:
            self._thread.wake_fetches()

    def _new_consumer_thread(self) -> LoopConsumerThread:
        return LoopConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _wait_next_records(
        self,
        timeout: float,  # noqa: ASYNC109 - Faust's signature
    ) -> tuple[Any, set[TP] | None]:
        """Return the next records, and the active partitions; `None` for the records if there are none.

        While the flow is stopped it returns no records, and does not seek. If no partition is active, as at the end of
        a rebalance, Faust's own consumer checks again after a second.
        """
        if not self.flow_active:
            await self.wait(self.can_resume_flow.wait())
        active = self._get_active_partitions()
        if not (active and self.flow_active):
            await asyncio.sleep(RETRY_SECONDS)
            return None, active
        records = await self._getmany(active_partitions=active, timeout=timeout) or None
        self.in_transit = set(records or ())
        self._report_recovered_offsets()
        return records, active

    def _report_recovered_offsets(self) -> None:
        """Count offsets of changelogs without a record as recovered: a recovery waits for the last offset of each."""
        if self.app.in_recovery:
            recovery: Any = cast("Any", self.app.tables).recovery
            for partition in recovery.active_tps:
                taken, position = self.taken.get(partition), self._thread.current_position(partition)
                if position is not None and partition not in self.in_transit:
                    count_as_recovered(self.app, partition, taken, position)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forget what was taken from the revoked partitions.

        They stay in the assignment, with their old positions, until the group has a new one. Records that were taken
        before the position may never have been processed, because Faust has cleared its agents' queues.
        """
        await super().on_partitions_revoked(revoked)
        for partition in revoked:
            self.taken.pop(partition, None)
            self.nothing_taken.discard(partition)

    def has_unfinished_records(self, tp: TP) -> bool:
        """Return whether a partition has records that are not acknowledged, as far as the last fetch said."""
        end, committed = self._thread.readable_end(tp), self._committed_offset[tp]
        if not end:
            return False
        if committed is None and tp not in self.taken:
            position = self._thread.current_position(tp)
            return position is not None and position < end
        return (committed or 0) < end

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        for partition in self.assignment():
            self._acked[partition]  # a partition without an entry is passed over, even if its position has changed
        yield from super()._filter_tps_with_pending_acks(topics)

    def _new_offset(self, tp: TP) -> int | None:
        """Return the offset to commit: the position, if all records that were taken before it are acknowledged."""
        offset: int | None = super()._new_offset(tp)
        position, taken = self._thread.current_position(tp), self.taken.get(tp)
        if not position or not self.app.topics.acks_enabled_for(tp.topic):
            return offset
        done = self._committed_offset[tp] if offset is None else offset
        if taken is None:
            return position if tp in self.nothing_taken and (done or 0) < position else offset
        return position if done is not None and taken <= done < position else offset

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: Any = None) -> bool:  # noqa: ARG002 - Faust's signature
        """Commit `offsets` of the assigned partitions. Faust's own method draws a table for its log each time."""
        assigned = self.assignment()
        if not (offsets := {partition: offset for partition, offset in offsets.items() if partition in assigned}):
            return False
        await self.app.producer.flush()
        committed = await self._commit(offsets)
        if committed:
            self.app.tables.on_commit(cast("Any", offsets))
            self._committed_offset.update(offsets)
        return committed

    async def verify_all_partitions_active(self) -> None:
        """Do nothing: the liveness probe notices a stall. Faust's own method yields to the loop for each partition."""

    async def _drain_messages(self, fetcher: Any) -> None:
        count = 0
        try:
            while not (self.should_stop or fetcher.should_stop):
                await asyncio.sleep(0)
                async for partition, message in self.getmany(timeout=1.0):
                    count += 1
                    if count % YIELD_EVERY == 0:
                        await asyncio.sleep(0)
                    await self._pass_on(partition, message)
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise
        finally:
            self.set_shutdown()

    async def _pass_on(self, partition: Any, message: Any, /) -> None:
        # The flow was stopped, or the partition sought, since the fetch. If this message were passed on after the seek,
        # the offsets in between would count as read.
        if not self.flow_active or partition not in self.in_transit:
            return
        read = self._read_offset[partition]
        if read is not None and message.offset < read:
            return
        if isinstance(message.value, UnreadableBatch) and self._is_changelog_tp(partition):
            # The table is a cache: its source restores the lost entries. It gets the deletion of a key that nobody has,
            # and with it the offset.
            log.error("%s/%s, the changelog of a table: %s", *partition, message.value.explanation)
            message.key, message.value = b"", None
        if read is not None and message.offset - read > 1 and self.app.topics.acks_enabled_for(message.topic):
            await self._add_gap(partition, read + 1, message.offset)
        try:
            await self.callback(message)
        except asyncio.CancelledError:
            # A rebalance that clears a full queue cancels a waiting put. The message will be read again.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        if partition in self.in_transit:  # otherwise the seek has set the offset to read from
            self._read_offset[partition] = message.offset

    @Service.task
    async def _check_client(self) -> None:
        """Raise errors that aiokafka reports only to its own `getmany`, which Faust does not call.

        A crashed fetcher reads nothing more. A coordinator with an error waits until the error is raised, and joins no
        group until then. Both look like quiet topics.
        """
        while not self.should_stop:
            await self.sleep(WATCH_SECONDS)
            consumer = self._thread._consumer  # noqa: SLF001
            if consumer is None or consumer._closed or self.should_stop:  # noqa: SLF001
                continue
            consumer._coordinator.check_errors()  # noqa: SLF001
            ensure_fetcher_alive(consumer)


class Transport(driver.Transport):
    """Faust's aiokafka transport with `LoopConsumer`."""

    Consumer: ClassVar[type[LoopConsumer]] = LoopConsumer
