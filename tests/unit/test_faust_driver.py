"""The consumer takes only records that it can pass on, and ends with an error if its fetcher or coordinator does.

The parts of aiokafka that count records as read are the real ones: they do not return a record twice.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.fetcher import Fetcher, FetchResult
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP
from intervaltree import IntervalTree

from infrastructure.messaging.broker import ConsumerCrashedError
from infrastructure.messaging.faust import driver
from infrastructure.messaging.faust.driver import FetchConnection, LoopConsumer, LoopConsumerThread
from infrastructure.messaging.faust.recovery import count_as_recovered
from infrastructure.messaging.liveness import STALL_SECONDS

HERE = TopicPartition("changelog", 0)
TIMEOUT = 60.0
"""Longer than any test: only an event ends the wait."""


class FakeRecord(int):
    """Record that is known by its offset only."""

    @property
    def offset(self) -> int:
        return int(self)


class Fetched:
    """Fake of the records of one partition from one fetch."""

    def __init__(self, first: int, last: int, empty: int = 0) -> None:
        self.next_fetch_offset = first
        self.last = last
        self.empty = empty
        """Number of offsets behind the last record that have none, like the marker of a transaction's end."""

    def __iter__(self) -> Iterator[FakeRecord]:
        while self.next_fetch_offset <= self.last:
            self.next_fetch_offset += 1
            yield FakeRecord(self.next_fetch_offset - 1)
        self.next_fetch_offset += self.empty


class Reader:
    """aiokafka's fetcher with one partition at offset 0, and the driver that takes records from it."""

    def __init__(self) -> None:
        self.subscriptions = SubscriptionState()
        self.subscriptions.subscribe({HERE.topic})
        self.fetcher: Any = Fetcher.__new__(Fetcher)
        self.fetcher.__dict__ |= {
            "_subscriptions": self.subscriptions,
            "_records": {},
            "_fetch_waiters": set(),
            "_closed": False,
            "_wait_consume_future": None,
            "_loop": asyncio.get_running_loop(),
        }
        self.kafka: Any = SimpleNamespace(_fetcher=self.fetcher, _closed=False, _subscription=self.subscriptions)
        self.consumer = SimpleNamespace(flow_active=True, taken={}, nothing_taken=set())
        self.active = {HERE}
        self.assign()

    def assign(self) -> None:
        self.subscriptions.assign_from_subscribed({HERE})
        self.subscriptions.seek(HERE, 0)

    @property
    def position(self) -> int:
        """Offset up to which records count as read."""
        offset: int = self.subscriptions.subscription.assignment.state_value(HERE).position
        return offset

    def comes(self, last: int, empty: int = 0) -> None:
        """Add records as a fetch does."""
        assignment = self.subscriptions.subscription.assignment
        records = Fetched(self.position, last, empty)
        self.fetcher._records[HERE] = FetchResult(HERE, assignment=assignment, partition_records=records, backoff=0)
        for waiter in self.fetcher._fetch_waiters:
            self.fetcher._notify(waiter)

    def taking(self, kind: type[AIOKafkaConsumerThread] = LoopConsumerThread) -> "asyncio.Task[Any]":
        thread: Any = kind.__new__(kind)
        thread.consumer, thread._consumer = self.consumer, self.kafka
        return asyncio.create_task(thread._fetch_records(self.kafka, self.active, timeout=TIMEOUT, max_records=100))


@pytest.fixture
async def reader() -> Reader:
    return Reader()


def stop_flow(reader: Reader) -> None:
    reader.consumer.flow_active = False


def revoke(reader: Reader) -> None:
    reader.active.clear()


def rebalance(reader: Reader) -> None:
    reader.subscriptions.begin_reassignment()


async def test_records_at_hand_are_returned_and_others_waited_for(reader: Reader) -> None:
    reader.comes(last=2)
    assert await reader.taking() == {HERE: [0, 1, 2]}
    taking = reader.taking()
    await asyncio.sleep(0.01)
    reader.comes(last=4)
    assert await taking == {HERE: [3, 4]}
    assert reader.position == 5


@pytest.mark.parametrize("change", [stop_flow, revoke, rebalance])
async def test_records_that_arrive_after_the_flow_has_stopped_are_left_for_later(change: Any, reader: Reader) -> None:
    taking = reader.taking()
    await asyncio.sleep(0.01)
    change(reader)
    reader.comes(last=2)
    assert await taking == {}
    assert reader.position == 0
    reader.consumer.flow_active = True
    reader.active.add(HERE)
    reader.subscriptions.subscription._reassignment_in_progress = False
    assert await reader.taking() == {HERE: [0, 1, 2]}, "it would never have come again"


