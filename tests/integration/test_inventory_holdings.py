"""One shopper cannot hold the whole stock, in carts and orders, decided by the real store and its double alike."""

from collections.abc import AsyncIterator

import pytest

from contracts.inventory import Commit, Hold, Item, Refused, ReleaseOrder, Sell
from infrastructure.process.settings import Settings as Shared
from inventory_service.settings import Settings
from inventory_service.state import HoldingLimits
from tests.testkit.inventory_store import (
    InventoryStoreFixture,
    MemoryInventory,
    PostgresInventory,
    add,
    command,
    schema,
)

DEFAULTS = Settings().holding_limits
TOO_MANY = Refused(product="GLOBE", reason="limit")


@pytest.fixture(params=["memory", "postgres"])
async def shop(request: pytest.FixtureRequest, settings: Shared) -> AsyncIterator[InventoryStoreFixture]:
    stock = {"GLOBE": 26, "LAMP": 12, "HEART": 1000}
    found: InventoryStoreFixture
    if request.param == "memory":
        found = MemoryInventory(**stock)
        found.limit(DEFAULTS)
        yield found
    else:
        async with schema(settings) as here:
            await here.stock(**stock)
            found = PostgresInventory(here)
            found.limit(DEFAULTS)
            yield found


def order(id_: str, user: str = "ann", purpose: str = "order", **lines: int) -> Commit:
    items = tuple(Item(product=code, quantity=units) for code, units in lines.items())
    return Commit.model_validate({"user_id": user, "order_id": id_, "lines": items, "purpose": purpose})


async def test_one_add_cannot_hold_all_units(shop: InventoryStoreFixture) -> None:
    assert await shop.ask("r1", add("GLOBE", 26)) == TOO_MANY
    assert await shop.ask("r2", add("GLOBE", 14)) == TOO_MANY
    assert (await shop.ask("r3", add("GLOBE", 13))).type == "held"
    assert await shop.ask("r4", add("GLOBE", 1)) == TOO_MANY, "nor can several"
    assert await shop.ask("r5", Hold(user_id="ann", product="GLOBE", mode="set", quantity=14)) == TOO_MANY
    assert (await shop.ask("r6", Hold(user_id="ann", product="GLOBE", mode="set", quantity=9))).line_quantity == 9
    assert (await shop.ask("r7", add("GLOBE", 13, "bob"))).type == "held", "another shopper has a limit of their own"
    assert await shop.stock("GLOBE") == (26, 22, 0)


async def test_a_small_stock_may_be_bought_whole(shop: InventoryStoreFixture) -> None:
    assert (await shop.ask("r1", add("LAMP", 12))).type == "held"


async def test_more_than_there_is_is_still_out_of_stock(shop: InventoryStoreFixture) -> None:
    assert await shop.ask("r1", add("GLOBE", 27)) == Refused(product="GLOBE", reason="out_of_stock", available=26)


async def test_what_unsold_orders_hold_counts_until_it_is_sold_or_released(shop: InventoryStoreFixture) -> None:
    """As with a payment that times out: the order holds its units for ten minutes."""
    assert (await shop.ask("c1", order("o1", GLOBE=13))).type == "committed"
    assert await shop.ask("c2", order("o2", GLOBE=1)) == Refused(product="GLOBE", reason="limit", order_id="o2")
    assert await shop.ask("r1", add("GLOBE", 1)) == TOO_MANY
    assert (await shop.ask("s1", ReleaseOrder(user_id="ann", order_id="o1", to="shelf"))).type == "released"
    assert (await shop.ask("r2", add("GLOBE", 13))).type == "held"
    assert await shop.ask("c3", order("o3", GLOBE=1)) == Refused(product="GLOBE", reason="limit", order_id="o3")


async def test_a_shopper_may_buy_again_once_the_order_is_paid(shop: InventoryStoreFixture) -> None:
    await shop.ask("c1", order("o1", GLOBE=13))
    await shop.ask("s1", Sell(user_id="ann", order_id="o1"))
    assert (await shop.ask("r1", add("GLOBE", 12))).type == "held"


async def test_within_one_batch_orders_count_as_well(shop: InventoryStoreFixture) -> None:
    found = await shop.outcomes(
        command("c1", order("o1", GLOBE=13)),
        command("r1", add("GLOBE", 1)),
        command("s1", ReleaseOrder(user_id="ann", order_id="o1", to="shelf")),
        command("r2", add("GLOBE", 13)),
        command("r3", add("GLOBE", 1)),
    )
    assert [each.type for each in found] == ["committed", "refused", "released", "held", "refused"]


async def test_an_order_of_the_cart_moves_what_is_held(shop: InventoryStoreFixture) -> None:
    held = await shop.ask("r1", add("GLOBE", 13))
    cart = Commit(user_id="ann", order_id="o1", version=held.version)
    assert (await shop.ask("c1", cart)).type == "committed"
    assert await shop.ask("r2", add("GLOBE", 1)) == TOO_MANY
    assert (await shop.ask("s1", ReleaseOrder(user_id="ann", order_id="o1", to="cart"))).type == "released"
    assert await shop.ask("r3", add("GLOBE", 1)) == TOO_MANY
    assert (await shop.ask("r4", Hold(user_id="ann", product="GLOBE", mode="set", quantity=12))).type == "held"


async def test_a_service_reserves_for_many_shoppers(shop: InventoryStoreFixture) -> None:
    assert (await shop.ask("c1", order("o1", "till", "reservation", GLOBE=26))).type == "committed"


async def test_a_refusal_is_repeated_after_the_limit_was_raised(shop: InventoryStoreFixture) -> None:
    assert await shop.ask("r1", add("GLOBE", 26)) == TOO_MANY
    shop.limit(HoldingLimits())
    [again] = await shop.tell(command("r1", add("GLOBE", 26)))
    assert (again.outcome, again.replayed) == (TOO_MANY, True)
    assert (await shop.ask("r2", add("GLOBE", 26))).type == "held"


async def test_a_number_of_units_is_a_limit_too(shop: InventoryStoreFixture) -> None:
    shop.limit(HoldingLimits(units=5, share=0.5, free_units=12))
    assert (await shop.ask("r1", add("HEART", 5))).type == "held"
    assert await shop.ask("r2", add("HEART", 1)) == Refused(product="HEART", reason="limit")
