"""The shop's page in a real browser on a whole shop, also when connections are lost and processes crash."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Self

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Locator, Page, WebSocketRoute, expect

from tests.testkit.browser import browser
from tests.testkit.shop import Shop

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE: Final = 30_000
"""Milliseconds; long, for a machine that does other work too. Nothing here passes by waiting."""
OUTCOMES: Final = ("held", "refused", "removed")
HOSTILE: Final = "<script>window.broken=1</script><img src=x onerror=window.broken=1> lamp"

expect.set_options(timeout=PATIENCE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """One browser for all these tests; each shopper has a context, and so a cookie, of their own."""
    async with browser() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def shopper(chromium: Browser, shop: Shop) -> AsyncIterator[Callable[[], Awaitable[BrowserContext]]]:
    """Makes browsers that have never been here."""
    url = shop.http_url
    contexts: list[BrowserContext] = []

    async def new() -> BrowserContext:
        contexts.append(await chromium.new_context(base_url=url))
        contexts[-1].set_default_timeout(PATIENCE)
        return contexts[-1]

    yield new
    for context in contexts:
        await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(shopper: Callable[[], Awaitable[BrowserContext]]) -> Page:
    """A tab of a new shopper."""
    return await (await shopper()).new_page()


@pytest.fixture
def word() -> str:
    """A word that the names of one test's products have, and no others."""
    return "x" + secrets.token_hex(5)


@pytest.fixture
def product(shop: Shop, word: str, tmp_path: Path) -> str:
    """A product of 12.50 with 10 units; searching for `word` shows it alone."""
    code = f"PAGE-{word.upper()}"
    shop.seed([(code, f"TEAPOT {word.upper()}", 1250, 10)], tmp_path)
    return code


class Line:
    """A proxy between a page and the edge that holds outcomes back and ends the connection at a chosen moment."""

    def __init__(self) -> None:
        self.away = False
        self._sockets: list[WebSocketRoute] = []
        self._held_back: list[tuple[WebSocketRoute, str]] = []
        self._holding = False
        self._decided = asyncio.Event()

    @classmethod
    async def of(cls, page: Page) -> Self:
        """The line of a page that is not open yet."""
        line = cls()
        await page.route_web_socket(re.compile(r"/v1/stream$"), line._opened)
        return line

    async def _opened(self, socket: WebSocketRoute) -> None:
        if self.away:
            await socket.close(code=1012, reason="away")
            return
        self._sockets.append(socket)
        server = socket.connect_to_server()
        server.on_message(lambda text: self._from_server(socket, text))

    def _from_server(self, socket: WebSocketRoute, text: str | bytes) -> None:
        if self._holding and any(f'"type":"{kind}"' in str(text) for kind in OUTCOMES):
            self._held_back.append((socket, str(text)))
            self._decided.set()
        else:
            socket.send(text)

    def hold_back(self) -> None:
        """Outcomes that come from now on stay here."""
        self._holding = True

    def let_go(self) -> None:
        """Pass on what was held back."""
        self._holding = False
        for socket, text in self._held_back:
            socket.send(text)

    async def until_decided(self) -> None:
        """Return when an outcome was held back: the shop has decided, and the page does not know."""
        await asyncio.wait_for(self._decided.wait(), PATIENCE / 1000)

    async def cut(self) -> None:
        """End the connection, with all that was held back; refuse new ones until `away` is `False`."""
        self.away = True
        self._holding = False
        self._held_back.clear()
        for socket in self._sockets:
            await socket.close(code=1012, reason="cut")
        self._sockets.clear()


async def visit(page: Page, word: str) -> None:
    await page.goto(f"/?q={word}")
    await expect(page.locator("#connection")).to_have_attribute("data-state", "open")


def card(page: Page, product: str) -> Locator:
    return page.locator(f'.product[data-product="{product}"]')


def line_of(page: Page, product: str) -> Locator:
    return page.locator(f'.cart-line[data-product="{product}"]')


async def add(page: Page, product: str, quantity: int = 1) -> None:
    await card(page, product).get_by_role("spinbutton").fill(str(quantity))
    await card(page, product).get_by_role("button").click()


async def expect_line(page: Page, product: str, state: str, *, held: int) -> None:
    await expect(line_of(page, product)).to_have_attribute("data-state", state)
    await expect(line_of(page, product)).to_have_attribute("data-held", str(held))


