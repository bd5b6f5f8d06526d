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
    await expect(page.locator("#checkout-outcome")).to_contain_text("Your cart has changed in the meantime")
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
    await expect(page.locator(".order")).to_have_count(1)
    await expect(page.locator("#checkout-outcome")).to_contain_text("is placed")  # found in the list of orders
    move(edge, await page.locator(".order").get_attribute("data-order") or "", "paid")
    await expect(page.locator("#checkout-outcome")).to_contain_text("Thank you")


# ---- the end of a checkout ------------------------------------------------------------------------------------------

WINDOWS = [(1280, 900), (1280, 720), (390, 844)]
REFUSALS = {
    "cart-changed": "Your cart has changed",
    "cart-expired": "Your time ran out",
    "total-changed": "The total has changed",
    "out-of-stock": "Not everything is available",
    "over-limit": "more than one order can hold",
    "unknown-product": "no longer for sale",
    "payment-unavailable": "Payments are not available",
    "unavailable": "The shop did not respond",
    "overloaded": "The shop did not respond",
    "rate-limited": "a little fast",
    "request-in-progress": "still working on it",
    "token-expired": "Your session has ended",
}


@pytest_asyncio.fixture(loop_scope="module", params=WINDOWS, ids=lambda size: f"{size[0]}x{size[1]}")
async def window(page: Page, request: pytest.FixtureRequest) -> Page:
    """The shopper's tab in a window of a given size, with the cart open."""
    width, height = request.param
    await page.set_viewport_size({"width": width, "height": height})
    if await page.locator("#bar").is_visible():
        await page.locator("#bar").click()
    return page


async def expect_outcome(page: Page, text: str) -> None:
    """Expect an outcome of the checkout that is in view, has the focus, and stays until the next click."""
    outcome = page.locator("#checkout-outcome")
    await expect(outcome).to_contain_text(text)
    await expect(outcome).to_be_in_viewport(ratio=1)
    await expect(outcome).to_be_focused()
    await expect(outcome).to_have_attribute("role", "alert")
    await page.locator("#cart").hover()
    await page.mouse.wheel(0, 2000)
    await expect(outcome).to_be_in_viewport(ratio=1)
    await page.locator("#cart-title").click()
    await expect(outcome).to_be_empty()


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("declined", "The payment was declined"),
        ("payment_unavailable", "The payment could not be completed"),
        ("wrong_amount", "The payment was for the wrong amount"),
        ("failed", "The shop could not process it"),
    ],
)
async def test_a_payment_that_fails_is_shown(window: Page, edge: Running, reason: str, text: str) -> None:
    await window.get_by_role("button", name="Buy it").click()
    await expect(window.locator("#checkout-outcome")).to_contain_text("is placed")
    await expect(window.locator("#checkout-outcome")).to_be_in_viewport(ratio=1)
    await expect(window.locator(".order")).to_have_count(1)
    order_id = await window.locator(".order").get_attribute("data-order") or ""
    move(edge, order_id, "cancelled", reason=reason)
    await expect_outcome(window, text)
    await expect(window.locator(".order")).to_contain_text(text)


async def test_an_order_that_is_paid_is_thanked_for(window: Page, edge: Running) -> None:
    await window.get_by_role("button", name="Buy it").click()
    await expect(window.locator(".order")).to_have_count(1)
    move(edge, await window.locator(".order").get_attribute("data-order") or "", "paid")
    await expect_outcome(window, "Thank you")


async def test_an_outcome_is_shown_after_a_reload_and_to_another_tab(page: Page, edge: Running) -> None:
    await page.get_by_role("button", name="Buy it").click()
    await expect(page.locator(".order")).to_have_count(1)
    order_id = await page.locator(".order").get_attribute("data-order") or ""
    await page.goto("about:blank")
    move(edge, order_id, "cancelled", reason="declined")
    await page.goto("/")
    await expect_outcome(page, "The payment was declined")
    assert await page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize(("slug", "text"), REFUSALS.items())
async def test_an_order_that_is_refused_says_why(page: Page, slug: str, text: str) -> None:
    async def refuse(route: Route) -> None:
        if route.request.method == "POST":
            body = {"type": f"/problems/{slug}", "title": slug, "status": 409}
            await route.fulfill(status=409, json=body, content_type="application/problem+json")
        else:
            await route.continue_()

    await page.route("**/v1/orders*", refuse)
    await page.get_by_role("button", name="Buy it").click()
    await expect_outcome(page, text)
    await expect(page.get_by_role("button", name="Buy it")).to_be_enabled()


async def test_a_shop_that_does_not_answer_is_reported(page: Page) -> None:
    await page.route("**/v1/orders*", lambda route: route.abort())
    await page.get_by_role("button", name="Buy it").click()
    await expect_outcome(page, "The shop did not respond")


async def test_a_shopper_who_types_elsewhere_keeps_the_focus(page: Page, edge: Running) -> None:
    await page.get_by_role("button", name="Buy it").click()
    await expect(page.locator(".order")).to_have_count(1)
    order_id = await page.locator(".order").get_attribute("data-order") or ""
    await page.get_by_role("searchbox").click()
    move(edge, order_id, "cancelled", reason="declined")
    await expect(page.locator("#checkout-outcome")).to_contain_text("The payment was declined")
    await expect(page.locator("#checkout-outcome")).to_be_in_viewport(ratio=1)
    await expect(page.get_by_role("searchbox")).to_be_focused()


async def test_the_bar_of_a_closed_cart_shows_the_outcome(page: Page, edge: Running) -> None:
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.locator("#bar").click()
    await page.get_by_role("button", name="Buy it").click()
    await expect(page.locator(".order")).to_have_count(1)
    order_id = await page.locator(".order").get_attribute("data-order") or ""
    await page.get_by_role("button", name="Back to the products").click()
    move(edge, order_id, "cancelled", reason="declined")
    await expect(page.locator("#bar")).to_contain_text("Payment declined")
    await page.locator("#bar").click()
    await expect(page.locator("#checkout-outcome")).to_be_in_viewport(ratio=1)
    await page.locator("#cart-title").click()
    await page.get_by_role("button", name="Back to the products").click()
    await expect(page.locator("#bar")).not_to_contain_text("Payment declined")


async def test_the_country_is_chosen_by_its_name(page: Page, edge: Running) -> None:
    country = page.get_by_label("Country", exact=True)
    assert await country.locator("option").count() == 249
    names = await country.locator("option").all_text_contents()
    assert {"Germany", "United Kingdom", "Japan", "Åland Islands"} <= set(names)
    assert not [name for name in names if len(name) == 2]
    await country.select_option(label="Germany")
    async with page.expect_request("**/v1/orders") as sent:
        await page.get_by_role("button", name="Buy it").click()
    body = (await sent.value).post_data_json
    assert body
    assert body["address"]["country"] == "DE"
    await expect(page.locator(".order")).to_have_count(1)


async def test_a_cart_with_only_a_refusal_offers_nothing_to_empty(page: Page) -> None:
    await page.evaluate("fetch('/v1/cart', {method: 'DELETE', headers: {'Prefer': 'wait=10'}})")
    await expect(page.locator("#sum")).to_be_hidden()
    await expect(page.locator("#cart-empty")).to_be_visible()
