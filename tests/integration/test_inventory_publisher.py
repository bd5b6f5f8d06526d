"""The publisher of the inventory: no commit is missed, none is held back, and one publisher is active at a time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

import psycopg
import pytest

from contracts.envelope import Envelope
from contracts.inventory import (
    PRODUCT_REGISTRY,
    PRODUCTS,
    REQUEST_REGISTRY,
    REQUESTS,
    RESPONSE_REGISTRY,
    RESPONSES,
    STOCK,
    STOCK_REGISTRY,
    Clear,
    Commit,
    Expire,
    Expired,
    ReadReservation,
    Refused,
    Request,
    Sell,
)
from contracts.inventory import Item as Wanted
from contracts.topics import Topic
from infrastructure.messaging.batch_processor import ReceivedMessage
from infrastructure.process.settings import Settings as Shared
from infrastructure.storage import postgres
from infrastructure.storage.contention_locks import NoContentionLocks
from inventory_service import expiry_scanner, publisher
from inventory_service.agents import InventoryAgents, LockPolicy
from inventory_service.catalogue import CatalogueItem, seed
from inventory_service.expiry_scanner import ExpiryScanner
from inventory_service.publisher import Publisher
from inventory_service.store import BACKGROUND_OPTIONS, QUERIES, expiry_id
from tests.testkit.inventory_store import Schema, Topics, add, command, schema


@pytest.fixture
async def shop(settings: Shared) -> AsyncIterator[Schema]:
    async with schema(settings) as here:
        await here.stock(TEAPOT=10, MUG=5)
        yield here


def voice(shop: Schema, topics: Topics) -> Publisher:
    """Another process's publisher."""
    return Publisher(
        partial(postgres.connect, shop.settings, "inventory", options=publisher.PUBLISHER_OPTIONS),
        topics.publish,
        "voice",
    )


def told(topics: Topics) -> list[tuple[str, int, int]]:
    """Product, version and what is available, as published since the last time."""
    stock = [STOCK_REGISTRY.parse(event) for event in topics.take(STOCK)]
    return [(each.product, each.version, each.available) for each in stock]


async def test_everything_is_sent_once_and_then_only_changes(shop: Schema) -> None:
    topics, store = Topics(), shop.store()
    one = voice(shop, topics)
    await one.publish_changes(shop.connection)
    assert told(topics) == [("MUG", 1, 5), ("TEAPOT", 1, 10)]
    products = {each.code: each for each in map(PRODUCT_REGISTRY.parse, topics.take(PRODUCTS))}
    assert (products["MUG"].name, products["MUG"].price.amount, products["MUG"].version) == ("name of MUG", 100, 1)
    assert await one.publish_changes(shop.connection) == 0
    await store.transact([command("r1", add("TEAPOT", 2)), command("r2", add("TEAPOT", 1))])
    await one.publish_changes(shop.connection)
    assert told(topics) == [("TEAPOT", 3, 7)], "only its last state"
    await seed(shop.connection, [CatalogueItem("MUG", "a mug", 100, "GBP", 5)])
    await one.publish_changes(shop.connection)
    [event] = topics.take(PRODUCTS)
    assert (event.data["name"], event.data["version"], event.id, event.subject) == ("a mug", 2, "MUG/product/2", "MUG")
    assert told(topics) == []


async def _a_late_commit(shop: Schema) -> tuple[Topics, list[list[tuple[str, int, int]]]]:
    """Begin a transaction first and commit it last, while others begin and end; return the records after each step."""
    topics, one, seen = Topics(), None, []
    one = voice(shop, topics)
    await one.publish_changes(shop.connection)
    topics.events.clear()
    async with await postgres.connect(shop.settings, "inventory") as late:
        await late.execute("BEGIN")
        await late.execute(
            "UPDATE inventory SET received = received + 1, version = version + 1 WHERE product_code = 'MUG'"
        )
        await late.execute(
            "INSERT INTO stock_ledger (product_code, version, cause, received, held, sold)"
            " VALUES ('MUG', 2, 'x', 1, 0, 0)"
        )
        for number in range(3):
            await shop.store().transact([command(f"r{number}", add("TEAPOT"))])
            await one.publish_changes(shop.connection)
            seen.append(told(topics))
        await late.execute("COMMIT")
    await one.publish_changes(shop.connection)
    seen.append(told(topics))
    await one.publish_changes(shop.connection)
    seen.append(told(topics))
    return topics, seen