async def cart_of(page: Page) -> dict[str, Any]:
    """The cart as the shop has it, asked over HTTP with the page's own cookie."""
    answer = await page.context.request.get("/v1/cart")
    told: dict[str, Any] = await answer.json()
    return told


async def held_by_shop(page: Page) -> dict[str, int]:
    return {line["product"]: line["quantity"] for line in (await cart_of(page))["lines"]}


# ---- catalogue ------------------------------------------------------------------------------------------------------


async def test_the_catalogue_is_shown_searched_and_paged(page: Page, shop: Shop, word: str, tmp_path: Path) -> None:
    shop.seed([(f"P{number:02}-{word}", f"Candle {word} {number:02}", 99, number) for number in range(30)], tmp_path)
    await page.goto("/")
    await expect(page.locator(".product")).to_have_count(24)
    await page.get_by_role("searchbox").fill(word)
    await expect(card(page, f"P00-{word}")).to_contain_text("Sold out")
    await expect(card(page, f"P03-{word}")).to_contain_text("Only 3 left")
    await expect(card(page, f"P20-{word}")).to_contain_text("20 in stock")
    await expect(card(page, f"P20-{word}")).to_contain_text("£0.99")
    await expect(page.locator(".product")).to_have_count(24)
    await page.get_by_role("button", name="Show more").click()
    await expect(page.locator(".product")).to_have_count(30)
    await expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    await page.get_by_role("searchbox").fill(f"{word}nosuchthing")
    await expect(page.locator("#catalogue-status")).to_contain_text("No products found")
    await expect(page.locator(".product")).to_have_count(0)


async def test_a_search_that_finds_nothing_helps_on(page: Page, shop: Shop, word: str, tmp_path: Path) -> None:
    letters = "".join(chr(ord("a") + int(digit, 16)) for digit in word if digit in "0123456789abcdef") or "abcdef"
    shop.seed([(f"B-{word}", f"BLUE {letters.upper()} LANTERNS", 99, 5)], tmp_path)
    await page.goto("/")
    await expect(page.locator("#catalogue-status")).to_have_text(re.compile(r"^(24 of )?\d+ products?$"))
    example = re.fullmatch(r"Search: (\w+).*", await page.get_by_role("searchbox").get_attribute("placeholder") or "")
    assert example
    await page.get_by_role("searchbox").fill(example[1])
    await expect(page.locator(".product").first).to_be_visible()
    await page.get_by_role("searchbox").fill(f"latern {letters}")
    await expect(page.locator("#catalogue-status")).to_contain_text(f"Showing 1 product for “lantern {letters}”")
    await expect(card(page, f"B-{word}").get_by_role("heading")).to_have_text(f"Blue {letters} lanterns")
    await page.get_by_role("searchbox").fill(f"lantern {letters} nosuchthing")
    await page.get_by_role("button", name=f"Search for “{letters}”").click()
    await expect(card(page, f"B-{word}")).to_be_visible()
    await page.get_by_role("searchbox").fill("nosuchthing")
    await page.get_by_role("button", name="Show all products").click()
    await expect(page.locator("#catalogue-status")).to_have_text(re.compile(r"^(24 of )?\d+ products?$"))


async def test_names_are_shown_as_text(page: Page, shop: Shop, word: str, tmp_path: Path) -> None:
    shop.seed([(f"EVIL-{word}", f"{HOSTILE} {word}", 100, 5)], tmp_path)
    broken: list[str] = []
    page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: broken.append(str(error)))
    await visit(page, word)
    await expect(card(page, f"EVIL-{word}").get_by_role("heading")).to_have_text(f"{HOSTILE} {word}")
    await add(page, f"EVIL-{word}", 2)
    await expect_line(page, f"EVIL-{word}", "held", held=2)
    await expect(line_of(page, f"EVIL-{word}").get_by_role("heading")).to_have_text(f"{HOSTILE} {word}")
    await page.reload()
    await expect(line_of(page, f"EVIL-{word}").get_by_role("heading")).to_have_text(f"{HOSTILE} {word}")
    assert await page.evaluate("window.broken") is None
    assert await page.locator("img, #products script, #lines script").count() == 0
    assert broken == []  # no error, and nothing that the content security policy had to refuse


