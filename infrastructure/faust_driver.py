"""A Faust transport whose consumer lives on the agents' own loop; broker URLs `holdfast://host:port` choose it.

Faust's own driver runs its consumer in a second thread with a second loop, and makes two tasks for each message that
passes from one to the other. Both loops then wait for the interpreter in turn. Here there is one loop and no task a
message; everything else is Faust's. What it is worth is written down in docs/performance/log.md.

It is also where a consumer is kept from going silent or deaf: no record is taken from Kafka's client that cannot be
handed on, what ends the client's own tasks ends the worker, and who stops says so to the group.
"""

import asyncio
from collections.abc import Callable, Mapping
from inspect import isawaitable
from typing import Any, ClassVar, Final

from aiokafka.errors import ConsumerStoppedError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.services import Service

from infrastructure.broker import check_reading
from infrastructure.leave_group import leave_group

YIELD_EVERY: Final = 100
"""Messages taken over between two chances for others to run."""
LONG_POLL_MS: Final = 250
"""How long a broker keeps a fetch that finds nothing. Whatever is asked behind it on the same connection waits for it:
the first questions after a rebalance, which Faust's own 1500 would hold up for as long."""
RETRY_SECONDS: Final = 0.02
WATCH_SECONDS: Final = 1.0


class LoopConsumerThread(driver.AIOKafkaConsumerThread):
    """The consumer "thread" of Faust, without a thread: the hooks by which loops talk to each other are plain calls."""

    wait_for_shutdown = False
    consumer: "LoopConsumer"

    def __init__(self, consumer: Any, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(consumer, loop=loop, thread_loop=loop, **options)
        self.fetches = 0
        """Fetches that have come to an end, with records, without, or with an error: that something still tries."""

    # ---- its life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start on the loop that is running."""
        self._thread_started.set()
        await self._default_start()

    async def on_start(self) -> None:
        """Connect, and count fetches."""
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher  # noqa: SLF001 - as everywhere in Faust: aiokafka has no other way
        fetcher._proc_fetch_request = self._counted(fetcher._proc_fetch_request)  # noqa: SLF001

    async def stop(self) -> None:
        """Stop, if it was started."""
        if self._started.is_set():
            await Service.stop(self)

    async def on_stop(self) -> None:
        """Leave the group, so that the others need not wait for the session's end."""
        if self._consumer is not None:
            await leave_group(self._consumer)
            await self._consumer.stop()

    def close(self) -> None:
        """Nothing yet. Faust calls it when a rebalance comes while the app stops: the last commit is still to come."""

    def set_shutdown(self) -> None:
        """Nobody is on another loop to be told."""
        self._shutdown.set()

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = LONG_POLL_MS  # noqa: SLF001 - Faust writes its own number into the call
        return consumer

    def _counted(self, fetch: Callable[..., Any]) -> Callable[..., Any]:
        async def counted(*args: Any) -> Any:
            try:
                return await fetch(*args)
            finally:
                self.fetches += 1

        return counted

    def _stopped_set(self) -> None:
        self._stopped.set()

    async def _stop_children(self) -> None:
        await self._default_stop_children()

    async def _stop_futures(self) -> None:
        await self._default_stop_futures()

    async def _stop_exit_stacks(self) -> None:
        await self._default_stop_exit_stacks()

    # ---- what Faust asks of it --------------------------------------------------------------------------------------

    async def call_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of Kafka's client, here."""
        result = fun(*args, **kwargs)
        return await result if isawaitable(result) else result

    async def cast_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """The same, without its result."""
        await self.call_thread(fun, *args, **kwargs)

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Tell the app at once."""
        await self.consumer.on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[Any], generation_id: int = 0) -> None:
        """Tell the app at once."""
        await self.consumer.on_partitions_assigned(assigned, generation_id)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek all partitions to their committed offsets, asked for at once: aiokafka asks for one after the other.

        Faust clears its agents' queues behind this. What lay in them of a partition without a committed offset would
        never be read again, so such a partition goes back to its beginning.
        """
        consumer = self._ensure_consumer()
        committed: dict[Any, Any] = dict.fromkeys(consumer.assignment())
        kept = await consumer._coordinator.fetch_committed_offsets(list(committed))  # noqa: SLF001
        for place, found in kept.items():
            committed[place] = found.offset
            if found.offset > 0:
                self._go_to(place, found.offset)
        active = self.consumer._get_active_partitions()  # noqa: SLF001
        never = [place for place in active if place in committed and (committed[place] or 0) <= 0]
        states = consumer._fetcher._subscriptions  # noqa: SLF001
        never = [place for place in never if states.is_assigned(place)]
        if read := [place for place in never if states._assigned_state(place).has_valid_position]:  # noqa: SLF001
            for place, offset in (await consumer.beginning_offsets(read)).items():
                self._go_to(place, offset)
        return committed

    async def _seek_wait(self, _: Any, partitions: Mapping[TP, int]) -> None:
        for place, offset in partitions.items():
            self._go_to(place, offset)
            if offset > 0:
                self.consumer._read_offset[place] = offset  # noqa: SLF001
            else:
                self.consumer._read_offset.pop(place, None)  # noqa: SLF001

    def _go_to(self, place: Any, offset: int) -> None:
        """Seek, unless it stands there: what is fetched ahead would be fetched again, behind a fetch under way."""
        self.consumer.in_hand.discard(place)
        consumer = self._ensure_consumer()
        state = consumer._subscription._assigned_state(place)  # noqa: SLF001
        if not (state.has_valid_position and state.position == offset):
            consumer.seek(place, offset)

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 - Faust's signature
        max_records: int | None = None,
    ) -> Any:
        """What is there for `active_partitions`, now or at the next news within `timeout` seconds.

        aiokafka counts as read what it hands out. While it waits for news, Faust may stop the flow or give the
        partitions up, and would throw away what then comes: the records of a table's changelog, and of a partition
        without a committed offset, would not be read a second time. So nothing is taken but in one step with the look
        at whether it may be.
        """
        fetcher = consumer._fetcher  # noqa: SLF001
        taken = await self._take(fetcher, active_partitions, max_records)
        if not taken:
            with fetcher._subscriptions.fetch_context():  # noqa: SLF001
                news = fetcher._create_fetch_waiter()  # noqa: SLF001
                await asyncio.wait([news], timeout=timeout)
            if news.done():
                news.result()
            else:
                news.cancel()
            taken = await self._take(fetcher, active_partitions, max_records)
        return taken

    async def _take(self, fetcher: Any, active_partitions: set[TP], max_records: int | None) -> Any:
        if fetcher._closed:  # noqa: SLF001
            raise ConsumerStoppedError
        # Without partitions aiokafka would hand out those of all, and in a rebalance it would wait inside.
        in_rebalance = fetcher._subscriptions.reassignment_in_progress  # noqa: SLF001
        if not self.consumer.flow_active or not active_partitions or in_rebalance:
            return {}
        return await fetcher.fetched_records(active_partitions, timeout=0, max_records=max_records)

    def look_again(self) -> None:
        """Whoever waits for news shall see what has come already: it may be taken now."""
        if self._consumer is not None:
            fetcher = self._consumer._fetcher  # noqa: SLF001
            for news in fetcher._fetch_waiters:  # noqa: SLF001
                fetcher._notify(news)  # noqa: SLF001