@pytest.mark.parametrize("change", [stop_flow, revoke])
async def test_fausts_own_driver_still_has_the_fault(change: Any, reader: Reader) -> None:
    """If this fails, Faust or aiokafka has fixed the bug.

    Then `_fetch_records` in infrastructure/messaging/faust/driver.py can go.
    """
    taking = reader.taking(AIOKafkaConsumerThread)
    await asyncio.sleep(0.01)
    change(reader)
    reader.comes(last=2)
    await taking  # its caller discards the records, since the flow is stopped or the partition revoked
    assert reader.position == 3


async def test_records_that_arrived_while_the_flow_was_stopped_are_taken_when_it_resumes(reader: Reader) -> None:
    stop_flow(reader)
    reader.comes(last=2)
    taking = reader.taking()
    await asyncio.sleep(0.01)
    assert not taking.done()
    reader.consumer.flow_active = True
    thread: Any = LoopConsumerThread.__new__(LoopConsumerThread)
    thread._consumer = reader.kafka
    thread.wake_fetches()
    assert await taking == {HERE: [0, 1, 2]}


async def test_records_that_waited_for_a_full_queue_are_taken_when_it_has_room(reader: Reader) -> None:
    consumer: Any = LoopConsumer.__new__(LoopConsumer)
    thread = consumer._thread = LoopConsumerThread.__new__(LoopConsumerThread)
    thread._consumer = reader.kafka
    here, elsewhere = TP(*HERE), TP(HERE.topic, 1)
    reader.active ^= {HERE, elsewhere}
    consumer._active_partitions, consumer._buffered_partitions = reader.active, {here}
    reader.comes(last=2)
    taking = reader.taking()
    await asyncio.sleep(0.01)
    consumer.on_buffer_drop(elsewhere)
    await asyncio.sleep(0.01)
    assert not taking.done()
    consumer.on_buffer_drop(here)
    assert await asyncio.wait_for(taking, TIMEOUT / 10) == {HERE: [0, 1, 2]}


# ---- what is sought while it is being taken over ------------------------------------------------------------------


class PassingOn:
    """Consumer that passes records on to an agent whose queue may be full."""

    def __init__(self, reader: Reader, committed: int) -> None:
        self.reader = reader
        self.handed: list[int] = []
        self.full: asyncio.Future[None] | None = None
        self.thread: Any = LoopConsumerThread.__new__(LoopConsumerThread)
        self.consumer: Any = LoopConsumer.__new__(LoopConsumer)
        self.thread.consumer, self.thread._consumer = self.consumer, reader.kafka
        self.consumer.__dict__ |= {
            "_thread": self.thread,
            "taken": {},
            "nothing_taken": set(),
            "_acked": defaultdict(list),
            "_acked_index": defaultdict(set),
            "_gap": defaultdict(IntervalTree),
            "_read_offset": defaultdict(lambda: None),
            "_committed_offset": defaultdict(lambda: None),
            "_active_partitions": {TP(*HERE)},
            "in_transit": set(),
            "diag": SimpleNamespace(set_flag=lambda _: None, unset_flag=lambda _: None),
            "_paused_partitions": set(),
            "_on_partitions_revoked": self.clear_queues,
            "flow_active": True,
            "callback": self.hand_over,
            "app": SimpleNamespace(
                topics=SimpleNamespace(acks_enabled_for=lambda _: True),
                in_recovery=False,
                _start_span_from_rebalancing=lambda _: nullcontext(),
            ),
            "_add_gap": self.no_gap,
        }
        reader.kafka._max_poll_records = 500
        reader.kafka.assignment = lambda: {TP(*HERE)}
        reader.kafka._coordinator = SimpleNamespace(fetch_committed_offsets=self.committed_offsets)
        reader.kafka._subscription, reader.kafka.seek = reader.subscriptions, reader.fetcher.seek_to
        reader.kafka.beginning_offsets = self.beginnings
        self.committed = committed

    async def beginnings(self, places: list[TP]) -> dict[TP, int]:
        return dict.fromkeys(places, 0)

    async def committed_offsets(self, _: object) -> dict[TP, OffsetAndMetadata]:
        return {TP(*HERE): OffsetAndMetadata(self.committed, "")}

    async def clear_queues(self, _: object) -> None:
        self.handed.clear()

    async def no_gap(self, *_: object) -> None:
        raise AssertionError("what lies between was never read, and would be committed")

    async def hand_over(self, message: Any) -> None:
        if self.full is not None:
            await self.full
        self.handed.append(message.offset)

    async def take(self) -> list[int]:
        records, _ = await self.consumer._wait_next_records(TIMEOUT)
        return list(records[HERE])

    async def take_over(self, offset: int) -> None:
        await self.consumer._pass_on(TP(*HERE), SimpleNamespace(offset=offset, topic=HERE.topic, value=b""))