async def test_a_late_commit_is_not_missed_and_holds_nothing_back(shop: Schema) -> None:
    _, seen = await _a_late_commit(shop)
    assert seen == [[("TEAPOT", 2, 9)], [("TEAPOT", 3, 8)], [("TEAPOT", 4, 7)], [("MUG", 2, 6)], []]


async def test_a_publisher_that_went_by_the_newest_transaction_would_miss_it(
    shop: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(QUERIES, "positions", QUERIES["positions"].replace("pg_snapshot_xmin", "pg_snapshot_xmax"))
    _, seen = await _a_late_commit(shop)
    assert ("MUG", 2, 6) not in [each for step in seen for each in step]


async def test_the_next_publisher_goes_on_where_the_last_one_stored(shop: Schema) -> None:
    topics = Topics()
    await voice(shop, topics).publish_changes(shop.connection)
    topics.events.clear()
    await shop.store().transact([command("r1", add("MUG"))])
    await voice(shop, topics).publish_changes(shop.connection)
    assert told(topics) == [("MUG", 2, 4)]


async def test_a_publisher_that_crashed_before_it_stored_its_position_publishes_again(shop: Schema) -> None:
    class UnreachableTopics(Topics):
        async def publish(self, topic: object, events: object) -> None:
            raise ConnectionError(topic, events)

    with pytest.raises(ConnectionError):
        await voice(shop, UnreachableTopics()).publish_changes(shop.connection)
    topics = Topics()
    await voice(shop, topics).publish_changes(shop.connection)
    assert len(told(topics)) == 2


async def test_all_of_it_can_be_asked_for_again(shop: Schema) -> None:
    topics = Topics()
    one = voice(shop, topics)
    await one.publish_changes(shop.connection)
    topics.events.clear()
    await shop.connection.execute(QUERIES["reset_position"])
    assert await one.publish_changes(shop.connection) == 4
    assert await one.publish_changes(shop.connection) == 0


async def test_a_dump_restored_on_another_cluster_is_published_from_the_beginning(shop: Schema) -> None:
    await shop.connection.execute("UPDATE publisher SET position = '1000000000000'")
    topics = Topics()
    await voice(shop, topics).publish_changes(shop.connection)
    assert len(told(topics)) == 2


async def test_one_publishes_and_when_its_session_ends_another_does(shop: Schema) -> None:
    first, second = Topics(), Topics()
    running = asyncio.create_task(voice(shop, first).run())
    await _until(lambda: len(first.events) == 4)
    waiting = asyncio.create_task(voice(shop, second).run())
    await shop.store().transact([command("r1", add("MUG"))])
    await _until(lambda: len(first.events) == 5)
    assert second.events == []
    await shop.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'advisory' AND granted AND application_name LIKE %s",
        (f"{shop.settings.prefix}%",),
    )
    with pytest.raises(postgres.TRANSIENT_ERRORS):
        await running
    await shop.store().transact([command("r2", add("MUG"))])
    await _until(lambda: ("MUG", 3, 3) in told(second))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def _until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


# ---- expiry: from the request to the answer -------------------------------------------------------------------------


