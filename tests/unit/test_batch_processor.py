import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import orjson
import pytest

from contracts import cart
from infrastructure.messaging import batch_processor as module
from infrastructure.messaging.batch_processor import BatchProcessor, Handler, ReceivedMessage, Transient
from infrastructure.messaging.broker import partition_of
from infrastructure.messaging.dead_letter_limit import MIN_RECORDS, DeadLetterLimit
from infrastructure.messaging.dead_letters import Record
from infrastructure.observability import metrics
from infrastructure.process.settings import Settings
from tests.testkit.envelopes import EVENT, GOLDEN, HERE, PARTITIONS, TOPIC, changed, record, requested


@dataclass
class HandlerSpy:
    """A handler that records its calls and the sent records, with planned failures."""

    handle: Callable[[Sequence[ReceivedMessage[cart.Request]]], Awaitable[None]] | None = None
    batches: list[list[str]] = field(default_factory=list)
    failed: list[tuple[str, int]] = field(default_factory=list)
    """Requests whose permanent failure was handled, each with the number of dead letters sent by then."""
    sent: list[tuple[str, bytes | None, bytes]] = field(default_factory=list)
    refuse_sends: int = 0
    shutdown_calls: int = 0
    limit: DeadLetterLimit | None = None
    prefilter: Callable[[bytes], bool] | None = None
    end_process: Callable[[], None] | None = None

    def processor(self) -> BatchProcessor[cart.Request]:
        handler = Handler(cart.REQUESTS, cart.REQUEST_REGISTRY, self._handle, self._fail, prefilter=self.prefilter)
        return BatchProcessor(
            handler,
            Settings(partitions=PARTITIONS),
            service="cart",
            send=self._send,
            on_shutdown=self._on_shutdown,
            limit=self.limit,
        )

    async def _handle(self, batch: Sequence[ReceivedMessage[cart.Request]]) -> None:
        self.batches.append([received.event.requestid or "" for received in batch])
        if self.handle:
            await self.handle(batch)

    async def _fail(self, received: ReceivedMessage[cart.Request], _: Exception) -> None:
        self.failed.append((received.event.requestid or "", len(self.dead_letters())))

    async def _send(self, topic: str, key: bytes | None, value: bytes) -> None:
        if self.refuse_sends:
            self.refuse_sends -= 1
            raise Transient("the broker is away")
        self.sent.append((topic, key, value))

    def _on_shutdown(self) -> None:
        self.shutdown_calls += 1
        if self.end_process is not None:
            self.end_process()

    def dead_letters(self) -> list[dict[str, object]]:
        return [orjson.loads(value)["data"] for topic, _, value in self.sent if topic.endswith(".dlq")]


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.0)


async def test_a_batch_is_handled_in_order_and_once() -> None:
    spy = HandlerSpy()
    await spy.processor()(requested("a", "b", "c"))
    assert spy.batches == [["a", "b", "c"]]
    assert spy.sent == []


async def test_a_transient_failure_is_retried_without_loss() -> None:
    attempts = 0

    async def handle(_: object) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise ConnectionResetError

    spy = HandlerSpy(handle)
    await spy.processor()(requested("a", "b"))
    assert spy.batches == [["a", "b"]] * 4
    assert spy.shutdown_calls == 3  # called after each failure
    assert spy.dead_letters() == []


async def test_one_bad_request_in_a_batch_is_found_dead_lettered_and_decided() -> None:
    async def handle(batch: Sequence[ReceivedMessage[cart.Request]]) -> None:
        if any(received.event.requestid == "bad" for received in batch):
            raise ValueError("it cannot be")

    spy = HandlerSpy(handle)
    await spy.processor()(requested("a", "bad", "c"))
    assert spy.batches == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]
    assert spy.failed == [("bad", 1)]  # the dead letter comes first: a crash between the two loses neither
    (dead_letter,) = spy.dead_letters()
    assert dead_letter["reason"] == "failed"
    assert dead_letter["detail"] == "ValueError: it cannot be"
    assert dead_letter["value"] == changed(requestid="bad").decode()
    assert (dead_letter["topic"], dead_letter["partition"], dead_letter["offset"]) == (TOPIC, HERE, 1)


