"""One suite for the store and its double; then what only the real one can show: many workers, one winner."""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from contracts.inventory import (
    Available,
    Check,
    Clear,
    Commit,
    Expire,
    Expired,
    Fail,
    GivenUp,
    Held,
    Hold,
    IdReused,
    Item,
    LookedUp,
    Lookup,
    Money,
    ReadReservation,
    Refused,
    Remove,
    Removed,
    Request,
    Snapshot,
)
from infrastructure.process.settings import Settings as Shared
from infrastructure.storage import postgres
from infrastructure.storage.retention import DELETE_LIMIT
from infrastructure.storage.statement_pipeline import StatementPipeline
from inventory_service.audit import audit
from inventory_service.retention import delete_old_outcomes
from inventory_service.state import Command, Reply, State
from inventory_service.store import QUERIES, STORE_OPTIONS, MemoryStore, PostgresStore, expiry_id
from tests.testkit.inventory_store import (
    InventoryStoreFixture,
    MemoryInventory,
    PostgresInventory,
    Schema,
    add,
    command,
    schema,
)
from tests.testkit.samples import samples

# ---- the suite ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def real(settings: Shared) -> AsyncIterator[Schema]:
    async with schema(settings) as here:
        await here.stock(TEAPOT=10, MUG=5)
        yield here


@pytest.fixture(params=["memory", "postgres"])
async def shop(request: pytest.FixtureRequest, settings: Shared) -> AsyncIterator[InventoryStoreFixture]:
    if request.param == "memory":
        yield MemoryInventory(TEAPOT=10, MUG=5)
    else:
        async with schema(settings) as here:
            await here.stock(TEAPOT=10, MUG=5)
            yield PostgresInventory(here)


async def test_holds_are_granted_while_there_is_stock(shop: InventoryStoreFixture) -> None:
    answers = await shop.tell(*(command(f"r{n}", add("MUG", 2, f"user {n}")) for n in range(3)))
    assert [answer.outcome.type for answer in answers] == ["held", "held", "refused"]
    assert answers[2].outcome == Refused(product="MUG", reason="out_of_stock", available=1)


async def test_every_field_of_a_line_is_read_as_it_was_written(shop: InventoryStoreFixture) -> None:
    """The fields come from the model, so a column that is forgotten later fails here."""
    for number, hold in enumerate(samples(Hold, user_id="ann", mode="set", product="TEAPOT")):
        [granted] = await shop.tell(command(f"r{number}", hold))
        [read] = await shop.tell(command(f"s{number}", Snapshot(user_id="ann", session="s", epoch="e")))
        assert read.cart == granted.cart
        assert granted.cart.lines[0].quantity == hold.quantity
    order = Commit(user_id="ann", order_id="o1", version=granted.cart.revision)
    assert (await shop.ask("r3", order)).lines == granted.cart.lines
    assert (
        await shop.ask("r4", ReadReservation(user_id="ann", order_id="o1", session="s"))
    ).lines == granted.cart.lines


async def test_a_cart_is_the_same_after_each_batch(shop: InventoryStoreFixture) -> None:
    for number in range(3):
        await shop.tell(command(f"t{number}", add("TEAPOT", 2)), command(f"m{number}", add("MUG")))
    [answer] = await shop.tell(command("s", Snapshot(user_id="ann", session="s", epoch="e")))
    assert answer.cart.revision == 6
    assert [(line.product, line.quantity, line.price.amount) for line in answer.cart.lines] == [
        ("MUG", 3, 100),
        ("TEAPOT", 6, 100),
    ]


async def test_the_same_batch_again_repeats_its_outcomes(shop: InventoryStoreFixture) -> None:
    batch = [
        command("r1", add("TEAPOT", 2)),
        command("r2", add("MUG", 9)),
        command("r3", Remove(user_id="ann", product="TEAPOT")),
        command("r4", Clear(user_id="ann")),
        command("r5", Fail(user_id="ann", command={"type": "holdfast.cart.clear"})),
        command("r6", Hold(user_id="bob", mode="set", product="MUG", quantity=5)),
    ]
    first = await shop.tell(*batch)
    again = await shop.tell(*batch)
    assert [answer.outcome for answer in again] == [answer.outcome for answer in first]
    assert {answer.replayed for answer in first} == {False}
    assert {answer.replayed for answer in again} == {True}
    assert await shop.ask("r2", add("MUG", 1)) == IdReused()