async def test_a_partition_sought_while_a_queue_was_full_is_read_again_from_there(reader: Reader) -> None:
    """The queue is cleared after a seek, and the one record that waited for it must not count as read."""
    taking = PassingOn(reader, committed=1)
    reader.comes(last=5)
    first, second, third, *others = await taking.take()
    await taking.take_over(first)
    await taking.take_over(second)
    taking.full = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(taking.take_over(third))
    await asyncio.sleep(0.01)
    await taking.consumer.perform_seek()
    taking.full.cancel()
    await waiting
    taking.full, taking.handed = None, []
    for offset in others:
        await taking.take_over(offset)
    assert taking.handed == []
    assert reader.position == 1
    reader.comes(last=5)
    for offset in await taking.take():
        await taking.take_over(offset)
    assert taking.handed == [1, 2, 3, 4, 5]


async def test_a_partition_without_a_committed_offset_is_read_from_its_beginning(reader: Reader) -> None:
    taking = PassingOn(reader, committed=-1)
    reader.comes(last=3)
    first, second, *_ = await taking.take()
    await taking.take_over(first)
    await taking.consumer.perform_seek()
    await taking.take_over(second)
    assert taking.handed == [first]
    assert reader.position == 0


# ---- offsets without a record ---------------------------------------------------------------------------------------


def committable(taking: PassingOn) -> int | None:
    """Return the offset that a commit would store now."""
    offsets: dict[TP, int] = taking.consumer._filter_committable_offsets(
        list(taking.consumer._filter_tps_with_pending_acks())
    )
    taking.consumer._committed_offset.update(offsets)
    return offsets.get(TP(*HERE))


def acknowledge(taking: PassingOn, *offsets: int) -> None:
    for offset in offsets:
        taking.consumer._acked_index[TP(*HERE)].add(offset)
        taking.consumer._acked[TP(*HERE)].append(offset)


@pytest.fixture
def taking(reader: Reader) -> PassingOn:
    passing = PassingOn(reader, committed=-1)
    passing.consumer.assignment = reader.kafka.assignment
    return passing


async def test_offsets_behind_the_last_record_are_committed_when_it_is_acknowledged(
    reader: Reader, taking: PassingOn
) -> None:
    """The marker of a transaction is the last offset of its partition, and nothing ever comes for it."""
    reader.comes(last=1, empty=2)
    for offset in await taking.take():
        await taking.take_over(offset)
    assert committable(taking) is None
    acknowledge(taking, 0)
    assert committable(taking) == 1
    acknowledge(taking, 1)
    assert committable(taking) == 4
    assert committable(taking) is None


async def test_further_offsets_without_a_record_are_committed_too(reader: Reader, taking: PassingOn) -> None:
    """A committed transaction is followed by an aborted one: nothing is taken in between."""
    reader.comes(last=0, empty=1)
    for offset in await taking.take():
        await taking.take_over(offset)
    acknowledge(taking, 0)
    assert committable(taking) == 2
    reader.subscriptions.seek(HERE, 4)  # as the fetcher does behind an empty batch
    assert committable(taking) == 4


async def test_a_partition_without_any_record_is_committed_too(reader: Reader, taking: PassingOn) -> None:
    await taking.consumer.perform_seek()
    reader.subscriptions.seek(HERE, 5)  # the records before were deleted, or belong to an aborted transaction
    assert committable(taking) == 5


async def test_nothing_is_committed_over_records_that_are_passed_on(reader: Reader, taking: PassingOn) -> None:
    reader.comes(last=1, empty=1)
    await taking.take()
    assert committable(taking) is None
    await taking.take_over(0)
    assert committable(taking) is None


async def test_nothing_is_committed_for_a_revoked_partition(reader: Reader, taking: PassingOn) -> None:
    """Faust clears its agents' queues at once, and the old position stays until the group has a new assignment."""
    await taking.consumer.perform_seek()
    reader.comes(last=3)
    for offset in await taking.take():
        await taking.take_over(offset)
    acknowledge(taking, 0)
    assert committable(taking) == 1
    await taking.consumer.on_partitions_revoked({TP(*HERE)})
    assert reader.position == 4
    assert committable(taking) is None
    await taking.consumer.perform_seek()
    assert committable(taking) is None