async def test_stock_is_live_on_another_shoppers_page(
    page: Page, shopper: Callable[[], Awaitable[BrowserContext]], product: str, word: str
) -> None:
    other = await (await shopper()).new_page()
    await visit(other, word)
    await visit(page, word)
    await expect(card(other, product)).to_have_attribute("data-available", "10")
    await add(page, product, 7)
    await expect(card(other, product)).to_contain_text("Only 3 left")
    await add(page, product, 3)
    await expect(card(other, product)).to_contain_text("Sold out")
    await expect(card(other, product).get_by_role("button")).to_have_attribute("aria-disabled", "true")
    await line_of(page, product).get_by_role("button", name="Remove").click()
    await expect(card(other, product)).to_have_attribute("data-available", "10")


# ---- the cart -------------------------------------------------------------------------------------------------------


async def test_an_add_is_pending_at_once_and_then_held_against_the_clock(page: Page, product: str, word: str) -> None:
    await page.add_init_script("const now = Date.now; Date.now = () => now() - 3600e3")  # a browser an hour behind
    line = await Line.of(page)
    await visit(page, word)
    await expect(page.locator("#clock")).to_be_hidden()
    line.hold_back()
    await add(page, product, 2)
    await expect_line(page, product, "pending", held=0)
    await line.until_decided()
    await expect_line(page, product, "pending", held=0)
    line.let_go()
    await expect_line(page, product, "held", held=2)
    await expect(page.get_by_role("timer")).to_have_text(re.compile(r"^(15:00|1?\d:[0-5]\d)$"))
    await expect(page.locator("#total")).to_have_text("£25.00")
    await expect(page.locator("#announcements")).to_contain_text("held for you")
    first = await page.get_by_role("timer").text_content()
    await expect(page.get_by_role("timer")).not_to_have_text(first or "")  # it runs


async def test_a_hold_beyond_the_stock_is_refused_with_the_available_units(page: Page, product: str, word: str) -> None:
    await visit(page, word)
    await add(page, product, 11)
    await expect_line(page, product, "refused", held=0)
    await expect(line_of(page, product)).to_contain_text("Only 10 left; you asked for 11.")
    await expect(page.locator("#sum")).to_be_hidden()
    await expect(page.locator("#alerts")).to_contain_text("Only 10 left")
    await line_of(page, product).get_by_role("button", name="Take 10").click()
    await expect_line(page, product, "held", held=10)
    await line_of(page, product).get_by_role("button", name="One more").click()
    await expect(line_of(page, product)).to_contain_text("There are no more of these.")
    await expect_line(page, product, "refused", held=10)
    await line_of(page, product).get_by_role("button", name="Dismiss").click()
    await expect_line(page, product, "held", held=10)


async def test_a_line_is_changed_and_the_cart_emptied(page: Page, product: str, word: str) -> None:
    await visit(page, word)
    await add(page, product, 2)
    await expect_line(page, product, "held", held=2)
    await line_of(page, product).get_by_role("button", name="One more").click()
    await expect_line(page, product, "held", held=3)
    await line_of(page, product).get_by_role("spinbutton").fill("6")
    await line_of(page, product).get_by_role("spinbutton").press("Enter")
    await expect_line(page, product, "held", held=6)
    await expect(card(page, product)).to_have_attribute("data-available", "4")
    await page.get_by_role("button", name="Empty the cart").click()
    await expect(page.locator(".cart-line")).to_have_count(0)
    await expect(page.locator("#clock")).to_be_hidden()
    await expect(card(page, product)).to_have_attribute("data-available", "10")
    assert await held_by_shop(page) == {}


async def test_two_tabs_of_a_shopper_show_one_cart(page: Page, product: str, word: str) -> None:
    await visit(page, word)
    other = await page.context.new_page()
    await visit(other, word)
    await add(page, product, 2)
    await expect_line(other, product, "held", held=2)
    await add(other, product, 3)
    await expect_line(page, product, "held", held=5)


# ---- buying ---------------------------------------------------------------------------------------------------------

FORM: Final = {
    "Name": "Ann",
    "Street": "1 High Street",
    "City": "York",
    "Postcode": "YO1 7HH",
    "E-mail": "ann@example.org",
}