async def test_a_cart_can_be_cleared_whatever_it_holds(shop: InventoryStoreFixture) -> None:
    await shop.tell(command("r1", add("TEAPOT", 10)), command("r2", add("MUG", 5)))
    cleared, held = await shop.tell(command("r3", Clear(user_id="ann")), command("r4", add("TEAPOT", 10, "bob")))
    assert (cleared.outcome, cleared.cart.lines, cleared.cart.expires_at) == (Removed(version=3), (), None)
    assert held.outcome.type == "held"


async def test_a_line_that_went_and_came_back_within_a_batch_is_a_new_line(shop: InventoryStoreFixture) -> None:
    await shop.ask("r1", add("TEAPOT", 2))
    if isinstance(shop, PostgresInventory):
        await shop.here.connection.execute("UPDATE inventory SET price_minor = 250")
    elif isinstance(shop.store, MemoryStore):
        shop.store.stock_levels["TEAPOT"].price = Money(amount=250, currency="GBP")
    await shop.tell(command("r2", Remove(user_id="ann", product="TEAPOT")), command("r3", add("TEAPOT", 1)))
    [answer] = await shop.tell(command("s", Snapshot(user_id="ann", session="s", epoch="e")))
    assert [(line.quantity, line.price.amount) for line in answer.cart.lines] == [(1, 250)]


async def test_reads_see_what_came_before_them_in_the_batch(shop: InventoryStoreFixture) -> None:
    _, check, lookup = await shop.tell(
        command("r1", add("TEAPOT", 4)),
        command("c1", Check(user_id="ann", product="TEAPOT", session="s")),
        command("l1", Lookup(user_id="ann", session="s", ids=("r1", "r0"))),
    )
    assert check.outcome == Available(product="TEAPOT", available=6)
    assert isinstance(lookup.outcome, LookedUp)
    assert ([stored.id for stored in lookup.outcome.outcomes], lookup.outcome.unknown) == (["r1"], ("r0",))
    [later] = await shop.tell(command("l2", Lookup(user_id="ann", session="s", ids=("r1",))))
    assert isinstance(later.outcome, LookedUp)
    assert later.outcome.outcomes == lookup.outcome.outcomes
    assert await shop.ask("c2", Check(user_id="ann", product="NOPE", session="s")) == Available(
        product="NOPE", available=None
    )


async def test_a_due_cart_expires_before_anything_else_happens_to_it(shop: InventoryStoreFixture) -> None:
    await shop.tell(command("r1", add("TEAPOT", 4)), command("r2", add("MUG", 5)))
    await shop.pass_time(minutes=15)
    expired, held, _, other = await shop.tell(
        command("r3", add("TEAPOT", 1)), command("r4", add("TEAPOT", 9, "bob")), command("r5", add("MUG", 5, "cyd"))
    )
    gone = (GivenUp(product="MUG", quantity=5), GivenUp(product="TEAPOT", quantity=4))
    assert isinstance(expired.outcome, Expired)
    assert (tuple(sorted(expired.outcome.lines, key=lambda line: line.product)), expired.outcome.version) == (gone, 3)
    assert isinstance(held.outcome, Held)
    assert (held.id, held.outcome.version, held.outcome.line_quantity) == ("r3", 4, 1)
    assert [other.outcome.type, held.cart.revision] == ["held", 4]


async def test_expiry_requests_expire_a_cart_once(shop: InventoryStoreFixture) -> None:
    await shop.tell(command("r1", add("TEAPOT", 4)))
    await shop.pass_time(minutes=15)
    [snapshot] = await shop.tell(command("x", Fail(user_id="ann", command={})))
    due = snapshot.cart.expires_at
    assert due is not None
    knock = Command(expiry_id("ann", due, snapshot.cart.revision), due, Expire(user_id="ann", due=due))
    [first] = await shop.tell(knock)
    [again] = await shop.tell(knock)
    assert (first.outcome, first.replayed, again.replayed) == (again.outcome, False, True)
    assert await shop.tell(Command("never due", due, Expire(user_id="ann", due=due - timedelta(days=1)))) == []


# ---- many workers ---------------------------------------------------------------------------------------------------


