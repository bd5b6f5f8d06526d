"""The pages of the insights in a real browser, for a shopper and for support."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
from playwright.async_api import Browser, Page, expect

from contracts.insights import Takings
from tests.testkit.browser import browser
from tests.testkit.edge import Running
from tests.testkit.insights_edge import insights_edge, related, tell_figures, tell_related, token
from tests.testkit.processes import until
from tests.testkit.servers import Servers

PATIENCE = 30_000
"""Milliseconds; long, for a machine that does other work too."""


@pytest.fixture(scope="module")
def edge(servers: Servers) -> Iterator[Running]:
    with insights_edge(servers) as running:
        yield running


@pytest.fixture
async def page(edge: Running) -> AsyncIterator[Page]:
    """A tab; whatever goes wrong in its scripts fails the test."""
    expect.set_options(timeout=PATIENCE)
    async with browser() as running:
        found = await _tab(running, edge)
        broken: list[str] = []
        found.on("pageerror", lambda error: broken.append(str(error)))
        yield found
        assert broken == []


async def _tab(running: Browser, edge: Running) -> Page:
    context = await running.new_context(base_url=edge.url)
    context.set_default_timeout(PATIENCE)
    return await context.new_page()


async def test_the_page_draws_the_figures(page: Page, edge: Running) -> None:
    takings = (Takings(currency="GBP", orders=3, ordered=9000, captured=4000, refunded=1000, payments=2),)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    figures = {"orders_placed": 7, "orders_confirmed": 3, "orders_cancelled": 1, "shoppers": 4, "buyers": 1}
    tell_figures(edge, "hour", hour, version=1000, takings=takings, **figures)
    await page.goto("/analytics")
    await expect(page.locator("#by")).to_have_value("minute")
    await expect(page.locator("#status")).to_contain_text("A token is needed")
    await page.locator("#token").fill(token("shopper", edge.settings)["Authorization"].removeprefix("Bearer "))
    await page.get_by_role("button", name="Show").click()
    await expect(page.locator("#status")).to_contain_text("Forbidden")
    await page.locator("#token").fill(token("support", edge.settings)["Authorization"].removeprefix("Bearer "))
    await page.get_by_role("button", name="Show").click()
    await expect(page.locator(".chart", has_text="Nothing in this time range")).to_have_count(
        7
    )  # no revenue, no currency
    await page.locator("#by").select_option("hour")
    placed = page.locator(".chart", has=page.get_by_role("heading", name="Orders placed"))
    await expect(placed.locator("rect")).to_have_count(1)
    await expect(placed.locator("rect")).to_be_visible()
    await expect(placed.locator("rect title")).to_contain_text(": 7")
    revenue = page.locator(".chart", has=page.get_by_role("heading", name="Revenue, GBP"))
    await expect(revenue).to_contain_text("30 captured less refunded; 20 average order")
    await expect(placed).to_contain_text("7, at most 7 in one hour")
    conversion = page.locator(".chart", has=page.get_by_role("heading", name="Conversion"))
    await expect(conversion).to_contain_text("25.0 % of the shoppers")
    size = await placed.locator("text").first.evaluate("text => text.getBoundingClientRect().height")
    assert size >= 11
    abandoned = page.locator(".chart", has=page.get_by_role("heading", name="Carts abandoned"))
    await expect(abandoned).to_contain_text("Nothing in this time range")
    await expect(page.locator(".chart", has=page.get_by_role("heading", name="Order success"))).to_contain_text(
        "75.0 %"
    )
    assert await page.locator(".chart").count() == 8


async def test_a_link_may_carry_the_token(page: Page, edge: Running) -> None:
    tell_figures(edge, "minute", datetime.now(UTC).replace(second=0, microsecond=0), orders_placed=4)
    signed = token("support", edge.settings)["Authorization"].removeprefix("Bearer ")
    await page.goto("/")
    await page.get_by_role("link", name="Figures").click()
    await page.goto(f"/analytics#token={signed}")
    placed = page.locator(".chart", has=page.get_by_role("heading", name="Orders placed"))
    await expect(placed).to_contain_text("4, at most 4 in one minute")
    assert signed not in page.url


async def test_the_cart_shows_what_goes_with_it(page: Page, edge: Running) -> None:
    tell_related(edge, "F", "G", version=1)
    with edge.client() as client:
        until(lambda: related(client, "F") == ["G"])
    await page.goto("/?q=F")
    await page.locator('[data-product="F"] button').click()
    offered = page.locator('#cart [data-related="G"]')
    await expect(offered).to_contain_text("name of G")
    await offered.get_by_role("button").click()
    await expect(page.locator("#lines")).to_contain_text("name of G")
    await expect(offered).to_have_count(0)
