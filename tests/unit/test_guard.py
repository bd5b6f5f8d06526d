import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import orjson
import pytest

from cart_service import messages as cart
from infrastructure import guard as module
from infrastructure.broker import partition_of
from infrastructure.dead_letters import Record
from infrastructure.guard import Guard, Handler, Received, Transient
from tests.unit.test_envelope import EVENT, GOLDEN, changed

PARTITIONS = 24
HERE = partition_of(b"ann", PARTITIONS)
TOPIC = cart.REQUESTS.name


@dataclass
class Shell:
    """What a handler did and what was sent, and what goes wrong when."""

    handle: Callable[[Sequence[Received[cart.Request]]], Awaitable[None]] | None = None
    batches: list[list[str]] = field(default_factory=list)
    failed: list[tuple[str, int]] = field(default_factory=list)
    """What was decided to have failed, and how many letters were sent by then."""
    sent: list[tuple[str, bytes | None, bytes]] = field(default_factory=list)
    refuse_sends: int = 0
    left: int = 0

    def guard(self) -> Guard[cart.Request]:
        handler = Handler(cart.REQUESTS, cart.REQUEST_VOCABULARY, self._handle, self._fail)
        return Guard(handler, service="cart", name=TOPIC, partitions=PARTITIONS, send=self._send, leaving=self._leaving)

    async def _handle(self, batch: Sequence[Received[cart.Request]]) -> None:
        self.batches.append([received.event.requestid or "" for received in batch])
        if self.handle:
            await self.handle(batch)

    async def _fail(self, received: Received[cart.Request], _: Exception) -> None:
        self.failed.append((received.event.requestid or "", len(self.letters())))

    async def _send(self, topic: str, key: bytes | None, value: bytes) -> None:
        if self.refuse_sends:
            self.refuse_sends -= 1
            raise Transient("the broker is away")
        self.sent.append((topic, key, value))

    def _leaving(self) -> None:
        self.left += 1

    def letters(self) -> list[dict[str, object]]:
        return [orjson.loads(value)["data"] for topic, _, value in self.sent if topic.endswith(".dlq")]


def record(value: bytes | None = GOLDEN, key: bytes | None = b"ann", partition: int = HERE, offset: int = 7) -> Record:
    return Record(TOPIC, partition, offset, key, value)


def requested(*ids: str) -> list[Record]:
    return [record(changed(requestid=each), offset=offset) for offset, each in enumerate(ids)]


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0)


async def test_a_batch_is_handled_in_order_and_once() -> None:
    shell = Shell()
    await shell.guard()(requested("a", "b", "c"))
    assert shell.batches == [["a", "b", "c"]]
    assert shell.sent == []


async def test_what_may_succeed_later_is_tried_again_and_loses_nothing() -> None:
    attempts = 0

    async def handle(_: object) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise ConnectionResetError

    shell = Shell(handle)
    await shell.guard()(requested("a", "b"))
    assert shell.batches == [["a", "b"]] * 4
    assert shell.left == 3  # asked after each failure whether to leave
    assert shell.letters() == []


async def test_one_bad_request_in_a_batch_is_found_answered_and_put_aside() -> None:
    async def handle(batch: Sequence[Received[cart.Request]]) -> None:
        if any(received.event.requestid == "bad" for received in batch):
            raise ValueError("it cannot be")

    shell = Shell(handle)
    await shell.guard()(requested("a", "bad", "c"))
    assert shell.batches == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]
    assert shell.failed == [("bad", 1)]  # its letter comes first: who dies between the two loses neither
    (letter,) = shell.letters()
    assert letter["reason"] == "failed"
    assert letter["detail"] == "ValueError: it cannot be"
    assert letter["value"] == changed(requestid="bad").decode()
    assert (letter["topic"], letter["partition"], letter["offset"]) == (TOPIC, HERE, 1)


async def test_a_record_on_a_wrong_partition_is_sent_again_with_its_key() -> None:
    shell = Shell()
    await shell.guard()([record(partition=(HERE + 1) % PARTITIONS)])
    assert shell.batches == []
    assert shell.sent == [(TOPIC, b"ann", GOLDEN)]


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
async def test_what_can_not_be_read_is_put_aside_whole_and_the_rest_goes_on(given: Record, reason: str) -> None:
    shell = Shell()
    await shell.guard()([given, *requested("a")])
    (letter,) = shell.letters()
    assert letter["reason"] == reason
    assert letter["value"] == (given.value or b"").decode()
    assert shell.sent[0][1] == given.key
    assert shell.batches == [["a"]]


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"\x00" * 900_000])
async def test_bytes_that_text_can_not_carry_are_kept_as_base64(raw: bytes) -> None:
    shell = Shell()
    await shell.guard()([record(raw)])
    (letter,) = shell.letters()
    assert base64.b64decode(str(letter["value_base64"])) == raw
    assert len(shell.sent[0][2]) < 2 * 1024 * 1024


async def test_a_dead_letter_waits_for_the_broker() -> None:
    shell = Shell(refuse_sends=3)
    await shell.guard()([record(b"hello"), *requested("a")])
    assert len(shell.letters()) == 1
    assert shell.batches == [["a"]]


async def test_the_same_record_makes_the_same_dead_letter() -> None:
    shell = Shell()
    for _ in range(2):
        await shell.guard()([record(b"hello")])
    ids = {orjson.loads(value)["id"] for _, _, value in shell.sent}
    assert ids == {f"{TOPIC}/{HERE}/7"}


def test_keys_lie_where_java_puts_them() -> None:
    # Known answers of Kafka's own Utils.murmur2, for 24 partitions.
    assert EVENT.key == b"ann"
    assert {partition_of(str(number).encode(), 24) for number in range(500)} == set(range(24))