async def test_the_last_unit_has_one_winner(real: Schema) -> None:
    await real.stock(LAST=1)
    stores = [real.store() for _ in range(8)]
    decided = await asyncio.gather(
        *(store.transact([command(f"r{n}", add("LAST", 1, f"user {n}"))]) for n, store in enumerate(stores))
    )
    outcomes = Counter(answer.outcome.type for decisions in decided for answer in decisions.replies)
    assert outcomes == {"held": 1, "refused": 7}


async def test_a_request_that_two_workers_have_is_decided_by_one(real: Schema) -> None:
    stores = [real.store() for _ in range(4)]
    batch = [command(f"r{n}", add("TEAPOT", 1, f"user {n}")) for n in range(10)]
    decided = [one.replies for one in await asyncio.gather(*(store.transact(batch) for store in stores))]
    assert sum(not answer.replayed for answers in decided for answer in answers) == 10
    assert all([a.outcome for a in answers] == [a.outcome for a in decided[0]] for answers in decided)
    assert await real.one("SELECT held FROM inventory WHERE product_code = 'TEAPOT'") == 10


def _random_batch(chance: random.Random, users: Sequence[str], products: Sequence[str]) -> list[Command]:
    def one() -> Request:
        user, product = chance.choice(users), chance.choice(products)
        choices: list[Request] = [
            add(product, chance.randint(1, 4), user),
            add(product, chance.randint(1, 4), user),
            Hold(user_id=user, mode="set", product=product, quantity=chance.randint(0, 5)),
            Remove(user_id=user, product=product),
            Clear(user_id=user),
        ]
        return chance.choice(choices)

    return [command(str(chance.randrange(10_000)), one()) for _ in range(chance.randint(1, 30))]


@pytest.mark.parametrize("shoppers", ["disjoint", "same"])
@pytest.mark.parametrize("products", ["one hot", "many"])
async def test_workers_side_by_side_keep_every_rule(real: Schema, shoppers: str, products: str) -> None:
    codes = ["HOT"] if products == "one hot" else [f"P{n}" for n in range(12)]
    await real.stock(**dict.fromkeys(codes, 12))

    async def work(worker: int) -> list[Reply]:
        chance, store = random.Random(worker), real.store()
        users = [f"user {n}" if shoppers == "same" else f"user {worker} {n}" for n in range(8)]
        answers: list[Reply] = []
        batch: list[Command] = []

        async def decide() -> list[Reply]:
            while True:  # as the batch processor does: a busy machine may let an attempt wait too long for its locks
                try:
                    return (await store.transact(batch)).replies
                except postgres.TRANSIENT_ERRORS:
                    continue

        for _ in range(25):
            late = [chance.choice(batch)] * 2 if batch else []
            reused = [Command(each.id, each.accepted_at, Clear(user_id=each.request.user_id)) for each in late]
            batch = late + reused + _random_batch(chance, users, codes)
            answers += await decide()
            if chance.random() < 0.3:
                await real.pass_time(minutes=15)
            if chance.random() < 0.2:  # crashed after the commit, and repeats it
                again = await decide()
                assert all(answer.replayed or answer.outcome.type in ("id_reused", "expired") for answer in again)
        return answers

    answers = [answer for each in await asyncio.gather(*(work(n) for n in range(3))) for answer in each]
    kinds = Counter(answer.outcome.type for answer in answers)
    assert {"held", "refused", "removed", "expired", "id_reused"} <= set(kinds), kinds
    assert any(answer.replayed for answer in answers)
    carts: dict[tuple[str, int], Any] = {}
    for answer in answers:
        key = (answer.command.request.user_id, answer.cart.revision)
        assert carts.setdefault(key, answer.cart.lines) == answer.cart.lines, "one revision, one cart"
    users = [user for (user,) in await real.rows("SELECT user_id FROM holder")]
    await real.store().transact([command("s", Snapshot(user_id=user, session="s", epoch="e")) for user in users])
    report = await audit(real.connection)
    assert report["violations"] == []
    assert report["figures"]["changes"] > 50


# ---- what a process can come to -------------------------------------------------------------------------------------


class CutAfterCommit(PostgresStore):
    """The connection is lost when COMMIT has arrived and its answer has not."""

    async def _write(self, pipeline: StatementPipeline, state: State) -> None:
        await super()._write(pipeline, state)
        raise psycopg.OperationalError("the connection was lost")