async def test_a_record_on_a_wrong_partition_is_sent_to_its_own() -> None:
    spy = HandlerSpy()
    await spy.processor()([record(partition=(HERE + 1) % PARTITIONS)])
    assert spy.batches == []
    assert spy.sent == [(TOPIC, b"ann", GOLDEN)]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (record(key=None), "no_key"),
        (record(key=b"bob"), "wrong_key"),
        (record(b"hello"), "not_json"),
        (record(changed(type="holdfast.cart.steal")), "unknown_type"),
        (record(b"x" * 900_000), "too_big"),
    ],
)
async def test_an_unreadable_record_is_dead_lettered_whole_and_the_next_is_handled(given: Record, reason: str) -> None:
    spy = HandlerSpy()
    await spy.processor()([given, *requested("a")])
    (dead_letter,) = spy.dead_letters()
    assert dead_letter["reason"] == reason
    assert dead_letter["value"] == (given.value or b"").decode()
    assert spy.sent[0][1] == given.key
    assert spy.batches == [["a"]]


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"\x00" * 900_000])
async def test_bytes_that_are_no_text_are_kept_as_base64(raw: bytes) -> None:
    spy = HandlerSpy()
    await spy.processor()([record(raw)])
    (dead_letter,) = spy.dead_letters()
    assert base64.b64decode(str(dead_letter["value_base64"])) == raw
    assert len(spy.sent[0][2]) < 2 * 1024 * 1024


async def test_a_dead_letter_waits_for_the_broker() -> None:
    spy = HandlerSpy(refuse_sends=3)
    await spy.processor()([record(b"hello"), *requested("a")])
    assert len(spy.dead_letters()) == 1
    assert spy.batches == [["a"]]


async def test_the_same_record_makes_the_same_dead_letter() -> None:
    spy = HandlerSpy()
    for _ in range(2):
        await spy.processor()([record(b"hello")])
    ids = {orjson.loads(value)["id"] for _, _, value in spy.sent}
    assert ids == {f"{TOPIC}/{HERE}/7"}


def test_partitions_of_keys_are_those_of_java() -> None:
    # Known answers of Kafka's own Utils.murmur2, for 24 partitions.
    assert EVENT.key == b"ann"
    assert {partition_of(str(number).encode(), 24) for number in range(500)} == set(range(24))


# ---- the dead-letter limit ------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class EndedError(BaseException):
    """Raised where the process would end."""


def bad(count: int) -> list[Record]:
    return [record(b"hello", offset=offset) for offset in range(count)]


def test_the_limit_is_not_reached_by_the_rate_alone() -> None:
    limit = DeadLetterLimit(100, 0.5, clock=Clock())
    limit.count_seen(1000)
    for _ in range(499):
        limit.count_dead_letter()
    assert not limit.reached


def test_the_limit_is_not_reached_by_the_share_alone() -> None:
    limit = DeadLetterLimit(100, 0.5, clock=Clock())
    limit.count_seen(99)
    for _ in range(99):
        limit.count_dead_letter()
    assert not limit.reached


def test_the_limit_is_reached_by_rate_and_share_together() -> None:
    limit = DeadLetterLimit(100, 0.5, clock=Clock())
    limit.count_seen(150)
    for _ in range(100):
        assert not limit.reached
        limit.count_dead_letter()
    assert limit.reached


def test_the_share_of_a_few_records_is_not_judged() -> None:
    limit = DeadLetterLimit(3, 0.5, clock=Clock())
    limit.count_seen(MIN_RECORDS - 1)
    for _ in range(MIN_RECORDS - 1):
        assert not limit.reached
        limit.count_dead_letter()
    assert limit.reached


def test_a_limit_of_zero_is_never_reached() -> None:
    limit = DeadLetterLimit(0, 0.0, clock=Clock())
    limit.count_seen(10_000)
    for _ in range(10_000):
        limit.count_dead_letter()
    assert not limit.reached