class LoopConsumer(driver.Consumer):
    """Takes messages over from the fetcher to the agents, one after the other, without a task for each."""

    _thread: LoopConsumerThread

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.in_hand: set[TP] = set()
        """Partitions of the records that are being taken over, but those that were sought since: they come again."""

    @property
    def fetches(self) -> int:
        """Grows as long as Kafka's client tries to read."""
        return self._thread.fetches

    def resume_flow(self) -> None:
        """Allow records to be taken, at once."""
        super().resume_flow()
        self._thread.look_again()

    def on_buffer_drop(self, tp: TP) -> None:
        """An agent's queue that was full has room again: what is fetched for it may be taken, at once.

        Whoever waits for news would get none, for it is here already. Faust's own then stands still for a second.
        """
        was_full = tp in self._buffered_partitions
        super().on_buffer_drop(tp)
        if was_full:
            self._thread.look_again()

    def _new_consumer_thread(self) -> LoopConsumerThread:
        return LoopConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _wait_next_records(
        self,
        timeout: float,  # noqa: ASYNC109 - Faust's signature
    ) -> tuple[Any, set[TP] | None]:
        """The next records and the partitions they may be of; none when the flow is stopped, and no seek then.

        Faust's own looks again after a second when no partition is active: that is how a rebalance ends.
        """
        if not self.flow_active:
            await self.wait(self.can_resume_flow.wait())
        active = self._get_active_partitions()
        if not (active and self.flow_active):
            await asyncio.sleep(RETRY_SECONDS)
            return None, active
        records = await self._getmany(active_partitions=active, timeout=timeout) or None
        self.in_hand = set(records or ())
        return records, active

    async def _drain_messages(self, fetcher: Any) -> None:
        taken = 0
        try:
            while not (self.should_stop or fetcher.should_stop):
                await asyncio.sleep(0)
                async for place, message in self.getmany(timeout=1.0):
                    taken += 1
                    if taken % YIELD_EVERY == 0:
                        await asyncio.sleep(0)
                    await self._take_over(place, message)
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise
        finally:
            self.set_shutdown()

    async def _take_over(self, place: Any, message: Any) -> None:
        # Stopped or sought since it was fetched: it would come in behind the seek, and count what lies between as read.
        if not self.flow_active or place not in self.in_hand:
            return
        read = self._read_offset[place]
        if read is not None and message.offset < read:
            return
        if read and message.offset - read > 1 and self.app.topics.acks_enabled_for(message.topic):
            await self._add_gap(place, read + 1, message.offset)
        try:
            await self.callback(message)
        except asyncio.CancelledError:
            # A rebalance that clears a full queue cancels who waits to put something in. It will be read again.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        if place in self.in_hand:  # else the seek has said from where to read
            self._read_offset[place] = message.offset

    @Service.task
    async def _watch(self) -> None:
        """Raise what aiokafka keeps for who polls it its own way, which Faust does not.

        A fetcher that has died reads nothing any more; a coordinator with an error waits until it is taken note of, and
        joins no group meanwhile. Both look like a quiet shop.
        """
        while not self.should_stop:
            await self.sleep(WATCH_SECONDS)
            consumer = self._thread._consumer  # noqa: SLF001
            if consumer is None or consumer._closed or self.should_stop:  # noqa: SLF001
                continue
            consumer._coordinator.check_errors()  # noqa: SLF001
            check_reading(consumer)


class Transport(driver.Transport):
    """Faust's aiokafka transport with the consumer above."""

    Consumer: ClassVar[type[LoopConsumer]] = LoopConsumer