async def test_a_commit_whose_answer_was_lost_is_found_in_the_log(real: Schema) -> None:
    store = CutAfterCommit(real.store().connect)
    with pytest.raises(psycopg.OperationalError):
        await store.transact([command("r1", add("TEAPOT", 3))])
    [answer] = (await real.store().transact([command("r1", add("TEAPOT", 3))])).replies
    assert (answer.outcome.type, answer.replayed) == ("held", True)
    assert await real.one("SELECT held FROM inventory WHERE product_code = 'TEAPOT'") == 3


async def test_a_lost_connection_is_replaced(real: Schema) -> None:
    store = real.store()
    await store.transact([command("r1", add("TEAPOT"))])
    await real.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = %s AND pid <> pg_backend_pid()",
        (f"{real.settings.prefix}inventory/{real.settings.replica}",),
    )
    with pytest.raises(postgres.TRANSIENT_ERRORS):
        await store.transact([command("r2", add("TEAPOT"))])
    [answer] = (await store.transact([command("r2", add("TEAPOT"))])).replies
    assert answer.outcome.type == "held"


async def test_a_stopped_worker_does_not_delay_shoppers_for_long(real: Schema) -> None:
    """As by SIGSTOP between round trips: the session lives, holds its locks and sends nothing."""
    stopped = await postgres.connect(real.settings, "inventory", options=STORE_OPTIONS)
    await real.store().transact([command("r0", add("TEAPOT"))])
    await stopped.execute("BEGIN")
    await stopped.execute("SELECT FROM holder WHERE user_id = 'ann' FOR NO KEY UPDATE")
    store = real.store()
    while True:
        try:
            [answer] = (await store.transact([command("r1", add("TEAPOT"))])).replies
            break
        except postgres.TRANSIENT_ERRORS:
            continue
    assert answer.outcome.type == "held"
    with pytest.raises(psycopg.errors.TransactionTimeout):
        await stopped.execute("COMMIT")
    await stopped.close()


async def test_permanent_errors_are_not_retried(real: Schema) -> None:
    await real.connection.execute("UPDATE inventory SET held = received WHERE product_code = 'MUG'")
    await real.connection.execute("INSERT INTO hold VALUES ('ann', 'MUG', 9, 100, 'GBP')")  # more than the stock says
    store = real.store()
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        await store.transact([command("r1", Remove(user_id="ann", product="MUG"))])
    assert not isinstance(caught.value, postgres.TRANSIENT_ERRORS)
    fail = Fail(user_id="ann", command={"type": "holdfast.inventory.remove", "product": "MUG"})
    [answer] = (await store.transact([command("r1", fail)])).replies
    assert answer.outcome == Refused(product="MUG", reason="failed")


# ---- the tables themselves ------------------------------------------------------------------------------------------


async def test_stock_can_not_be_oversold_by_any_hand(real: Schema) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        await real.connection.execute("UPDATE inventory SET held = received + 1")


@pytest.mark.parametrize("part", ["stock_ledger", "stock_ledger_rest"])
@pytest.mark.parametrize("change", ["UPDATE {} SET held = 0", "DELETE FROM {}", "TRUNCATE {}"])
async def test_the_ledger_is_only_added_to(real: Schema, part: str, change: str) -> None:
    await real.connection.execute(
        "INSERT INTO stock_ledger (product_code, version, cause, received, held, sold, at)"
        " VALUES ('OLD', 1, 'seed', 1, 0, 0, '2020-01-01')"
    )
    with pytest.raises(psycopg.errors.RestrictViolation):
        await real.connection.execute(change.format(part))


async def test_the_ledger_has_a_part_for_this_month_and_the_next(real: Schema) -> None:
    await real.connection.execute(QUERIES["make_ledger_months"])  # as often as one likes
    parts = {
        name
        for (name,) in await real.rows(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'stock_ledger'::regclass"
        )
    }
    assert len(parts) == 4
    assert await real.one("SELECT DISTINCT tableoid::regclass::text FROM stock_ledger") in parts - {"stock_ledger_rest"}


async def test_the_view_shows_what_is_left(real: Schema) -> None:
    await real.store().transact([command("r1", add("TEAPOT", 3))])
    await real.connection.execute("UPDATE product SET deleted = true WHERE code = 'MUG'")
    assert await real.rows("SELECT * FROM available_products") == [("TEAPOT", "name of TEAPOT", 7)]