async def test_a_due_cart_is_knocked_for_and_expired_once(shop: Schema) -> None:
    topics = Topics()
    inventory = InventoryAgents(shop.store(), NoContentionLocks(), topics.publish, LockPolicy(5, 5))
    knocker = ExpiryScanner(
        partial(postgres.connect, shop.settings, "inventory", options=BACKGROUND_OPTIONS), topics.publish
    )
    await shop.store().transact([command("r1", add("TEAPOT", 3)), command("r2", add("MUG", 1, "bob"))])
    assert await knocker.scan(shop.connection) == 0
    await shop.pass_time(minutes=15)
    [(due, revision)] = await shop.rows("SELECT expires_at, revision FROM holder WHERE user_id = 'ann'")
    assert await knocker.scan(shop.connection) == 2
    assert await knocker.scan(shop.connection) == 0, "not at once again"
    knocks = topics.take(REQUESTS)
    ann = next(event for event in knocks if event.subject == "ann")
    id_ = expiry_id("ann", due, revision)
    assert (ann.id, ann.requestid, ann.source, ann.type) == (f"ann/{id_}/expire", id_, "/inventory", Expire.TYPE)
    batch = [ReceivedMessage(event, REQUEST_REGISTRY.parse(event), 0, n) for n, event in enumerate(knocks)]
    await inventory.on_requests(batch)
    await inventory.on_requests(batch)
    answers = [(event, RESPONSE_REGISTRY.parse(event)) for event in topics.take(RESPONSES) if event.subject == "ann"]
    assert [answer.replayed for _, answer in answers] == [False, True]
    for event, answer in answers:
        assert isinstance(answer.outcome, Expired)
        assert (answer.outcome.version, answer.cart.revision, answer.cart.lines) == (2, 2, ())
        assert (event.id, event.requestid) == (f"ann/{id_}/decided", id_)
    assert await shop.rows("SELECT cause, held FROM stock_ledger WHERE user_id = 'ann' ORDER BY version") == [
        ("add", 3),
        ("expire", -3),
    ]
    assert await shop.rows("SELECT * FROM hold") == []


async def test_the_expiry_of_a_cart_is_published_even_if_its_request_was_not_answered(shop: Schema) -> None:
    """A worker crashes after its decision and before its answer; the redelivered request knows only its own outcome."""
    topics, store = Topics(), shop.store()
    inventory = InventoryAgents(store, NoContentionLocks(), topics.publish, LockPolicy(5, 5))
    knocker = ExpiryScanner(
        partial(postgres.connect, shop.settings, "inventory", options=BACKGROUND_OPTIONS), topics.publish
    )
    await store.transact([command("r1", add("TEAPOT", 3)), command("r2", add("MUG", 1, "bob"))])
    await shop.pass_time(minutes=15)
    [(due, revision)] = await shop.rows("SELECT expires_at, revision FROM holder WHERE user_id = 'ann'")
    asked = command("r3", add("TEAPOT", 99))
    assert [answer.outcome.type for answer in (await store.transact([asked])).replies] == ["expired", "refused"]
    assert [answer.outcome.type for answer in (await store.transact([asked])).replies] == ["refused"]
    assert await shop.rows("SELECT * FROM untold_expiry") == [("ann", due, revision)]

    assert await knocker.scan(shop.connection) == 2
    assert await shop.rows("SELECT * FROM untold_expiry") == []
    knocks = topics.take(REQUESTS)
    await inventory.on_requests(
        [ReceivedMessage(each, REQUEST_REGISTRY.parse(each), 0, n) for n, each in enumerate(knocks)]
    )
    told = {event.subject: RESPONSE_REGISTRY.parse(event) for event in topics.take(RESPONSES)}
    assert isinstance(told["ann"].outcome, Expired)
    assert (told["ann"].outcome.version, told["ann"].replayed) == (2, True)
    assert isinstance(told["bob"].outcome, Expired)
    assert await shop.rows("SELECT * FROM untold_expiry") == [], "who is knocked at tells of it again if need be"


