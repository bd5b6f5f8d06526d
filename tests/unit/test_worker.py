"""An agent's loop without Kafka: when records are acknowledged, and how a worker ends that cannot finish them."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from contracts import cart
from infrastructure.messaging import batch_processor
from infrastructure.messaging import worker as module
from infrastructure.messaging.batch_processor import Handler, ReceivedMessage, Transient
from infrastructure.messaging.worker import LEAVE_SECONDS, Worker
from infrastructure.process.service import EX_TEMPFAIL
from infrastructure.process.settings import Settings
from tests.testkit.envelopes import requested

Handle = Callable[[Sequence[ReceivedMessage[cart.Request]]], Awaitable[None]]
GENERATION = 3


class EndedError(BaseException):
    """Raised where the process would end."""


class Stream:
    """Fake of a Faust stream: the request for the next event acknowledges the one before."""

    def __init__(self, *ids: str, generation: int = GENERATION) -> None:
        self.acknowledged: list[str] = []
        self.channel = SimpleNamespace(queue=asyncio.Queue())
        for number, (id_, record) in enumerate(zip(ids, requested(*ids), strict=True)):
            message = SimpleNamespace(
                topic=record.topic,
                partition=record.partition,
                offset=number,
                key=record.key,
                value=record.value,
                generation_id=generation,
            )
            self.channel.queue.put_nowait(
                SimpleNamespace(message=message, ack=lambda id_=id_: self.acknowledge(id_), id=id_)
            )

    def acknowledge(self, id_: str) -> None:
        self.acknowledged.append(id_)

    async def events(self) -> AsyncIterator[Any]:
        while not self.channel.queue.empty():
            event = self.channel.queue.get_nowait()
            yield event
            event.ack()


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Worker, Callable[[Stream], Awaitable[None]]]]:
    """Return a function that makes a worker with the handler `handle`, and the coroutine that Faust would run."""
    monkeypatch.setattr(asyncio, "set_event_loop_policy", lambda _: None)  # a process sets its policy, tests must not

    def end(status: int) -> None:
        raise EndedError(status)

    monkeypatch.setattr(os, "_exit", end)

    def make(
        handle: Handle, max_batch: int = 100, limit: int = 0
    ) -> tuple[Worker, Callable[[Stream], Awaitable[None]]]:
        async def fail(received: ReceivedMessage[cart.Request], error: Exception) -> None:
            raise AssertionError(received, error)

        worker = Worker(Settings(prefix="t.", dead_letter_limit_per_minute=limit), "cart", topics=())
        worker.app.consumer_generation_id = GENERATION
        worker._running = True
        handler = Handler(cart.REQUESTS, cart.REQUEST_REGISTRY, handle, fail, max_batch_size=max_batch)
        worker.add_agent(handler)
        [registered] = worker.app.agents.values()
        return worker, registered.fun

    return make


async def test_a_batch_is_acknowledged_only_when_all_of_it_is_done(agent: Any) -> None:
    entered, done = asyncio.Event(), asyncio.Event()
    batches: list[list[str | None]] = []

    async def handle(batch: Sequence[ReceivedMessage[cart.Request]]) -> None:
        batches.append([received.event.requestid for received in batch])
        entered.set()
        await done.wait()

    stream = Stream("r1", "r2", "r3")
    _, consume = agent(handle, max_batch=2)
    consuming = asyncio.create_task(consume(stream))
    await entered.wait()
    for _ in range(20):  # enough for it to go on
        await asyncio.sleep(0)
    assert (batches, stream.acknowledged) == ([["r1", "r2"]], [])
    done.set()
    await consuming
    assert batches == [["r1", "r2"], ["r3"]]
    assert sorted(stream.acknowledged) == ["r1", "r2", "r3"]


async def test_events_of_an_earlier_assignment_are_neither_handled_nor_acknowledged(agent: Any) -> None:
    batches: list[list[str | None]] = []

    async def handle(batch: Sequence[ReceivedMessage[cart.Request]]) -> None:
        batches.append([received.event.requestid for received in batch])

    stream, old = Stream("r1"), Stream("r2", generation=GENERATION - 1)
    stream.channel.queue.put_nowait(old.channel.queue.get_nowait())
    _, consume = agent(handle)
    await consume(stream)
    assert batches == [["r1"]]
    assert stream.acknowledged == ["r1"]


async def test_a_cancelled_attempt_ends_the_process_without_acknowledging_it(agent: Any) -> None:
    entered = asyncio.Event()

    async def handle(_: Sequence[ReceivedMessage[cart.Request]]) -> None:
        entered.set()
        await asyncio.sleep(3600)

    stream = Stream("r1", "r2")
    _, consume = agent(handle)
    consuming = asyncio.create_task(consume(stream))
    await entered.wait()
    consuming.cancel()
    with pytest.raises(EndedError, match=str(EX_TEMPFAIL)):
        await consuming
    assert stream.acknowledged == []


@pytest.mark.parametrize("leaving", ["asked to stop", "rebalancing", "crashed"])
async def test_a_leaving_worker_whose_attempt_fails_ends_without_acknowledging_it(
    leaving: str, agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt is retried for some seconds first, since the dependency may recover."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(batch_processor, "FIRST_PAUSE", 0.0)
    attempts = 0

    async def handle(_: Sequence[ReceivedMessage[cart.Request]]) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 2:
            match leaving:
                case "asked to stop":
                    worker.app._stopped.set()
                case "rebalancing":
                    worker.app.rebalancing = True
                case _:
                    worker._running = False
        if attempts == 4:
            clock.now += LEAVE_SECONDS + 0.1
        raise Transient("away")

    stream = Stream("r1")
    worker, consume = agent(handle)
    with pytest.raises(EndedError, match=str(EX_TEMPFAIL)):
        await consume(stream)
    assert (attempts, stream.acknowledged) == (4, [])


@pytest.mark.parametrize("leaving", ["asked to stop", "rebalancing"])
async def test_a_leaving_worker_acknowledges_nothing_of_a_batch_held_at_the_limit(
    leaving: str, agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(batch_processor, "HOLD_SECONDS", 0.0)

    async def handle(_: Sequence[ReceivedMessage[cart.Request]]) -> None:
        raise ValueError("a bug in this deploy")

    stream = Stream(*(f"r{number}" for number in range(30)))
    worker, consume = agent(handle, limit=25)
    letters = 0

    async def send(*_: object) -> None:
        nonlocal letters
        letters += 1

    worker._batch_processors[0].send = send
    consuming = asyncio.create_task(consume(stream))
    while not worker._batch_processors[0].readiness_problem():
        await asyncio.sleep(0)
    if leaving == "rebalancing":
        worker.app.rebalancing = True
    else:
        worker.app._stopped.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not consuming.done(), "a rebalance may be over soon"
    clock.now += LEAVE_SECONDS + 0.1
    with pytest.raises(EndedError, match=str(EX_TEMPFAIL)):
        await consuming
    assert (letters, stream.acknowledged) == (25, [])
