"""The event store: streams, joins, deadlines, what is published again, many workers and one winner; and its audit."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from contracts import cart, deliveries, inventory, orders, payments
from infrastructure.process.settings import Settings as Shared
from infrastructure.storage import postgres
from infrastructure.storage.retention import DELETE_LIMIT, RETENTION_OPTIONS, RetentionJob
from order_service import repairs
from order_service.audit import audit
from order_service.state import UnexpectedMessage
from order_service.store import MIGRATIONS, REPLY_RETENTION, WAITING_RETENTION, retention_sweeps
from tests.testkit.order_store import TOTAL, Buying, Schema, deliver, received, schema

ANN = Buying()
WHOLE_LIFE = ["placed", "committed", "captured", "confirmed", "booked", "shipped", "delivered"]
AT_ONCE = timedelta(0)


@pytest.fixture
async def here(settings: Shared) -> AsyncIterator[Schema]:
    async with schema(settings) as made:
        yield made


async def balanced(here: Schema) -> dict[str, object]:
    report = await audit(here.connection, timedelta(seconds=60))
    assert report["violations"] == []
    return dict(report["figures"])


async def test_a_whole_order_and_its_notices(here: Schema) -> None:
    saga = here.saga()
    await deliver(saga, ANN)
    assert await here.types(ANN.id) == WHOLE_LIFE
    assert [event.id for event in here.broker.take(orders.EVENTS)] == [f"{ANN.id}/{n}" for n in range(1, 8)]
    frames = [cart.RESPONSE_REGISTRY.parse(event) for event in here.broker.take(cart.RESPONSES)]
    assert [(frame.status, frame.order_version, frame.id) for frame in frames if isinstance(frame, cart.Order)] == [
        ("paid", 3, "c1"),
        ("confirmed", 4, "c1"),
        ("shipped", 6, "c1"),
        ("delivered", 7, "c1"),
    ]
    assert here.broker.kinds(inventory.REQUESTS) == ["sell"]
    assert here.broker.kinds(payments.REQUESTS) == ["charge"]
    assert here.broker.kinds(deliveries.REQUESTS) == ["book"]
    assert await here.rows("SELECT status, version, published, due_at, total, captured, refunded FROM orders") == [
        ("delivered", 7, 7, None, 300, 300, 0)
    ]
    figures = await balanced(here)
    assert (figures["money_captured"], figures["money_confirmed"], figures["money_in_flight"]) == (300, 300, 0)


async def test_news_that_brings_nothing_asks_nothing(here: Schema) -> None:
    saga = here.saga()
    await saga.on_order_requests([ANN.place()])
    await saga.on_inventory_responses([ANN.committed()])
    here.broker.events.clear()
    unknown = received(payments.Unknown(**ANN.payment, reason="no answer"))
    await saga.on_payment_events([unknown, unknown])
    assert here.broker.events == [], "or the two would ask each other for ever"


async def test_a_decision_that_overtakes_its_order_waits_for_it(here: Schema) -> None:
    saga = here.saga()
    await saga.on_inventory_responses([ANN.committed(), ANN.committed()])
    assert here.broker.events == []
    assert (await here.rows("SELECT type FROM waiting")) == [("Committed",)]
    report = await audit(here.connection, AT_ONCE)
    assert report["violations"] == [f"order {ANN.id} of ann: Committed arrived, but the order was never placed"]
    await saga.on_order_requests([ANN.place()])
    assert await here.types(ANN.id) == ["placed", "committed"]
    assert await here.rows("SELECT * FROM waiting") == []
    assert here.broker.kinds(payments.REQUESTS) == ["charge"]


async def test_a_cancellation_that_overtakes_the_decision_waits_for_it(here: Schema) -> None:
    saga = here.saga()
    await saga.on_order_requests([ANN.place(), received(orders.Cancel(**ANN.ids), "x1")])
    assert await here.types(ANN.id) == ["placed"]
    await here.saga().on_inventory_responses([ANN.committed()])
    assert await here.types(ANN.id) == ["placed", "committed", "cancelling"]
    assert here.broker.kinds(payments.REQUESTS) == ["void"]
    [answer] = here.broker.take(cart.RESPONSES)
    assert (answer.requestid, answer.data["reason"]) == ("x1", "cancelled")


async def test_a_cancellation_of_an_order_that_never_comes_is_answered_at_last(here: Schema) -> None:
    saga = here.saga()
    await saga.on_order_requests([received(orders.Cancel(**ANN.ids), "x1"), received(orders.Cancel(**ANN.ids), "x1")])
    assert (here.broker.events, await saga.handle_due_orders()) == ([], 0)
    await here.connection.execute("UPDATE orders SET due_at = now()")
    assert await saga.handle_due_orders() == 1
    [answer] = here.broker.take(cart.RESPONSES)
    assert (answer.requestid, answer.data["reason"]) == ("x1", "unknown_order")
    assert (await here.rows("SELECT * FROM waiting"), await saga.handle_due_orders()) == ([], 0)
    assert await here.rows("SELECT version, due_at FROM orders") == [(0, None)]
    await balanced(here)


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])
async def test_a_refused_request_stays_refused_on_redelivery(here: Schema, *, together: bool) -> None:
    saga = here.saga()
    refund, stranger = received(orders.Refund(**ANN.ids), "x1"), received(orders.Cancel(**ANN.ids), "x2")
    await saga.on_order_requests([stranger])
    await here.connection.execute("UPDATE orders SET due_at = now()")
    await saga.handle_due_orders()
    await saga.on_order_requests([ANN.place()])
    await saga.on_inventory_responses([ANN.committed()])
    await saga.on_order_requests([refund])
    await saga.on_payment_events([ANN.captured()])
    here.broker.events.clear()
    before = await here.types(ANN.id)
    for batch in [[refund, stranger, refund]] if together else [[refund], [stranger], [refund]]:
        await here.saga().on_order_requests(batch)
    assert await here.types(ANN.id) == before, "the money was not there when it was asked for, and nobody asks now"
    assert here.broker.kinds(payments.REQUESTS) == []
    answers = {(answer.requestid, answer.data["reason"]) for answer in here.broker.take(cart.RESPONSES)}
    assert answers == {("x1", "not_paid"), ("x2", "unknown_order")}
    await saga.on_order_requests([received(orders.Refund(**ANN.ids), "x3")])
    assert "refund-asked" in await here.types(ANN.id), "another request is another matter"


async def test_an_accepted_request_is_answered_again_on_redelivery(here: Schema) -> None:
    saga, cancel = here.saga(), received(orders.Cancel(**ANN.ids), "x1")
    await saga.on_order_requests([ANN.place()])
    await saga.on_inventory_responses([ANN.committed()])
    await saga.on_order_requests([cancel])
    await saga.on_order_requests([cancel])
    first, again = here.broker.take(cart.RESPONSES)
    assert (first.data["reason"], again.data["reason"]) == ("cancelled", "cancelled")
    assert (first.data["replayed"], again.data["replayed"]) == (False, True)


async def test_answers_are_forgotten_long_after_the_topic_has_forgotten_the_requests(here: Schema) -> None:
    assert orders.REQUESTS.retention is not None
    assert orders.REQUESTS.retention + timedelta(days=1) < REPLY_RETENTION
    saga = here.saga()
    await saga.on_order_requests([received(orders.Refund(**ANN.ids), each) for each in ("old", "older", "young")])
    await here.connection.execute(
        "UPDATE answered SET at = now() - %s - interval '1 minute' WHERE request_id <> 'young'", [REPLY_RETENTION]
    )
    await saga.on_order_requests([received(orders.Refund(**ANN.ids), "new")])
    assert await here.rows("SELECT request_id FROM answered ORDER BY 1") == [("new",), ("young",)]


async def test_one_run_of_the_retention_deletes_all_old_replies_and_early_messages(here: Schema) -> None:
    many = 3 * DELETE_LIMIT + 7
    plant = (
        ("INSERT INTO answered (order_id, user_id, request_id, type, at)", "", REPLY_RETENTION),
        ("INSERT INTO waiting (order_id, user_id, request_id, type, message, came_at)", "'{}',", WAITING_RETENTION),
    )
    for insert, message, age in plant:
        for days in (-1, 1):
            query = f"{insert} SELECT 'o' || n, 'ann', %s, 'Cancel', {message} now() - %s FROM generate_series(1, %s) n"
            await here.connection.execute(query.encode(), [f"{days}", age + timedelta(days=days), many])
    connect = partial(postgres.connect, here.settings, "orders", options=RETENTION_OPTIONS)
    assert await RetentionJob(connect, *retention_sweeps()).delete_old_rows() == 2 * many
    for table in ("answered", "waiting"):
        assert await here.rows(f"SELECT DISTINCT request_id, count(*) FROM {table} GROUP BY 1") == [("-1", many)]


async def test_decisions_about_carts_and_reservations_leave_nothing_behind(here: Schema) -> None:
    saga = here.saga()
    committed = inventory.Committed(
        order_id="r-1", purpose="reservation", lines=(), total=TOTAL.model_copy(update={"amount": 0}), version=1
    )
    outcomes = [
        inventory.Refused(reason="out_of_stock", product="MUG"),
        inventory.Refused(reason="out_of_stock", order_id="r-2"),
        inventory.Reservation(order_id="r-1", state="PENDING"),
        inventory.Released(order_id="r-1", version=2),
        committed,
    ]
    await saga.on_inventory_responses([ANN.decided(outcome) for outcome in outcomes])
    assert (await here.rows("SELECT * FROM orders"), await here.rows("SELECT * FROM waiting")) == ([], [])


async def test_a_forged_order_and_a_strangers_message_are_not_taken(here: Schema) -> None:
    saga = here.saga()
    forged = received(ANN.place().message, "another request")
    with pytest.raises(UnexpectedMessage):
        await saga.on_order_requests([Buying(request="c2").place(), forged])
    assert await here.rows("SELECT * FROM order_event") == [], "the batch was not done in part"
    await saga.on_order_requests([ANN.place()])
    with pytest.raises(UnexpectedMessage):
        await saga.on_payment_events([ANN.captured()])
    mallory = received(orders.Cancel(order_id=ANN.id, user_id="mallory"), "m1")
    await saga.on_order_requests([mallory])
    [answer] = here.broker.take(cart.RESPONSES)
    assert (answer.subject, answer.data["reason"]) == ("mallory", "unknown_order")


async def test_unpublished_events_are_published_on_redelivery(here: Schema) -> None:
    saga = here.saga()
    await saga.on_order_requests([ANN.place()])
    here.broker.take(orders.EVENTS)
    here.broker.away = True
    with pytest.raises(TimeoutError):
        await saga.on_inventory_responses([ANN.committed()])
    assert await here.types(ANN.id) == ["placed", "committed"]
    here.broker.away = False
    await saga.on_inventory_responses([ANN.committed()])
    assert here.broker.kinds(orders.EVENTS) == ["committed"]
    assert here.broker.kinds(payments.REQUESTS) == ["charge"]
    await saga.on_inventory_responses([ANN.committed()])
    assert here.broker.kinds(orders.EVENTS) == []


async def test_unpublished_events_are_published_without_redelivery(here: Schema) -> None:
    saga = here.saga()
    await saga.on_order_requests([ANN.place()])
    here.broker.away = True
    with pytest.raises(TimeoutError):
        await saga.on_inventory_responses([ANN.committed()])
    here.broker.away = False
    assert await saga.handle_due_orders() == 0
    await here.connection.execute("UPDATE orders SET changed_at = changed_at - interval '6 s'")
    assert await saga.handle_due_orders() == 1
    assert here.broker.kinds(orders.EVENTS)[-1:] == ["committed"]
    assert here.broker.kinds(payments.REQUESTS)[:1] == ["charge"]


async def test_a_deadline_asks_again_and_waits_longer_each_time(here: Schema) -> None:
    saga = here.saga()
    await saga.on_order_requests([ANN.place()])
    waits = []
    for _ in range(4):
        await here.connection.execute("UPDATE orders SET due_at = now()")
        assert await saga.handle_due_orders() == 1
        [(wait,)] = await here.rows("SELECT extract(epoch FROM due_at - now())::int FROM orders")
        waits.append(round(wait / 30))
        [asked] = here.broker.take(inventory.REQUESTS)
        assert (asked.requestid, asked.type, asked.subject) == ("c1", "holdfast.inventory.commit", "ann")
    assert waits == [2, 4, 8, 16]
    await saga.on_inventory_responses([ANN.committed()])
    assert await here.rows("SELECT attempts FROM orders") == [(0,)]


async def test_a_payment_that_stays_open_is_voided(settings: Shared) -> None:
    async with schema(settings, payment_patience_seconds=0) as here:
        saga = here.saga()
        await saga.on_order_requests([ANN.place()])
        await saga.on_inventory_responses([ANN.committed()])
        assert await saga.handle_due_orders() == 1, "with no patience, it is due at once"
        assert here.broker.kinds(payments.REQUESTS) == ["charge", "void"]
        await saga.on_payment_events([ANN.captured()])  # it was too late
        [refund] = here.broker.take(payments.REQUESTS)
        message = payments.REQUEST_REGISTRY.parse(refund)
        assert isinstance(message, payments.Refund)
        given = payments.Refunded(**ANN.payment, refund_id=message.refund_id, amount=message.amount)
        await saga.on_payment_events([received(given)])
        [release] = here.broker.take(inventory.REQUESTS)
        assert release.data["to"] == "cart"
        await saga.on_inventory_responses([ANN.decided(inventory.Released(order_id=ANN.id, version=6))])
        assert (await here.types(ANN.id))[-3:] == ["undone", "undone", "cancelled"]
        assert (await balanced(here))["money_refunded"] == 300


async def test_a_due_order_is_given_to_one_of_many(here: Schema) -> None:
    sagas = [here.saga() for _ in range(4)]
    buyings = [Buying(f"user-{n}") for n in range(40)]
    await sagas[0].on_order_requests([each.place() for each in buyings])
    await here.connection.execute("UPDATE orders SET due_at = now()")
    assert sum(await asyncio.gather(*(saga.handle_due_orders() for saga in sagas))) == 40
    assert len(here.broker.take(inventory.REQUESTS)) == 40


async def test_many_agents_work_on_the_same_orders_and_each_thing_happens_once(here: Schema) -> None:
    buyings = [Buying(f"user-{n}") for n in range(12)]

    async def agent(number: int) -> None:
        saga, mine = here.saga(), random.Random(number).sample(buyings, len(buyings))
        await saga.on_order_requests([each.place() for each in mine])
        await saga.on_inventory_responses([each.committed() for each in mine])
        for each in mine:
            await saga.on_payment_events([each.captured()])
            await saga.on_inventory_responses([each.sold()])
            await saga.on_delivery_events([each.booked(), each.shipped(), each.delivered()])

    await asyncio.gather(*(agent(number) for number in range(4)))
    for each in buyings:
        assert await here.types(each.id) == WHOLE_LIFE
    figures = await balanced(here)
    assert (figures["orders_delivered"], figures["money_captured"]) == (12, 12 * 300)


async def test_a_decision_on_an_old_version_fails(here: Schema) -> None:
    await deliver(here.saga(), ANN)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await here.connection.execute(
            "INSERT INTO order_event SELECT order_id, version, type, data, at FROM order_event WHERE version = 7"
        )
    for change in ("UPDATE order_event SET at = now()", "DELETE FROM order_event", "TRUNCATE order_event"):
        with pytest.raises(psycopg.errors.RestrictViolation):
            await here.connection.execute(change)


async def test_a_shopper_is_forgotten_when_the_order_is_at_rest(here: Schema) -> None:
    saga = here.saga()
    await deliver(saga, ANN)
    await saga.on_order_requests([Buying(request="c2").place(), Buying("bob").place()])
    assert await repairs.erase_personal_data(here.connection, "ann") == 1
    assert len(await here.rows("SELECT * FROM order_private")) == 2
    await saga.on_order_requests([ANN.place()])  # a replay brings nothing back
    assert len(await here.rows("SELECT * FROM order_private")) == 2
    assert "High St" not in str(await here.rows("SELECT data FROM order_event"))


async def token_of(here: Schema, buying: Buying) -> str | None:
    query = "SELECT payment->>'token', address->>'city' FROM order_private WHERE order_id = %s"
    [(token, city)] = await here.rows(query, [buying.id])
    assert city == "Leeds", "the delivery still needs it"
    return None if token is None else str(token)


def declined(buying: Buying) -> list[Any]:
    return [received(payments.Declined(**buying.payment, reason="declined"))]


@pytest.mark.parametrize("outcome", [lambda buying: [buying.captured()], declined], ids=["captured", "declined"])
async def test_the_payment_token_is_erased_with_the_outcome_of_its_charge(
    here: Schema, outcome: Callable[[Buying], list[Any]]
) -> None:
    saga = here.saga()
    await saga.on_order_requests([ANN.place()])
    await saga.on_inventory_responses([ANN.committed()])
    await saga.on_order_requests([ANN.place()])
    assert await token_of(here, ANN) == "tok_approve", "the charge may have to be sent again"
    assert here.broker.kinds(payments.REQUESTS)[0] == "charge"
    for _ in range(2):  # the outcome, and its repeat
        await saga.on_payment_events(outcome(ANN))
        assert await token_of(here, ANN) is None
    here.broker.take(payments.REQUESTS)
    before = await here.types(ANN.id)
    await saga.on_order_requests([ANN.place()])  # a retry of the shopper, and a replay of the topic
    assert await token_of(here, ANN) is None
    assert (await here.types(ANN.id), here.broker.kinds(payments.REQUESTS)) == (before, [])


@pytest.mark.parametrize("first", ["the order", "its refusal"])
async def test_a_refused_order_leaves_neither_token_nor_address(here: Schema, first: str) -> None:
    """So refused orders leave nothing personal, however many are placed."""
    saga = here.saga()
    refused = inventory.Refused(reason="out_of_stock", product="MUG", order_id=ANN.id)
    if first == "its refusal":
        await saga.on_inventory_responses([ANN.decided(refused)])
    for _ in range(2):  # a replay brings nothing back
        await saga.on_order_requests([ANN.place()])
        await saga.on_inventory_responses([ANN.decided(refused)])
        assert await here.types(ANN.id) == ["placed", "cancelled"]
        assert await here.rows("SELECT * FROM order_private") == []


async def test_addresses_that_an_earlier_version_kept_are_erased_by_the_migration(here: Schema) -> None:
    saga = here.saga()
    cat, dan = Buying("cat"), Buying("dan")
    await saga.on_order_requests([ANN.place(), cat.place(), dan.place()])
    await saga.on_inventory_responses([ANN.committed(), dan.committed()])
    await saga.on_payment_events(declined(dan))
    refused = inventory.Refused(reason="out_of_stock", product="MUG", order_id=cat.id)
    await saga.on_inventory_responses([cat.decided(refused)])
    await here.connection.execute("INSERT INTO order_private VALUES (%s, '{}', '{}', '{}')", [cat.id])
    await here.connection.execute("DELETE FROM schema_migration WHERE number = 5")
    await postgres.migrate(here.settings, "orders", MIGRATIONS)
    assert sorted(await here.rows("SELECT order_id FROM order_private")) == sorted([(ANN.id,), (dan.id,)])


async def test_tokens_that_an_earlier_version_kept_are_erased_by_the_migration(here: Schema) -> None:
    saga = here.saga()
    await deliver(saga, ANN)
    bob = Buying("bob")
    await saga.on_order_requests([bob.place()])
    await here.connection.execute("""UPDATE order_private SET payment = '{"token": "tok_approve"}'""")
    await here.connection.execute("DELETE FROM schema_migration WHERE number = 4")
    await postgres.migrate(here.settings, "orders", MIGRATIONS)
    assert (await token_of(here, ANN), await token_of(here, bob)) == (None, "tok_approve")


# ---- the read side, and the audit -----------------------------------------------------------------------------------


async def test_a_rebuilt_read_side_is_the_live_one(here: Schema) -> None:
    saga = here.saga()
    await deliver(saga, ANN)
    await saga.on_order_requests([Buying("bob").place(), Buying("cat").place()])
    await saga.on_inventory_responses([Buying("bob").committed()])
    live = await here.rows("SELECT * FROM orders ORDER BY order_id")
    assert await repairs.rebuild(here.connection, saga.store.timeouts) == []
    assert await here.rows("SELECT * FROM orders ORDER BY order_id") == live
    await here.connection.execute("UPDATE orders SET refunded = 5 WHERE user_id = 'ann'")
    await here.connection.execute("DELETE FROM orders WHERE user_id = 'bob'")
    assert len((await audit(here.connection, AT_ONCE))["violations"]) >= 3
    assert await repairs.rebuild(here.connection, saga.store.timeouts) == sorted([ANN.id, Buying("bob").id])
    mended = "order_id, user_id, version, status, reason, currency, total, captured, refunded, placed_at, changed_at"
    before = {row[0]: row for row in live}
    assert [row[:4] for row in await here.rows(f"SELECT {mended} FROM orders ORDER BY order_id")] == [
        before[row[0]][:4] for row in live
    ]
    await balanced(here)


async def test_every_event_can_be_published_again(here: Schema) -> None:
    saga = here.saga()
    await deliver(saga, ANN)
    await saga.on_order_requests([Buying("bob").place()])
    first = {event.id: event.data for event in here.broker.take(orders.EVENTS)}
    assert await repairs.republish(here.connection, here.broker.publish) == 8
    assert {event.id: event.data for event in here.broker.take(orders.EVENTS)} == first


PLANTED = {
    "a gap": "ALTER TABLE order_event DISABLE TRIGGER ALL; DELETE FROM order_event WHERE version = 3",
    "a second capture": (
        "INSERT INTO order_event SELECT order_id, 8, type, data || '{\"version\": 8}', at FROM order_event"
        " WHERE type = 'holdfast.orders.captured'"
    ),
    "a read side of its own": "UPDATE orders SET status = 'cancelled'",
    "money that was never captured": "UPDATE orders SET captured = 299",
    "an order that nobody looks after": "UPDATE orders SET status = 'paid'",
    "a deadline that nobody heard": "UPDATE orders SET due_at = now() - interval '1 hour'",
    "events that nobody was told of": "UPDATE orders SET published = 3, changed_at = changed_at - interval '1 hour'",
}


@pytest.mark.parametrize("plant", PLANTED)
async def test_the_audit_finds(plant: str, here: Schema) -> None:
    await deliver(here.saga(), ANN)
    before = await audit(here.connection, AT_ONCE)
    assert before["ok"]
    await here.connection.execute(PLANTED[plant])
    after = await audit(here.connection, timedelta(seconds=60))
    assert not after["ok"]


async def test_a_replay_changes_no_digest(here: Schema) -> None:
    saga = here.saga()
    await deliver(saga, ANN)
    before = (await audit(here.connection, AT_ONCE))["digest"]
    await deliver(saga, ANN)
    assert (await audit(here.connection, AT_ONCE))["digest"] == before
    await deliver(saga, Buying("bob"))
    assert (await audit(here.connection, AT_ONCE))["digest"] != before