async def test_old_outcomes_are_forgotten_in_small_batches(real: Schema) -> None:
    await real.store().transact([command("young", add("TEAPOT"))])
    await real.connection.execute(
        "INSERT INTO request_log SELECT 'bob', n::text, '{}', '{}', 0, now() - interval '9 days 1 minute'"
        " FROM generate_series(1, %s) AS n",
        (DELETE_LIMIT + 7,),
    )
    assert [await delete_old_outcomes(real.connection) for _ in range(3)] == [DELETE_LIMIT, 7, 0]
    assert await real.rows("SELECT requestid FROM request_log") == [("young",)]


BY_KEY = (
    "insert_missing_holders",
    "lock_holders",
    "stored_outcomes",
    "open_holds",
    "order_holds",
    "lock_stock",
    "save_holders",
    "save_holds",
    "delete_holds",
    "save_reservations",
    "save_order_holds",
    "append_ledger",
    "append_log",
    "insert_undelivered_expiries",
    "save_stock",
    "due_holders",
    "delete_old_outcomes",
    "changed_stock",
    "changed_products",
)


def _scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _scans(child)


def _generic(query: str) -> bytes:
    """The plan is requested with numbered parameters."""
    count = iter(range(1, 20))
    names: dict[str, str] = {}
    query = re.sub(r"%\((\w+)\)s", lambda m: names.setdefault(m[1], f"${next(count)}"), query)
    query = re.sub("%s", lambda _: f"${next(count)}", query)
    return f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {query}".encode()


@pytest.mark.parametrize("filled", [False, True], ids=["statistics of empty tables", "filled tables"])
async def test_every_statement_is_a_lookup_by_key(real: Schema, filled: bool) -> None:
    if filled:
        await real.stock(PLENTY=5000)
        for start in range(0, 2000, 500):
            some = range(start, start + 500)
            await real.store().transact([command(f"r{n}", add("PLENTY", 1, f"user {n}")) for n in some])
            item = (Item(product="PLENTY", quantity=1),)
            orders = [Commit(user_id=f"user {n}", order_id=f"order {n}", lines=item) for n in some]
            await real.store().transact([command("order", each) for each in orders])
    await real.connection.execute("VACUUM ANALYZE")
    scans = {}
    async with await postgres.connect(real.settings, "inventory", options=STORE_OPTIONS) as connection:
        for name in BY_KEY:
            [(plan,)] = await (await connection.execute(_generic(QUERIES[name]))).fetchall()
            for node in _scans(plan[0]["Plan"]):
                keyless = "Index" in node["Node Type"] and "Index Cond" not in node
                if keyless or node["Node Type"] == "Seq Scan":
                    scans[name] = json.dumps(node, indent=1)
    assert scans == {}


# ---- the audit ------------------------------------------------------------------------------------------------------


async def test_the_audit_finds_nothing_where_nothing_is_wrong_and_no_replay_changes_its_digest(real: Schema) -> None:
    batch = [command("r1", add("TEAPOT", 3)), command("r2", Clear(user_id="bob")), command("r3", add("MUG", 9))]
    await real.store().transact(batch)
    before = await audit(real.connection)
    assert (before["ok"], before["violations"], before["figures"]["held"]) == (True, [], 3)
    await real.store().transact(batch)
    assert await audit(real.connection) == before
    await real.store().transact([command("r4", add("MUG", 1))])
    assert (await audit(real.connection))["digest"] != before["digest"]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE inventory SET held = held + 1 WHERE product_code = 'TEAPOT'",
        "UPDATE inventory SET version = version + 1 WHERE product_code = 'TEAPOT'",
        "UPDATE inventory SET received = received + 1 WHERE product_code = 'MUG'",
        "UPDATE hold SET hold_quantity = 1",
        "DELETE FROM hold",
        "DELETE FROM request_log",
        "UPDATE holder SET expires_at = NULL",
        "UPDATE holder SET expires_at = now() - interval '2 minutes'",
        "UPDATE holder SET revision = 0",
        "DELETE FROM holder",
        "INSERT INTO request_log SELECT user_id, 'twice', command, outcome, revision FROM request_log",
        "INSERT INTO stock_ledger VALUES ('MUG', 2, NULL, NULL, 'x', 0, 9, 0), ('MUG', 3, NULL, NULL, 'x', 0, -9, 0)",
    ],
)
async def test_the_audit_sees_any_damage(real: Schema, damage: str) -> None:
    await real.store().transact([command("r1", add("TEAPOT", 3))])
    await real.connection.execute(damage)
    report = await audit(real.connection)
    assert not report["ok"]
    assert report["violations"]