async def test_the_agent_answers_in_the_words_of_the_contract(shop: Schema) -> None:
    topics = Topics()
    inventory = InventoryAgents(shop.store(), NoContentionLocks(), topics.publish, LockPolicy(5, 5))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    def asked(type_: str, id_: str | None, **data: object) -> ReceivedMessage:  # type: ignore[type-arg]  # of any request
        fields = {"id": "x", "source": "/cart", "type": type_, "subject": "ann", "requestid": id_, "traceparent": trace}
        now = "2026-11-21T03:24:41.118Z"
        event = Envelope.model_validate({**fields, "time": now, "data": {"user_id": "ann", **data}})
        event = event.model_copy(update={"time": command("", Clear(user_id="ann")).accepted_at})
        return ReceivedMessage(event, REQUEST_REGISTRY.parse(event), 0, 0)

    hold = asked("holdfast.inventory.hold", "r1", mode="add", product="TEAPOT", quantity=2)
    await inventory.on_requests(
        [
            hold,
            asked("holdfast.inventory.snapshot", "s1", session="tab 1", epoch="3"),
            asked("holdfast.inventory.check", "c1", session="tab 1", product="MUG"),
        ]
    )
    held, snapshot, check = topics.take(RESPONSES)
    assert held.id == "ann/r1/decided"
    assert (held.source, held.subject, held.requestid) == ("/inventory", "ann", "r1")
    assert held.traceparent is not None
    assert held.traceparent.split("-")[1] == trace.split("-")[1]
    assert held.traceparent != trace
    assert held.data["outcome"]["version"] == held.data["cart"]["revision"] == 1
    assert (snapshot.id, snapshot.data["session"], snapshot.data["epoch"]) == ("ann/s1/snapshot", "tab 1", "3")
    assert (check.id, check.data["outcome"]["available"]) == ("ann/c1/available", 5)
    assert inventory.lock_policy.available_seen == {"TEAPOT": 8, "MUG": 5}

    broken = asked("holdfast.inventory.hold", "r2", mode="add", product="TEAPOT", quantity=1)
    await inventory.on_permanent_failure(broken, RuntimeError("for good"))
    await inventory.on_requests([broken])
    failed, again = topics.take(RESPONSES)
    assert failed.data["outcome"] == again.data["outcome"]
    assert (failed.data["outcome"]["reason"], again.data["replayed"]) == ("failed", True)
    await inventory.on_permanent_failure(
        snapshot_request := asked("holdfast.inventory.snapshot", "s2", session="t", epoch="1"), ValueError()
    )
    assert topics.take(RESPONSES) == [], f"a read is only asked again: {snapshot_request.event.requestid}"
    with pytest.raises(ValueError, match="requestid"):
        await inventory.on_requests([asked("holdfast.inventory.clear", None)])


async def test_steps_of_an_order_are_answered_and_published(shop: Schema) -> None:
    topics = Topics()
    inventory = InventoryAgents(shop.store(), NoContentionLocks(), topics.publish, LockPolicy(5, 5))

    commit = _received("c", Commit(user_id="ann", order_id="o1", version=1))
    read = _received("q", ReadReservation(user_id="ann", order_id="o1", session="tab 1"))
    sell = _received("o1/sell", Sell(user_id="ann", order_id="o1"))
    await inventory.on_requests([_received("r1", add("TEAPOT", 2)), commit, read, sell, sell])
    _, committed, reservation, *sold = topics.take(RESPONSES)
    assert (committed.id, committed.requestid) == ("ann/c/decided", "c")
    assert committed.data["outcome"]["total"] == {"amount": 200, "currency": "GBP"}
    assert committed.data["outcome"]["version"] == committed.data["cart"]["revision"] == 2
    assert (reservation.id, reservation.data["session"]) == ("ann/q/reservation", "tab 1")
    assert [(event.id, event.data["replayed"]) for event in sold] == [
        ("ann/o1/sell/decided", False),
        ("ann/o1/sell/decided", True),
    ]
    await voice(shop, topics).publish_changes(shop.connection)
    stock = {each.product: each for each in map(STOCK_REGISTRY.parse, topics.take(STOCK))}
    assert (stock["TEAPOT"].held, stock["TEAPOT"].sold, stock["TEAPOT"].available) == (0, 2, 8)

    other = _received("c2", Commit(user_id="ann", order_id="o2", version=2))
    await inventory.on_permanent_failure(other, RuntimeError("for good"))
    await inventory.on_requests([other])
    failed, again = topics.take(RESPONSES)
    assert failed.data["outcome"] == again.data["outcome"] == Refused(reason="failed", order_id="o2").model_dump()
    await inventory.on_permanent_failure(sell, RuntimeError("for good"))
    assert topics.take(RESPONSES) == [], "what is owed to an order is asked again until it is done"