async def buy(page: Page, product: str, word: str, *, pays: str) -> Locator:
    """Put two in the cart and buy them; the order's entry on the page."""
    await visit(page, word)
    await add(page, product, 2)
    await expect_line(page, product, "held", held=2)
    for label, text in FORM.items():
        await page.get_by_label(label, exact=True).fill(text)
    await page.get_by_label("Payment").select_option(pays)
    await page.get_by_role("button", name="Buy it").click()
    order = page.locator(".order")
    await expect(order).to_contain_text("£25.00")
    return order


async def test_an_order_is_paid_packed_and_sent(page: Page, product: str, word: str) -> None:
    order = await buy(page, product, word, pays="tok_approve")
    await expect(page.locator("#cart-empty")).to_be_visible()
    await expect(order).to_have_attribute("data-status", re.compile("confirmed|shipped|delivered"))
    await page.reload()
    await expect(order).to_have_attribute("data-status", re.compile("confirmed|shipped|delivered"))
    assert await held_by_shop(page) == {}
    await expect(card(page, product)).to_have_attribute("data-available", "8")


async def test_a_payment_that_is_declined_brings_the_cart_back(page: Page, product: str, word: str) -> None:
    order = await buy(page, product, word, pays="tok_decline")
    await expect(order).to_contain_text("The payment was declined.")
    await expect(page.locator("#checkout-outcome")).to_contain_text("The payment was declined.")
    await expect(page.locator("#checkout-outcome")).to_be_in_viewport(ratio=1)
    await expect(page.locator("#checkout-outcome")).to_be_focused()
    await expect_line(page, product, "held", held=2)
    await expect(order.get_by_role("button")).to_be_hidden()
    assert await held_by_shop(page) == {product: 2}


# ---- cuts -----------------------------------------------------------------------------------------------------------


async def test_changes_during_a_disconnect_appear_once_afterwards(page: Page, product: str, word: str) -> None:
    line = await Line.of(page)
    await visit(page, word)
    line.hold_back()
    await add(page, product, 2)
    await line.until_decided()
    await line.cut()
    await expect(page.locator("#connection")).to_have_attribute("data-state", "waiting")
    await expect_line(page, product, "pending", held=0)
    await add(page, product, 3)
    await expect(line_of(page, product)).to_have_attribute("data-quantity", "5")
    line.away = False
    await expect_line(page, product, "held", held=5)
    await expect(page.locator("#connection")).to_have_attribute("data-state", "open")
    assert await held_by_shop(page) == {product: 5}


async def test_undecided_requests_outlive_a_reload(page: Page, product: str, word: str) -> None:
    line = await Line.of(page)
    await visit(page, word)
    await line.cut()
    await add(page, product, 4)
    await expect_line(page, product, "pending", held=0)
    await page.reload()
    await expect_line(page, product, "pending", held=0)
    line.away = False
    await expect_line(page, product, "held", held=4)
    assert await held_by_shop(page) == {product: 4}
    assert await page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
    assert await page.evaluate("document.cookie") == ""  # no script sees the token


async def test_the_page_survives_the_death_of_the_edge(page: Page, shop: Shop, product: str, word: str) -> None:
    await visit(page, word)
    await add(page, product, 1)
    await expect_line(page, product, "held", held=1)
    shop.kill("edge")
    await add(page, product, 2)
    await expect(line_of(page, product)).to_have_attribute("data-quantity", "3")
    await expect_line(page, product, "held", held=3)
    await expect(page.locator("#connection")).to_have_attribute("data-state", "open")
    assert await held_by_shop(page) == {product: 3}
    shop.wait_ready("edge")


async def test_a_browser_that_was_offline_comes_back(page: Page, product: str, word: str) -> None:
    await visit(page, word)
    await page.context.set_offline(True)
    await add(page, product, 2)
    # No event reports a silent connection to a browser: the page found out by itself.
    await expect(page.locator("#connection")).to_have_attribute("data-state", "waiting")
    await expect_line(page, product, "pending", held=0)
    await page.context.set_offline(False)
    await expect_line(page, product, "held", held=2)
    assert await held_by_shop(page) == {product: 2}


async def test_a_cookie_that_is_no_longer_good_makes_a_new_guest(
    page: Page, shop: Shop, product: str, word: str
) -> None:
    await visit(page, word)
    (cookie,) = await page.context.cookies()
    await page.context.add_cookies([{"name": cookie["name"], "value": "not.a.token", "url": shop.http_url}])
    await visit(page, word)
    await add(page, product, 1)
    await expect_line(page, product, "held", held=1)