def test_records_are_counted_over_a_sliding_minute() -> None:
    clock = Clock()
    limit = DeadLetterLimit(100, 0.5, clock=clock)
    limit.count_seen(60)
    for _ in range(60):
        limit.count_dead_letter()
    clock.seconds += 40
    limit.count_seen(40)
    for _ in range(40):
        limit.count_dead_letter()
    assert limit.reached
    clock.seconds += 21  # the first ones are more than a minute old
    assert (limit.seen, limit.dead_lettered) == (40, 40)
    assert not limit.reached


async def test_at_the_limit_the_batch_is_held_and_nothing_more_is_dead_lettered() -> None:
    spy = HandlerSpy(limit=DeadLetterLimit(30, 0.5, clock=Clock()))
    processor = spy.processor()
    await processor(bad(30))
    assert processor.readiness_problem() is None
    holding = asyncio.create_task(processor([*bad(1), *requested("a")]))
    before = processor.attempts
    for _ in range(20):
        await asyncio.sleep(0)
    assert not holding.done()
    assert len(spy.dead_letters()) == 30
    assert spy.batches == [], "the records behind it are held too"
    assert spy.shutdown_calls > 1, "it must go on checking whether the process must end"
    assert processor.attempts > before, "to the liveness probe, a held batch is not a stall"
    holding.cancel()


async def test_a_held_batch_makes_the_worker_unready_with_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    spy = HandlerSpy(limit=DeadLetterLimit(30, 0.5, clock=Clock()))
    processor = spy.processor()
    holding = asyncio.create_task(processor(bad(31)))
    for _ in range(200):
        await asyncio.sleep(0)
    problem = processor.readiness_problem() or ""
    for part in (TOPIC, "30 of 31 records", "not_json", "holdfast dlq list", "restart", "DEAD_LETTER_LIMIT_PER_MINUTE"):
        assert part in problem
    assert problem in caplog.messages
    assert metrics.DEAD_LETTER_PAUSED.labels(TOPIC)._value.get() == 1
    holding.cancel()


async def test_a_held_batch_stays_held_when_its_minute_is_over() -> None:
    clock = Clock()
    spy = HandlerSpy(limit=DeadLetterLimit(30, 0.5, clock=clock))
    processor = spy.processor()
    holding = asyncio.create_task(processor(bad(31)))
    for _ in range(200):
        await asyncio.sleep(0)
    clock.seconds += 3600
    for _ in range(200):
        await asyncio.sleep(0)
    assert not holding.done()
    assert len(spy.dead_letters()) == 30
    holding.cancel()


async def test_a_handler_that_fails_on_everything_reaches_the_limit_too() -> None:
    async def handle(_: object) -> None:
        raise ValueError("a bug")

    spy = HandlerSpy(handle, limit=DeadLetterLimit(30, 0.5, clock=Clock()))
    processor = spy.processor()
    holding = asyncio.create_task(processor(requested(*(str(number) for number in range(40)))))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not holding.done()
    assert len(spy.dead_letters()) == len(spy.failed) == 30
    assert "a bug" in (processor.readiness_problem() or "")
    holding.cancel()


async def test_bad_records_among_good_traffic_do_not_reach_the_limit() -> None:
    spy = HandlerSpy(limit=DeadLetterLimit(30, 0.5, clock=Clock()))
    for _ in range(10):
        await spy.processor()([*requested(*(str(number) for number in range(20))), *bad(10)])
    assert len(spy.dead_letters()) == 100


async def test_records_that_the_prefilter_skips_do_not_count_for_the_share() -> None:
    spy = HandlerSpy(limit=DeadLetterLimit(30, 0.5, clock=Clock()), prefilter=lambda value: value == b"hello")
    processor = spy.processor()
    holding = asyncio.create_task(processor([*requested(*(str(number) for number in range(100))), *bad(31)]))
    for _ in range(400):
        await asyncio.sleep(0)
    assert not holding.done()
    assert processor.readiness_problem()
    holding.cancel()


async def test_a_process_that_must_end_does_not_acknowledge_a_held_batch() -> None:
    def end_process() -> None:
        raise EndedError

    spy = HandlerSpy(limit=DeadLetterLimit(30, 0.5, clock=Clock()), end_process=end_process)
    with pytest.raises(EndedError):
        await spy.processor()(bad(31))
    assert len(spy.dead_letters()) == 30
