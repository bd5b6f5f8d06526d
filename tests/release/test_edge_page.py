"""The page's way to an order, in a real browser, with a stand-in for the services behind the edge."""

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from contracts import cart
from tests.testkit.browser import browser
from tests.testkit.edge import Running, running_edge
from tests.testkit.servers import Servers

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 30_000
FORM = {"Name": "Ann", "Street": "1 High Street", "City": "York", "Postcode": "YO1 7HH", "E-mail": "ann@example.org"}
ADD = """() => fetch("/v1/cart/items", {
  method: "POST", headers: {"Content-Type": "application/json", "Prefer": "wait=10"},
  body: JSON.stringify({product: "P", quantity: 2}),
})"""


@pytest.fixture(scope="module")
def edge(servers: Servers) -> Iterator[Running]:
    with running_edge(servers, f"ep{secrets.token_hex(3)}.") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    async with browser() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def page(chromium: Browser, edge: Running) -> AsyncIterator[Page]:
    """A new shopper's tab with two of a product in the cart, and the form filled."""
    async with await chromium.new_context(base_url=edge.url) as context:
        page = await context.new_page()
        page.set_default_timeout(PATIENCE)
        await page.goto("/")
        await expect(page.locator("#connection")).to_have_attribute("data-state", "open")
        await expect(page.locator("#checkout")).to_be_hidden()
        await page.evaluate(ADD)
        await expect(page.locator("#total")).to_have_text("£5.90")
        for label, text in FORM.items():
            await page.get_by_label(label, exact=True).fill(text)
        yield page


def move(edge: Running, order_id: str, status: str, **more: Any) -> None:
    """Publish a step of the order service, on the topic of events and to the shopper's sockets."""
    told = edge.carts.desk.event(order_id, status, status, **more)
    edge.carts.publish(told.topic, told.source, told.kind, told.key, told.data)
    frame = {"id": "x", "order_id": order_id, "status": status, "order_version": told.data["version"]}
    reason = {"reason": more["reason"]} if "reason" in more else {}
    user = edge.carts.desk.orders[order_id]["user_id"]
    edge.carts.publish(cart.RESPONSES, "/orders", cart.Order.TYPE, user, {"user_id": user, **frame, **reason})


async def test_an_order_is_bought_followed_and_cancelled(page: Page, edge: Running) -> None:
    await page.get_by_role("button", name="Buy it").click()
    order = page.locator(".order")
    await expect(order).to_have_attribute("data-status", "committed")
    await expect(order).to_contain_text("2 \N{MULTIPLICATION SIGN} P")
    await expect(order).to_contain_text("£5.90")
    await expect(page.locator("#cart-empty")).to_be_visible()
    await expect(page.locator("#checkout")).to_be_hidden()
    order_id = await order.get_attribute("data-order") or ""
    move(edge, order_id, "confirmed")
    await expect(order).to_contain_text("Being packed")
    await page.reload()
    await expect(order).to_contain_text("Being packed")
    await order.get_by_role("button", name="Cancel this order").click()
    await expect(order).to_contain_text("Cancelled, as you asked.")
    await expect(order.get_by_role("button")).to_be_hidden()


async def test_an_order_in_delivery_is_not_cancelled(page: Page, edge: Running) -> None:
    await page.get_by_role("button", name="Buy it").click()
    order = page.locator(".order")
    await expect(order).to_have_attribute("data-status", "committed")
    edge.carts.desk.orders[await order.get_attribute("data-order") or ""]["status"] = "shipped"
    await order.get_by_role("button", name="Cancel this order").click()
    await expect(order.get_by_role("alert")).to_contain_text("no longer be cancelled")


async def test_a_cart_that_changed_meanwhile_is_not_bought(page: Page) -> None:
    async def another_came_first(route: Route) -> None:
        body = route.request.post_data_json
        assert body
        await route.continue_(post_data={**body, "version": body["version"] - 1})

    await page.route("**/v1/orders", another_came_first)
    await page.get_by_role("button", name="Buy it").click()
    await expect(page.locator("#checkout-error")).to_contain_text("Your cart has changed in the meantime")
    await expect(page.locator(".order")).to_have_count(0)


async def test_an_order_without_an_answer_is_asked_for_again_and_made_once(page: Page, edge: Running) -> None:
    cut = True

    async def lose_the_answer(route: Route) -> None:
        nonlocal cut
        if route.request.method == "POST" and cut:
            cut = False
            await route.fetch()
            await route.abort()
        else:
            await route.continue_()

    await page.route("**/v1/orders", lose_the_answer)
    await page.get_by_role("button", name="Buy it").click()
    await expect(page.locator("#checkout-error")).to_contain_text("try again")
    await expect(page.locator(".order")).to_have_count(1)