async def test_a_position_that_was_reset_over_deleted_records_is_committed(reader: Reader, taking: PassingOn) -> None:
    taking.consumer._committed_offset[TP(*HERE)] = taking.consumer.taken[TP(*HERE)] = 3
    reader.subscriptions.seek(HERE, 9)
    assert committable(taking) == 9


@pytest.mark.parametrize(
    ("committed", "taken", "position", "end", "unfinished"),
    [
        (None, None, 4, 4, False),
        (None, None, 2, 4, True),
        (None, 4, 4, 4, True),
        (4, 4, 4, 4, False),
        (3, 4, 4, 4, True),
        (4, 4, 4, 9, True),
    ],
)
async def test_work_is_what_is_not_acknowledged_up_to_the_readable_end(  # noqa: PLR0917
    reader: Reader,
    taking: PassingOn,
    committed: int | None,
    taken: int | None,
    position: int,
    end: int,
    unfinished: bool,
) -> None:
    reader.subscriptions.seek(HERE, position)
    state = reader.subscriptions.subscription.assignment.state_value(HERE)
    state.highwater, state.lso = 100, end  # records of an open transaction are between
    taking.consumer._committed_offset[TP(*HERE)] = committed
    if taken is not None:
        taking.consumer.taken[TP(*HERE)] = taken
    assert taking.consumer.has_unfinished_records(TP(*HERE)) is unfinished


# ---- fetches --------------------------------------------------------------------------------------------------------


class Broker:
    """Kafka's client that answers fetches with `has_records` and keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[type, object]] = []
        self.cluster = object()
        self._conns: dict[tuple[int, object], Any] = {}

    async def send(self, node: int, request: object, *, group: object = "default") -> str:
        self.sent.append((type(request), group))
        self._conns.setdefault((node, group), SimpleNamespace(close=lambda: self.sent.append((type(None), group))))
        return "response"


def fetch_request() -> FetchRequest:
    return FetchRequest(250, 1, 1, 0, [])


async def test_a_fetch_delays_no_other_request_and_a_rebalance_no_later_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "IDLE_FETCH_MAX_WAIT_MS", -1000)  # the old connection is closed at once
    broker = Broker()
    connection = FetchConnection(broker)
    assert await connection.send(1, fetch_request()) == "response"
    await connection.send(1, "offsets")
    connection.renew()
    await connection.send(1, fetch_request())
    await asyncio.sleep(0.01)
    groups = [group for _, group in broker.sent]
    assert groups == ["fetch-0", "default", "fetch-1", "fetch-0"]
    assert list(broker._conns) == [(1, "default"), (1, "fetch-1")]


def pacing(reader: Reader, interval: float = 0.0) -> Any:
    thread: Any = LoopConsumerThread.__new__(LoopConsumerThread)
    thread._consumer = reader.kafka
    thread.app = SimpleNamespace(fetch_interval=interval)
    thread.completed_fetches, thread._active_at, thread._fetched_at = 0, time.monotonic(), 0.0
    return thread


async def test_a_broker_holds_fetches_of_an_idle_worker_for_longer(reader: Reader) -> None:
    thread, found = pacing(reader), [False]

    async def fetch() -> bool:
        return found[0]

    paced = thread._pace_fetches(fetch)
    assert await paced() is False
    assert reader.fetcher._fetch_max_wait_ms == driver.FETCH_MAX_WAIT_MS
    thread._active_at -= driver.IDLE_SECONDS + 1
    await paced()
    assert reader.fetcher._fetch_max_wait_ms == driver.IDLE_FETCH_MAX_WAIT_MS
    found[0] = True
    assert await paced() is True
    assert reader.fetcher._fetch_max_wait_ms == driver.FETCH_MAX_WAIT_MS
    assert thread.completed_fetches == 3


def test_an_idle_worker_does_not_look_stalled() -> None:
    """A completed fetch is the only sign of life of an idle worker."""
    assert 2 * driver.IDLE_FETCH_MAX_WAIT_MS / 1000 < STALL_SECONDS


async def test_fetches_of_a_service_that_nobody_waits_for_have_an_interval(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def fetch() -> bool:
        return True

    paced = pacing(reader, interval=60.0)._pace_fetches(fetch)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await paced()
    assert pauses == []
    await paced()
    assert [round(pause, -1) for pause in pauses] == [60.0]


async def test_a_cancelled_pause_ends_like_a_cancelled_fetch(reader: Reader) -> None:
    """aiokafka awaits the tasks that it has cancelled, and expects no error."""

    async def fetch() -> bool:
        return True

    paced = pacing(reader, interval=60.0)._pace_fetches(fetch)
    await paced()
    waiting = asyncio.create_task(paced())
    await asyncio.sleep(0.01)
    waiting.cancel()
    assert await waiting is False


async def test_a_failed_fetch_counts_as_completed(reader: Reader) -> None:
    async def fetch() -> bool:
        raise ConnectionError

    thread = pacing(reader)
    with pytest.raises(ConnectionError):
        await thread._pace_fetches(fetch)()
    assert thread.completed_fetches == 1


# ---- commits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", [True, False])
async def test_only_an_accepted_commit_counts(taking: PassingOn, accepted: bool) -> None:
    """Faust's own method remembers a commit that the group refused, and never makes it again."""
    committed: list[dict[TP, int]] = []

    async def commit(offsets: dict[TP, int]) -> bool:
        committed.append(offsets)
        return accepted

    async def flush() -> None:
        """Do nothing: nothing was sent."""

    taking.consumer._commit = commit
    taking.consumer.app.producer = SimpleNamespace(flush=flush)
    taking.consumer.app.tables = SimpleNamespace(on_commit=lambda _: None)
    assert await taking.consumer._commit_offsets({TP(*HERE): 5, TP("revoked", 1): 7}) is accepted
    assert committed == [{TP(*HERE): 5}]
    assert taking.consumer._committed_offset[TP(*HERE)] == (5 if accepted else None)
    assert await taking.consumer._commit_offsets({TP("revoked", 1): 7}) is False
    assert len(committed) == 1


