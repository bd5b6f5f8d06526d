"""Holds of orders, in the store and its double; then the races, crashes and damages of the real one."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from contracts.inventory import (
    Check,
    Clear,
    Commit,
    Committed,
    Expire,
    Expired,
    HoldState,
    Item,
    ReadReservation,
    Refused,
    Released,
    ReleaseOrder,
    Remove,
    Request,
    Reservation,
    Restock,
    Restocked,
    Sell,
    Snapshot,
    Sold,
)
from infrastructure.process.settings import Settings as Shared
from infrastructure.storage import postgres
from infrastructure.storage.statement_pipeline import StatementPipeline
from inventory_service.audit import audit
from inventory_service.state import Command, Reply, State
from inventory_service.store import PostgresStore, expiry_id
from tests.testkit.inventory_store import (
    InventoryStoreFixture,
    MemoryInventory,
    PostgresInventory,
    Schema,
    add,
    command,
    schema,
)


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
            report = await audit(here.connection)
            assert [each for each in report["violations"] if "no decision" not in each] == [], (
                "nor does the audit object"
            )


def checkout(version: int, order: str = "o1", user: str = "ann") -> Commit:
    return Commit(user_id=user, order_id=order, version=version)


def take(order: str = "o1", user: str = "ann", **lines: int) -> Commit:
    items = tuple(Item(product=code, quantity=units) for code, units in lines.items())
    return Commit(user_id=user, order_id=order, lines=items)


def sell(order: str = "o1", user: str = "ann") -> Sell:
    return Sell(user_id=user, order_id=order)


def release(to: Any = "cart", order: str = "o1", user: str = "ann") -> ReleaseOrder:
    return ReleaseOrder(user_id=user, order_id=order, to=to)


def restock(order: str = "o1", user: str = "ann", *, shipped: bool = False) -> Restock:
    return Restock(user_id=user, order_id=order, shipped=shipped)


async def state(shop: InventoryStoreFixture, order: str = "o1", user: str = "ann") -> HoldState | None:
    read = ReadReservation(user_id=user, order_id=order, session="s")
    outcome: Reservation = await shop.ask("read", read)
    return outcome.state


async def cart(shop: InventoryStoreFixture, user: str = "ann") -> Reply:
    [answer] = await shop.tell(command("s", Snapshot(user_id=user, session="s", epoch="e")))
    return answer


# ---- the suite ------------------------------------------------------------------------------------------------------


async def test_an_order_is_held_sold_and_taken_back(shop: InventoryStoreFixture) -> None:
    await shop.tell(command("r1", add("TEAPOT", 2)), command("r2", add("MUG", 1)))
    committed = await shop.ask("c", checkout(2))
    assert isinstance(committed, Committed)
    assert [(line.product, line.quantity) for line in committed.lines] == [("MUG", 1), ("TEAPOT", 2)]
    assert (committed.total.amount, committed.version) == (300, 3)
    assert (await cart(shop)).cart.lines == ()
    assert (await state(shop), await shop.stock("TEAPOT")) == ("PENDING", (10, 2, 0))
    assert await shop.ask("o1/sell", sell()) == Sold(order_id="o1")
    assert (await state(shop), await shop.stock("TEAPOT")) == ("COMMITTED", (10, 0, 2))
    assert await shop.ask("o1/restock", restock()) == Restocked(order_id="o1")
    assert (await state(shop), await shop.stock("TEAPOT")) == ("CANCELLED", (10, 0, 0))
    reserved = await shop.ask("read", ReadReservation(user_id="ann", order_id="o1", session="s"))
    assert reserved.lines == committed.lines, "what was held is known for ever"


async def test_returned_goods_are_received_stock(shop: InventoryStoreFixture) -> None:
    await shop.ask("c", take(MUG=5))
    await shop.tell(command("s", sell()), command("b", restock(shipped=True)))
    assert await shop.stock("MUG") == (10, 0, 5)
    assert (await shop.ask("c2", take("o2", MUG=5))).type == "committed"
    assert await shop.ask("c3", take("o3", MUG=1)) == Refused(
        product="MUG", reason="out_of_stock", available=0, order_id="o3"
    )


async def test_holds_come_back_to_the_cart(shop: InventoryStoreFixture) -> None:
    await shop.tell(command("r1", add("TEAPOT", 2)), command("c", checkout(1)), command("r2", add("TEAPOT", 3)))
    assert await shop.ask("o1/release", release()) == Released(order_id="o1", version=4)
    answer = await cart(shop)
    assert [(line.product, line.quantity) for line in answer.cart.lines] == [("TEAPOT", 5)]
    assert (await state(shop), await shop.stock("TEAPOT")) == ("CANCELLED", (10, 5, 0))
    await shop.pass_time(minutes=15)
    expired, _ = await shop.outcomes(command("c2", checkout(4, "o2")))
    assert isinstance(expired, Expired)
    assert await shop.stock("TEAPOT") == (10, 0, 0)


async def test_released_holds_return_to_stock(shop: InventoryStoreFixture) -> None:
    await shop.ask("c", take(TEAPOT=10, MUG=5))
    await shop.ask("o1/release", release("shelf"))
    assert (await shop.stock("TEAPOT"), await shop.stock("MUG")) == ((10, 0, 0), (5, 0, 0))
    assert (await cart(shop)).cart.revision == 0


async def test_all_of_it_may_happen_in_one_batch(shop: InventoryStoreFixture) -> None:
    await shop.ask("r0", add("MUG", 2))
    kinds = [
        outcome.type
        for outcome in await shop.outcomes(
            command("r1", add("TEAPOT", 2)),
            command("c1", checkout(2)),
            command("r2", add("TEAPOT", 1)),
            command("s1", sell()),
            command("c2", checkout(4, "o2")),
            command("f2", release("cart", "o2")),
            command("x", Clear(user_id="ann")),
            command("b1", restock()),
            command("c3", take("o3", TEAPOT=4)),
            command("f3", release("shelf", "o3")),
        )
    ]
    assert kinds == [
        "held",
        "committed",
        "held",
        "sold",
        "committed",
        "released",
        "removed",
        "restocked",
        "committed",
        "released",
    ]
    assert (await shop.stock("TEAPOT"), await shop.stock("MUG")) == ((10, 0, 0), (5, 0, 0))


async def test_a_cart_and_its_order_are_released_in_one_batch(
    shop: InventoryStoreFixture,
) -> None:
    await shop.tell(command("r1", add("TEAPOT", 2)), command("r2", add("MUG", 1)))
    kinds = [each.type for each in await shop.outcomes(command("c", checkout(2)), command("f", release("shelf")))]
    assert kinds == ["committed", "released"]
    assert (await shop.stock("TEAPOT"), await shop.stock("MUG")) == ((10, 0, 0), (5, 0, 0))


async def test_the_same_batch_again_repeats_its_outcomes(shop: InventoryStoreFixture) -> None:
    batch = [
        command("r1", add("TEAPOT", 2)),
        command("c1", checkout(1)),
        command("c2", checkout(1, "o2")),
        command("c3", take("o3", "bob", MUG=2)),
        command("s1", sell()),
        command("f1", release()),
        command("f3", release("cart", "o3", "bob")),
        command("f4", release("cart", "o4")),
        command("c4", take("o4", TEAPOT=1)),
        command("b1", restock()),
        command("s5", sell("o5")),
    ]
    first = await shop.tell(*batch)
    again = await shop.tell(*batch)
    kinds = [getattr(answer.outcome, "reason", answer.outcome.type) for answer in first]
    assert kinds == [
        "held",
        "committed",
        "cart_changed",
        "committed",
        "sold",
        "reservation",
        "released",
        "released",
        "failed",
        "restocked",
        "reservation",
    ]
    assert [answer.outcome for answer in again] == [answer.outcome for answer in first]
    assert {answer.replayed for answer in again} == {True}


async def test_an_order_is_done_once_even_when_the_log_has_forgotten(shop: InventoryStoreFixture) -> None:
    await shop.ask("r1", add("TEAPOT", 2))
    committed = await shop.ask("c", checkout(1))
    await shop.ask("r2", add("TEAPOT", 1))
    await shop.forget()
    assert await shop.ask("c", checkout(1)) == committed
    assert await shop.ask("s", sell()) == Sold(order_id="o1")
    await shop.forget()
    assert await shop.ask("s", sell()) == Sold(order_id="o1")
    assert await shop.ask("c", checkout(1)) == committed
    assert await shop.stock("TEAPOT") == (10, 1, 2)


async def test_an_order_that_was_given_up_is_never_held(shop: InventoryStoreFixture) -> None:
    await shop.ask("r1", add("TEAPOT", 2))
    assert await shop.ask("f", release()) == Released(order_id="o1", version=1)
    await shop.forget()
    assert await shop.ask("c", checkout(1)) == Refused(reason="failed", order_id="o1")
    assert (await state(shop), await state(shop, "o2")) == ("CANCELLED", None)
    assert (await cart(shop)).cart.revision == 1


async def test_a_checkout_after_the_cart_expired_is_refused_as_expired(shop: InventoryStoreFixture) -> None:
    await shop.ask("r1", add("TEAPOT", 2))
    await shop.pass_time(minutes=15)
    [expired, _] = await shop.tell(command("s", Snapshot(user_id="ann", session="s", epoch="e")))
    assert isinstance(expired.outcome, Expired)
    assert await shop.ask("c", checkout(1)) == Refused(reason="expired", order_id="o1")
    await shop.ask("r2", add("TEAPOT", 1))
    assert await shop.ask("c2", checkout(1)) == Refused(reason="cart_changed", order_id="o1")


async def test_an_order_may_have_any_printable_id(shop: InventoryStoreFixture) -> None:
    odd = "o{\"\\,NULL}%s '$1"
    await shop.tell(command("c", take(odd, TEAPOT=1)), command("c2", take('"', "bob", TEAPOT=1)))
    assert await shop.ask("s", sell(odd)) == Sold(order_id=odd)
    assert await state(shop, odd) == "COMMITTED"
    assert await state(shop, '"', "bob") == "PENDING"


# ---- races ----------------------------------------------------------------------------------------------------------


async def test_of_two_tabs_that_check_out_at_once_one_makes_an_order(real: Schema) -> None:
    stores = [real.store(), real.store()]
    for number in range(40):
        user = f"user {number}"
        await stores[0].transact([command("r1", add("TEAPOT", 1, user))])
        both = await asyncio.gather(
            *(
                store.transact([command(f"tab {n}", checkout(1, f"order {number} {n}", user))])
                for n, store in enumerate(stores)
            )
        )
        outcomes = [answer.outcome for decisions in both for answer in decisions.replies]
        assert Counter(type(outcome) for outcome in outcomes) == {Committed: 1, Refused: 1}
        [refused] = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        assert refused.reason == "cart_changed"
        winner = next(outcome.order_id for outcome in outcomes if isinstance(outcome, Committed))
        await stores[0].transact([command("f", release("shelf", winner, user))])
    assert (await audit(real.connection))["violations"] == []


async def test_a_cart_that_comes_to_its_end_at_checkout_is_either_ordered_or_expired(real: Schema) -> None:
    await real.stock(PLENTY=1000)
    knocker, checker = real.store(), real.store()
    for store in (knocker, checker):
        await store.transact([command("warm", Check(user_id="warm", product="MUG", session="s"))])
    seen: Counter[str] = Counter()
    for number in range(61):
        user, order = f"user {number}", f"order {number}"
        await knocker.transact([command("r1", add("PLENTY", 1, user))])
        # From a millisecond before to a millisecond after, and twice with no doubt, as the transactions read the clock.
        lead = f"{(number - 30) * 33} microseconds" if number % 60 else f"{number - 30} seconds"
        [(due,)] = await real.rows(
            "UPDATE holder SET expires_at = now() + interval '1 millisecond' + %s::interval WHERE user_id = %s"
            " RETURNING expires_at",
            (lead, user),
        )
        knock = Command(expiry_id(user, due, 1), due, Expire(user_id=user, due=due))
        told = await asyncio.gather(
            knocker.transact([knock]), checker.transact([command("c", checkout(1, order, user))])
        )
        kinds = Counter(
            getattr(answer.outcome, "reason", answer.outcome.type) for each in told for answer in each.replies
        )
        won = [kind for kind in kinds if kind == "committed"] or ["expired"]
        # Expired, says the expiry request, the checkout that met the cart due, and the reason of its refusal.
        assert kinds in ({"committed": 1}, {"expired": 2}, {"expired": 3}), kinds
        seen[won[0]] += 1
    assert set(seen) == {"committed", "expired"}
    held, holds = await real.one("SELECT held FROM inventory WHERE product_code = 'PLENTY'"), seen["committed"]
    assert held == holds
    await real.connection.execute("UPDATE holder SET expires_at = NULL")  # the audit ignores manual changes
    assert (await audit(real.connection))["violations"] == []


async def test_an_order_that_two_shoppers_have_is_one_shoppers(real: Schema) -> None:
    stores = {user: real.store() for user in ("ann", "bob")}
    for number in range(20):
        order = f"order {number}"

        async def ask(user: str, order: str = order) -> Any:
            commit = command(order, take(order, user, TEAPOT=1))
            try:
                return (await stores[user].transact([commit])).replies[0].outcome
            except psycopg.errors.UniqueViolation:  # as the batch processor does: alone, once more
                return (await stores[user].transact([commit])).replies[0].outcome

        outcomes = await asyncio.gather(ask("ann"), ask("bob"))
        assert {getattr(each, "reason", each.type) for each in outcomes} == {"committed", "failed"}
        winner = "ann" if outcomes[0].type == "committed" else "bob"
        await stores["ann"].transact([command(f"f{number}", release("shelf", order, winner))])
    assert (await audit(real.connection))["violations"] == []


async def test_the_last_unit_goes_to_one_order(real: Schema) -> None:
    await real.stock(LAST=1)
    stores = [real.store() for _ in range(4)]
    decided = await asyncio.gather(
        *(store.transact([command("c", take(f"order {n}", f"user {n}", LAST=1))]) for n, store in enumerate(stores))
    )
    assert Counter(each.replies[0].outcome.type for each in decided) == {"committed": 1, "refused": 3}


def _random(chance: random.Random, users: list[str], revisions: dict[str, int]) -> Command:
    user, product = chance.choice(users), chance.choice(["TEAPOT", "MUG", "P1", "P2"])
    order = f"order of {user} {chance.randrange(12)}"
    shelf: Any = chance.choice(["cart", "shelf"])
    choices: list[Request] = [
        add(product, chance.randint(1, 3), user),
        add(product, chance.randint(1, 3), user),
        Remove(user_id=user, product=product),
        checkout(revisions.get(user, 0) + chance.choice((0, 0, 0, 1)), order, user),
        checkout(revisions.get(user, 0) + chance.choice((0, 0, 0, 1)), order, user),
        take(order, user, P1=1, **({"MUG": 1} if chance.random() < 0.5 else {})),
        sell(order, user),
        release(shelf, order, user),
        restock(order, user, shipped=chance.random() < 0.5),
    ]
    return command(str(chance.randrange(2000)), chance.choice(choices))


async def test_workers_side_by_side_keep_every_rule_of_orders(real: Schema) -> None:
    await real.stock(TEAPOT=40, MUG=40, P1=40, P2=40)
    users = [f"user {n}" for n in range(6)]
    revisions: dict[str, int] = {}

    async def work(worker: int) -> list[Reply]:
        chance, store = random.Random(worker), real.store()
        answers: list[Reply] = []
        for _ in range(30):
            batch = [_random(chance, users, revisions) for _ in range(chance.randint(1, 15))]
            batch += chance.choices(batch, k=2)
            for _ in range(chance.choice((1, 1, 2))):  # crashed after the commit, and repeats it
                while True:  # as the batch processor does
                    try:
                        told = (await store.transact(batch)).replies
                        break
                    except postgres.TRANSIENT_ERRORS:
                        continue
                answers += told
                for answer in told:
                    user = answer.command.request.user_id
                    revisions[user] = max(answer.cart.revision, revisions.get(user, 0))
            if chance.random() < 0.1:
                await real.pass_time(minutes=15)
        return answers

    answers = [answer for each in await asyncio.gather(*(work(n) for n in range(3))) for answer in each]
    kinds = Counter(getattr(answer.outcome, "reason", answer.outcome.type) for answer in answers)
    wanted = {"committed", "sold", "released", "restocked", "reservation", "expired", "cart_changed", "out_of_stock"}
    assert wanted <= set(kinds), kinds
    carts: dict[tuple[str, int], Any] = {}
    committed: dict[str, Committed] = {}
    for answer in answers:
        key = (answer.command.request.user_id, answer.cart.revision)
        assert carts.setdefault(key, answer.cart.lines) == answer.cart.lines, "one revision, one cart"
        if isinstance(answer.outcome, Committed):
            first = committed.setdefault(answer.outcome.order_id, answer.outcome)
            assert answer.outcome == first, "one order, one commit"
    await real.store().transact([command("s", Snapshot(user_id=user, session="s", epoch="e")) for user in users])
    report = await audit(real.connection)
    assert report["violations"] == []
    assert report["figures"]["sold"] > 0


# ---- what a process can come to -------------------------------------------------------------------------------------


class CrashBeforeWriting(PostgresStore):
    """Crash like a process that is killed between the round trips."""

    async def _write(self, pipeline: StatementPipeline, state: State) -> None:  # noqa: ARG002 - never written
        raise psycopg.OperationalError("killed")


class CrashAfterCommit(PostgresStore):
    """Crash like a process that is killed before it can publish."""

    async def _write(self, pipeline: StatementPipeline, state: State) -> None:
        await super()._write(pipeline, state)
        raise psycopg.OperationalError("killed")


@pytest.mark.parametrize("killed", [CrashBeforeWriting, CrashAfterCommit])
async def test_a_step_at_which_the_process_crashes_is_done_once(real: Schema, killed: type[PostgresStore]) -> None:
    live: list[tuple[str, Request]] = [
        ("r1", add("TEAPOT", 3)),
        ("c", checkout(1)),
        ("o1/sell", sell()),
        ("o1/restock", restock(shipped=True)),
        ("c2", take("o2", TEAPOT=10)),
        ("o2/release", release("cart", "o2")),
        ("o3/release", release("cart", "o3")),
    ]
    outcomes = []
    for id_, request in live:
        with pytest.raises(psycopg.OperationalError):
            await killed(real.store().connect).transact([command(id_, request)])
        [answer] = (await real.store().transact([command(id_, request)])).replies
        assert answer.replayed == (killed is CrashAfterCommit)
        outcomes.append(answer.outcome.type)
    assert outcomes == ["held", "committed", "sold", "restocked", "committed", "released", "released"]
    assert await real.rows("SELECT received, held, sold FROM inventory WHERE product_code = 'TEAPOT'") == [(13, 10, 3)]
    assert (await audit(real.connection))["violations"] == []


async def test_a_batch_without_orders_asks_nothing_about_them(real: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    await real.connection.execute("DROP TABLE reservation")
    [answer] = (await real.store().transact([command("r1", add("TEAPOT"))])).replies
    assert answer.outcome.type == "held"


# ---- the audit ------------------------------------------------------------------------------------------------------


async def _orders(real: Schema) -> None:
    """One order of each state."""
    await real.store().transact(
        [
            command("r1", add("TEAPOT", 3)),
            command("c1", checkout(1, "sold")),
            command("s1", sell("sold")),
            command("c2", take("pending", MUG=2)),
            command("c3", take("back", MUG=1)),
            command("s3", sell("back")),
            command("b3", restock("back", shipped=True)),
            command("f4", release("cart", "closed")),
        ]
    )


async def test_the_audit_counts_orders_and_its_digest_covers_them(real: Schema) -> None:
    await _orders(real)
    before = await audit(real.connection)
    assert (before["violations"], before["figures"]["orders"], before["figures"]["holds"]) == ([], 4, 1)
    await _orders(real)
    assert await audit(real.connection) == before, "no replay changes it"
    for change in (
        "UPDATE reservation SET user_id = 'bob' WHERE order_id = 'closed'",
        "UPDATE hold SET state = 'CANCELLED' WHERE order_id = 'pending'",
    ):
        await real.connection.execute(change)
        after = await audit(real.connection)
        assert after["digest"] != before["digest"]
        before = after


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE hold SET state = 'PENDING' WHERE order_id = 'sold'",
        "UPDATE hold SET state = 'COMMITTED' WHERE order_id = 'pending'",
        "UPDATE hold SET state = 'COMMITTED' WHERE order_id = 'back'",
        "UPDATE hold SET hold_quantity = 9 WHERE order_id = 'sold'",
        "UPDATE hold SET price_minor = 9 WHERE order_id = 'sold'",
        "UPDATE hold SET user_id = 'bob' WHERE order_id = 'back'",
        "DELETE FROM hold WHERE order_id = 'back'",
        "DELETE FROM hold WHERE order_id = 'sold'",
        "DELETE FROM reservation WHERE order_id = 'sold'",
        "UPDATE inventory SET sold = sold - 1 WHERE product_code = 'TEAPOT'",
        "INSERT INTO hold SELECT user_id, 'TEAPOT', 1, 1, 'GBP', now(), 'back', 'PENDING' FROM reservation LIMIT 1",
        "INSERT INTO stock_ledger VALUES ('MUG', 6, NULL, NULL, 'x', 0, -1, 1), ('MUG', 7, NULL, NULL, 'x', 0, 1, -1)",
        "UPDATE reservation SET revision = 1 WHERE order_id = 'sold'",
    ],
)
async def test_the_audit_sees_any_damage_to_orders(real: Schema, damage: str) -> None:
    await _orders(real)
    assert (await audit(real.connection))["violations"] == []
    await real.connection.execute(damage.encode())
    assert (await audit(real.connection))["violations"] != []