async def test_a_failure_of_postgres_reaches_the_batch_processor_unchanged(shop: Schema) -> None:
    async def refuse() -> postgres.Connection:
        raise psycopg.OperationalError("connection refused")

    store, topics = shop.store(), Topics()
    store.connect = refuse
    inventory = InventoryAgents(store, NoContentionLocks(), topics.publish, LockPolicy(5, 5))
    event = expiry_scanner.expire_request("ann", command("", Clear(user_id="ann")).accepted_at, 1)
    with pytest.raises(postgres.TRANSIENT_ERRORS):
        await inventory.on_requests([ReceivedMessage(event, REQUEST_REGISTRY.parse(event), 0, 0)])
    assert topics.take(RESPONSES) == [], "nothing is decided"


async def test_only_committed_decisions_are_published(shop: Schema) -> None:
    """Record the stock that another connection sees at the moment of publication."""
    seen: list[tuple[list[str], list[tuple[str, int]]]] = []

    async def publish(_: Topic, events: Sequence[Envelope]) -> None:
        log = await shop.rows("SELECT requestid FROM request_log ORDER BY requestid")
        held = await shop.rows("SELECT product_code, held FROM inventory WHERE held > 0 ORDER BY product_code")
        seen.append(([id_ for (id_,) in log], [(code, units) for code, units in held]))
        assert [event.requestid for event in events] == ["r1", "r2"]

    inventory = InventoryAgents(shop.store(), NoContentionLocks(), publish, LockPolicy(5, 5))
    await inventory.on_requests([_received("r1", add("TEAPOT", 2)), _received("r2", add("MUG", 1))])
    assert seen == [(["r1", "r2"], [("MUG", 1), ("TEAPOT", 2)])]


def _received(id_: str, request: Request) -> ReceivedMessage[Request]:
    """A request as the batch processor passes it on."""
    event = Envelope.model_construct(
        id="x",
        source="/orders",
        type=request.TYPE,
        subject=request.user_id,
        time=command(id_, request).accepted_at,
        requestid=id_,
        data={},
    )
    return ReceivedMessage(event, request, 0, 0)


def test_contention_locks_apply_to_many_requests_or_the_last_units() -> None:
    policy = LockPolicy(lock_above=5, lock_remaining=5)
    policy.available_seen = {"PLENTY": 100, "FEW": 7}
    assert policy.products_to_lock([add("PLENTY", 5)]) == set()
    assert policy.products_to_lock([add("PLENTY", 6)]) == {"PLENTY"}
    assert policy.products_to_lock([add("FEW", 2)]) == set(), "five remain"
    assert policy.products_to_lock([add("FEW", 3), add("NEVER SEEN", 1)]) == {"FEW", "NEVER SEEN"}
    assert policy.products_to_lock([Clear(user_id="ann")]) == set()
    items = (Wanted(product="PLENTY", quantity=5), Wanted(product="FEW", quantity=3))
    assert policy.products_to_lock([Commit(user_id="ann", order_id="o1", lines=items)]) == {"FEW"}
    assert policy.products_to_lock([Commit(user_id="ann", order_id="o1", version=1)]) == set(), (
        "what it gets is held already"
    )
