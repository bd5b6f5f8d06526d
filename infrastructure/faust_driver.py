"""A Faust transport whose consumer lives on the agents' own loop; broker URLs `holdfast://host:port` choose it.

Faust's own driver runs its consumer in a second thread with a second loop, and makes two tasks for each message that
passes from one to the other. Both loops then wait for the interpreter in turn. Here there is one loop and no task a
message; everything else is Faust's. What it is worth is written down in docs/performance/log.md.
"""

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from typing import Any, ClassVar

from faust.transport.drivers import aiokafka as driver
from mode.services import Service

YIELD_EVERY = 100
"""Messages taken over between two chances for others to run."""


class LoopConsumerThread(driver.AIOKafkaConsumerThread):
    """The consumer "thread" of Faust, without a thread: the hooks by which loops talk to each other are plain calls."""

    wait_for_shutdown = False

    def __init__(self, consumer: Any, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(consumer, loop=loop, thread_loop=loop, **options)

    async def start(self) -> None:
        """Start on the loop that is running."""
        self._thread_started.set()
        await self._default_start()

    async def stop(self) -> None:
        """Stop, if it was started."""
        if self._started.is_set():
            await Service.stop(self)

    async def on_stop(self) -> None:
        """Leave the group as Kafka's client does."""
        if self._consumer is not None:
            await self._consumer.stop()

    def set_shutdown(self) -> None:
        """Nobody is on another loop to be told."""
        self._shutdown.set()

    def _stopped_set(self) -> None:
        self._stopped.set()

    async def _stop_children(self) -> None:
        await self._default_stop_children()

    async def _stop_futures(self) -> None:
        await self._default_stop_futures()

    async def _stop_exit_stacks(self) -> None:
        await self._default_stop_exit_stacks()

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


class LoopConsumer(driver.Consumer):
    """Takes messages over from the fetcher to the agents, one after the other, without a task for each."""

    def _new_consumer_thread(self) -> LoopConsumerThread:
        return LoopConsumerThread(self, loop=self.loop, beacon=self.beacon)

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
        self._read_offset[place] = message.offset


class Transport(driver.Transport):
    """Faust's aiokafka transport with the consumer above."""

    Consumer: ClassVar[type[LoopConsumer]] = LoopConsumer