class Recovering:
    """Recovery of a table with one changelog, of which the record at offset 3 was applied last."""

    def __init__(self, end: int) -> None:
        self.tables = SimpleNamespace(recovery=self)
        self.active_tps = {TP(*HERE)}
        self.active_offsets = Counter({TP(*HERE): 3})
        self.end = end
        self.in_recovery = True
        self.signal_recovery_end = asyncio.Event()
        self.flushed = 0

    def need_recovery(self) -> bool:
        return self.active_offsets[TP(*HERE)] < self.end - 1

    def flush_buffers(self) -> None:
        self.flushed += 1

    def _set_recovery_ended(self) -> None:
        self.in_recovery = False


async def test_a_recovery_ends_at_offsets_without_a_record() -> None:
    app = Recovering(end=6)
    count_as_recovered(app, TP(*HERE), 5, 6)
    assert app.active_offsets[TP(*HERE)] == 3, "the record at offset 4 is still on its way"
    count_as_recovered(app, TP(*HERE), 4, 5)
    assert (app.in_recovery, app.flushed) == (True, 0)
    count_as_recovered(app, TP(*HERE), 4, 6)
    assert (app.in_recovery, app.flushed, app.signal_recovery_end.is_set()) == (False, 1, True)


# ---- what ends it ---------------------------------------------------------------------------------------------------


class Watched:
    """Consumer that checks its client at once: once, or twice if nothing is wrong."""

    def __init__(self, reading: "asyncio.Future[None]", error: Exception | None = None) -> None:
        self.looks = 0
        self.error = error
        self._closed = False
        self._consumer = self._coordinator = self._thread = self
        self._fetcher = SimpleNamespace(_fetch_task=reading)

    @property
    def should_stop(self) -> bool:
        return self.looks == 2

    async def sleep(self, _: float) -> None:
        self.looks += 1

    def check_errors(self) -> None:
        if self.error:
            raise self.error


async def watch(watched: Watched) -> None:
    task: Any = next(each for each in vars(LoopConsumer).values() if getattr(each, "fun", None) is not None)
    assert task.fun.__name__ == "_check_client"
    await task.fun(watched)


async def test_a_crashed_fetcher_crashes_the_worker() -> None:
    reading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    await watch(Watched(reading))
    reading.set_exception(OSError("gone"))
    with pytest.raises(ConsumerCrashedError) as died:
        await watch(Watched(reading))
    assert isinstance(died.value.__cause__, OSError)
    reading = asyncio.get_running_loop().create_future()
    reading.cancel()
    with pytest.raises(ConsumerCrashedError):
        await watch(Watched(reading))


async def test_an_error_of_the_coordinator_crashes_the_worker() -> None:
    reading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(PermissionError):
        await watch(Watched(reading, PermissionError("not your group")))
