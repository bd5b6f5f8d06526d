"""Audits of topics: each kind of damage is planted once, beside a request without any."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from cart_service import audit as of_carts
from cart_service.model import Cart as Kept
from cart_service.model import to_response
from contracts import cart, inventory
from contracts.envelope import Envelope, Message
from infrastructure.audit.topic_auditor import (
    MAX_LISTED,
    REST_FACTOR,
    ROUND_FACTOR,
    AuditWindow,
    TopicAuditor,
    throttled,
    truncate_violations,
)
from infrastructure.messaging import dead_letters
from infrastructure.process.settings import Settings
from inventory_service import audit_topics as of_inventory
from inventory_service.state import EXPIRY_PREFIX, STEP_PREFIX

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)
WINDOW = AuditWindow(NOW, timedelta(seconds=30), timedelta(days=7))
SETTINGS = Settings(prefix="t.")
HELD = inventory.Held(product="TEAPOT", quantity=2, line_quantity=2, expires_at=NOW, version=1)
REFUSED = inventory.Refused(product="TEAPOT", reason="out_of_stock", available=0)
CART = inventory.Cart(revision=1)


@dataclass
class Record:
    """A record as a consumer returns it."""

    topic: str
    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int
    partition: int = 0


class Topics:
    """Topics in memory, and the audit that reads them."""

    def __init__(self, readers: Mapping[str, Callable[[Any], None]]) -> None:
        self.readers = readers
        self.offset = 0

    def put(self, topic: str, key: bytes | None, value: bytes | None, at: datetime = LONG_AGO) -> Record:
        self.offset += 1
        record = Record(f"t.{topic}", key, value, self.offset, int(at.timestamp() * 1000))
        self.readers[record.topic](record)
        return record

    def send(
        self,
        topic: str,
        message: Message,
        id_: str = "r1",
        *,
        user: str = "ann",
        at: datetime = LONG_AGO,
        accepted: datetime | None = None,
    ) -> Record:
        event = Envelope(
            id=f"{user}/{id_}",
            source={"cart.requests.v1": "/edge", "inventory.responses.v1": "/inventory"}.get(topic, "/cart"),
            type=message.TYPE,
            subject=user,
            time=accepted or at,
            requestid=id_,
            data=message.model_dump(mode="json", exclude_none=True),
        )
        return self.put(topic, event.key, event.encode(), at)

    def put_aside(self, record: Record) -> None:
        original = dead_letters.Record(record.topic, record.partition, record.offset, record.key, record.value)
        letter = dead_letters.dead_letter_event(
            original, reason="failed", detail="", service="cart", attempts=1, now=LONG_AGO
        )
        self.put(f"{record.topic.removeprefix('t.')}.dlq", letter.key, letter.encode())


def add(user: str = "ann") -> cart.Add:
    return cart.Add(user_id=user, product="TEAPOT", quantity=2)


def decided(outcome: inventory.Outcome = HELD, *, user: str = "ann", replayed: bool = False) -> inventory.Decided:
    return inventory.Decided(user_id=user, outcome=outcome, cart=CART, replayed=replayed)


def answer(outcome: inventory.Outcome = HELD, id_: str = "r1", *, user: str = "ann") -> cart.Response:
    response = to_response(Kept(), id_, decided(outcome, user=user))
    assert response is not None
    return response


# ---- carts ----------------------------------------------------------------------------------------------------------


class Carts(Topics):
    def __init__(self) -> None:
        self.books, readers = of_carts.start_audit(SETTINGS, WINDOW)
        super().__init__(readers)
        self.all_is_well("well")

    def all_is_well(self, id_: str, **more: Any) -> None:
        self.send("cart.requests.v1", add(), id_, **more)
        self.send("inventory.responses.v1", decided(), id_, **more)
        self.send("cart.responses.v1", answer(id_=id_), id_, **more)

    def violations(self) -> list[str]:
        return [sentence for kind in self.books.violations_by_kind() for sentence in kind]


@pytest.fixture
def carts() -> Carts:
    return Carts()


def test_a_correct_history_has_no_violations_however_often_it_is_replayed(carts: Carts) -> None:
    carts.all_is_well("well")
    carts.send("inventory.responses.v1", decided(replayed=True), "well")
    carts.send("cart.responses.v1", answer(id_="well").model_copy(update={"replayed": True}), "well")
    carts.send("cart.requests.v1", cart.Read(user_id="ann", session="s"), "a read")
    carts.send("inventory.responses.v1", decided(inventory.IdReused()), "well")
    assert carts.violations() == []


def test_a_request_without_an_outcome_is_lost(carts: Carts) -> None:
    carts.send("cart.requests.v1", add(), "r1")
    (violation,) = carts.violations()
    assert "request r1 of ann" in violation
    assert "no outcome" in violation


def test_the_same_id_of_another_shopper_is_another_request(carts: Carts) -> None:
    carts.send("cart.requests.v1", add("bob"), "well", user="bob")
    assert len(carts.violations()) == 1


@pytest.mark.parametrize("age", [timedelta(seconds=29), timedelta(days=6.9)], ids=["too young", "too old"])
def test_requests_that_are_too_new_or_too_old_are_not_audited(carts: Carts, age: timedelta) -> None:
    carts.send("cart.requests.v1", add(), at=NOW - age)
    assert carts.violations() == []


def test_a_background_audit_covers_recent_records_only() -> None:
    window = AuditWindow(NOW, timedelta(seconds=30), timedelta(days=7), max_age=timedelta(minutes=10))
    ages = [timedelta(seconds=29), timedelta(seconds=30), timedelta(minutes=10) - timedelta(seconds=1)]
    covered = [window.covers(Record("t", b"", b"", 0, int((NOW - age).timestamp() * 1000))) for age in ages]
    assert covered == [False, True, True]
    assert not window.covers(Record("t", b"", b"", 0, int((NOW - timedelta(minutes=10)).timestamp() * 1000)))


def test_a_dead_lettered_request_is_not_lost(carts: Carts) -> None:
    carts.put_aside(carts.send("cart.requests.v1", add()))
    assert carts.violations() == []


def test_a_decision_whose_outcome_was_not_published(carts: Carts) -> None:
    carts.send("cart.requests.v1", add())
    carts.send("inventory.responses.v1", decided())
    (violation,) = carts.violations()
    assert "no response was published" in violation


def test_two_outcomes_published_for_one_request(carts: Carts) -> None:
    carts.send("cart.responses.v1", answer(REFUSED, "well"), "well")
    (violation,) = carts.violations()
    assert "in two ways" in violation


def test_a_published_outcome_other_than_the_decision(carts: Carts) -> None:
    carts.send("inventory.responses.v1", decided(REFUSED))
    carts.send("cart.responses.v1", answer(HELD))
    (violation,) = carts.violations()
    assert "answered differently from its decision" in violation


def test_an_unreadable_cart_is_reported_until_it_is_overwritten(carts: Carts) -> None:
    carts.put(of_carts.CHANGELOG, b"ann", b"\xff")
    (violation,) = carts.violations()
    assert violation.startswith(f"the stored cart of ann (t.{of_carts.CHANGELOG}/0/")
    carts.put(of_carts.CHANGELOG, b"ann", Kept().model_dump_json().encode())
    assert carts.violations() == []


@pytest.mark.parametrize("topic", ["cart.requests.v1", "inventory.responses.v1"])
def test_an_unreadable_record_must_be_a_dead_letter(carts: Carts, topic: str) -> None:
    record = carts.put(topic, b"ann", b"[" * 9000)
    (violation,) = carts.violations()
    assert f"t.{topic}/0/{record.offset}" in violation
    carts.put_aside(record)
    assert carts.violations() == []


def test_unknown_types_may_be_ignored_on_responses_only(carts: Carts) -> None:
    unknown = Envelope(id="x", source="/inventory", type="holdfast.new.thing", subject="ann", time=LONG_AGO, data={})
    carts.put("inventory.responses.v1", b"ann", unknown.encode())
    assert carts.violations() == []
    carts.put("cart.requests.v1", b"ann", unknown.encode())
    assert len(carts.violations()) == 1


def test_a_request_that_has_been_pending_for_long(carts: Carts) -> None:
    pending = cart.PendingRequest(id="r1", type="add", product="TEAPOT", quantity=2, since=LONG_AGO)
    stuck = Kept(pending=(pending,)).model_dump_json().encode()
    carts.put("cart-carts-changelog", b"ann", stuck, NOW)
    assert carts.violations() == []
    carts.put("cart-carts-changelog", b"ann", stuck)
    assert carts.violations() == ["request r1 of ann is still pending"]
    carts.put("cart-carts-changelog", b"ann", Kept(revision=1).model_dump_json().encode())
    assert carts.violations() == []


# ---- inventory ------------------------------------------------------------------------------------------------------


class Log(Topics):
    def __init__(self) -> None:
        self.told, readers = of_inventory.start_audit(SETTINGS, WINDOW)
        super().__init__(readers)
        self.ask("well")
        self.send("inventory.responses.v1", decided(), "well")
        self.rows: list[tuple[str, str, inventory.StoredOutcome]] = [("ann", "well", HELD)]

    def ask(self, id_: str, **more: Any) -> Record:
        hold = inventory.Hold(user_id="ann", mode="add", product="TEAPOT", quantity=2)
        return self.send("inventory.requests.v1", hold, id_, **more)

    def violations(self) -> list[str]:
        for user, id_, outcome in self.rows:
            self.told.add_log_entry(user, id_, outcome.model_dump_json())
        return [sentence for kind in self.told.violations() for sentence in kind]


@pytest.fixture
def log() -> Log:
    return Log()


def test_published_outcomes_that_are_in_the_log_are_no_violations(log: Log) -> None:
    log.ask("well")
    log.send("inventory.responses.v1", decided(replayed=True), "well")
    expired = inventory.Expired(lines=(), version=2)
    log.send("inventory.responses.v1", decided(expired), "e1")
    log.rows += [("ann", f"{EXPIRY_PREFIX}e1", expired), ("ann", "older than the topics", REFUSED)]
    log.send("inventory.responses.v1", decided(inventory.IdReused()), "well")
    assert log.violations() == []
    assert log.told.figures() == {"outcomes_told": 2, "dead_letters": 0}


def test_the_steps_of_an_order_have_ids_of_their_own(log: Log) -> None:
    commit = inventory.Commit(user_id="ann", order_id="o1", version=1)
    total = inventory.Money(amount=1, currency="GBP")
    committed = inventory.Committed(order_id="o1", purpose="order", lines=(), total=total, version=2)
    sell, sold = inventory.Sell(user_id="ann", order_id="o1"), inventory.Sold(order_id="o1")
    restock, held = inventory.Restock(user_id="ann", order_id="o2", shipped=False), reservation("o2")
    for id_, request, outcome in (("c", commit, committed), ("x", sell, sold), ("y", restock, held)):
        log.send("inventory.requests.v1", request, id_)
        log.send("inventory.responses.v1", decided(outcome), id_)
    read = decided(reservation("o3")).model_copy(update={"session": "s"})
    log.send("inventory.responses.v1", read, "a read")
    log.rows += [("ann", "c", committed), ("ann", f"{STEP_PREFIX}x", sold), ("ann", f"{STEP_PREFIX}y", held)]
    assert log.violations() == []


def reservation(order_id: str) -> inventory.Reservation:
    return inventory.Reservation(order_id=order_id, state=None)


@pytest.mark.parametrize("mark", ["", EXPIRY_PREFIX])
def test_a_step_whose_outcome_is_logged_elsewhere_has_none(log: Log, mark: str) -> None:
    sold = inventory.Sold(order_id="o1")
    log.send("inventory.requests.v1", inventory.Sell(user_id="ann", order_id="o1"), "x")
    log.send("inventory.responses.v1", decided(sold), "x")
    log.rows.append(("ann", f"{mark}x", sold))
    assert len(log.violations()) == 2


def test_a_request_that_the_log_does_not_have(log: Log) -> None:
    log.ask("r1")
    (violation,) = log.violations()
    assert "request r1 of ann (t.inventory.requests.v1/0/" in violation


def test_a_request_older_than_the_log_may_be_replayed(log: Log) -> None:
    log.ask("r1", accepted=NOW - timedelta(days=10))
    log.send("inventory.responses.v1", decided(replayed=True), "r1")
    assert log.violations() == []


def test_an_outcome_that_the_log_does_not_have(log: Log) -> None:
    log.send("inventory.responses.v1", decided(), "r1")
    (violation,) = log.violations()
    assert "that is not in the log" in violation


def test_an_outcome_other_than_the_logs(log: Log) -> None:
    log.rows = [("ann", "well", REFUSED)]
    (violation,) = log.violations()
    assert "differently from its decision" in violation


def test_two_outcomes_of_one_request(log: Log) -> None:
    log.send("inventory.responses.v1", decided(REFUSED), "well")
    (violation,) = log.violations()
    assert "in two ways" in violation


def test_a_dead_lettered_request_needs_no_outcome(log: Log) -> None:
    log.put_aside(log.ask("r1"))
    log.put_aside(log.put("inventory.requests.v1", b"ann", b"\xff"))
    assert log.violations() == []
    log.put("inventory.requests.v1", b"ann", b"\xff")
    assert len(log.violations()) == 1


def test_a_request_without_an_id_belongs_to_the_dead_letters(log: Log) -> None:
    nameless = Envelope(
        id="x",
        source="/cart",
        type=inventory.Clear.TYPE,
        subject="ann",
        time=LONG_AGO,
        data={"user_id": "ann"},
    )
    record = log.put("inventory.requests.v1", b"ann", nameless.encode())
    (violation,) = log.violations()
    assert "no request id" in violation
    log.put_aside(record)
    assert log.violations() == []


def test_long_lists_of_violations_are_truncated() -> None:
    assert truncate_violations(["x"] * MAX_LISTED) == ["x"] * MAX_LISTED
    assert truncate_violations(["x"] * (MAX_LISTED + 2)) == [*["x"] * MAX_LISTED, "and 2 more of this kind"]


# ---- in the background ----------------------------------------------------------------------------------------------


def exported(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"holdfast_audit_{name}", {"service": "carts of a test"})


async def test_each_replica_audits_its_own_partitions_in_turn_and_forgets_revoked_ones() -> None:
    wrong = {3: ["one"], 5: ["two", "three"]}
    mine = {3, 4, 5}
    looked: list[int] = []

    async def look(partition: int, window: AuditWindow) -> list[str]:
        assert (window.grace, window.max_age) == (
            timedelta(seconds=30),
            timedelta(seconds=30 + 2 * ROUND_FACTOR * 0.01),
        )
        looked.append(partition)
        return wrong.get(partition, [])

    auditor = TopicAuditor(
        lambda: mine, look, 0.01, service="carts of a test", grace=timedelta(seconds=30), retention=timedelta(days=7)
    )
    async with asyncio.timeout(20):
        running = asyncio.create_task(auditor.run())
        while len(looked) < 7:
            await asyncio.sleep(0.001)
        assert looked[:6] == [3, 4, 5, 3, 4, 5]
        assert exported("violations") == 3
        mine.remove(3)
        del wrong[5]
        while exported("violations") != 0:
            await asyncio.sleep(0.001)
        assert 0 <= (exported("age_seconds") or 0) < 10
        mine.clear()
        before = len(looked)
        await asyncio.sleep(0.05)
        assert len(looked) - before <= 1, "there is nothing to look at"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert exported("violations") is None


async def test_a_long_history_is_read_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader takes a millisecond per record: after two records the event loop is free for forty milliseconds."""
    clock = itertools.count()
    monkeypatch.setattr("infrastructure.audit.topic_auditor.time.perf_counter", lambda: next(clock) * 0.0011)
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    monkeypatch.setattr("infrastructure.audit.topic_auditor.asyncio.sleep", sleep)
    read: list[Any] = []

    async def records() -> AsyncIterator[Record]:
        for offset in range(10):
            yield Record("t", b"", b"", offset, 0)

    await throttled(records(), {"t": read.append})
    assert [record.offset for record in read] == [*range(10)]
    assert rests == pytest.approx([REST_FACTOR * 0.0022] * 5)
