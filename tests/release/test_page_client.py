"""The page's side of the protocol, frame by frame: its pure client runs in a browser, without a shop or a socket."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Page, Route

from tests.testkit.browser import browser

PAGES: Final = Path(__file__).parents[2] / "rest_api" / "pages"
ORIGIN: Final = "http://shop.test"
PRICE: Final = {"amount": 1250, "currency": "GBP"}
START: Final = "2026-11-21T03:25:00.000Z"
END: Final = "2026-11-21T03:40:00.000Z"

DRIVE: Final = """async ([saved, steps]) => {
    const { Client } = await import("/static/client.js");
    let ids = 0;
    const client = new Client(() => `i${++ids}`, saved);
    const price = { amount: 1250, currency: "GBP" };
    client.products.store([{ code: "TEAPOT", name: "Teapot", price, available: 10 }]);
    const sent = [], events = [];
    for (const [step, ...given] of steps) {
        client[step](...given);
        sent.push(client.takeFrames());
        events.push(...client.takeEvents());
    }
    const lines = client.lines().map(({ product, state, held, quantity }) => [product, state, held, quantity]);
    const refusals = client.lines().map((line) => line.refusal?.reason);
    return { sent, events, lines, refusals, version: client.version, left: client.timeLeft(60_000),
             saved: client.persistentState(), available: client.products.available("TEAPOT") };
}"""
AFTER_CLOSE: Final = """async ([code, reason, failures, chance]) => {
    const { afterClose } = await import("/static/connection.js");
    return afterClose(code, reason, failures, chance);
}"""

Step = tuple[Any, ...]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page() -> AsyncIterator[Page]:
    """A page of nothing that can load the modules of the shop's."""

    async def serve(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        if name:
            await route.fulfill(path=PAGES / name)
        else:
            await route.fulfill(body="<!doctype html><title>nothing</title>", content_type="text/html")

    async with browser() as running:
        new = await running.new_page()
        await new.route(f"{ORIGIN}/**", serve)
        await new.goto(f"{ORIGIN}/")
        yield new


async def drive(page: Page, *steps: Step, saved: dict[str, Any] | None = None) -> dict[str, Any]:
    """Take a new client through `steps`. Its ids are i1, i2 …; `sent` has the frames after each step."""
    told: dict[str, Any] = await page.evaluate(DRIVE, [saved, [list(step) for step in steps]])
    return told


def frame(kind: str, **fields: Any) -> Step:
    """The server sends this, at the start of our clock."""
    return ("receive", {"type": kind, **fields}, 0)


def welcome(user: str = "ann") -> Step:
    return frame("welcome", user_id=user, server_time=START)


def cart(version: int, *lines: tuple[str, int], pending: tuple[Any, ...] = (), **fields: Any) -> Step:
    told = [{"product": code, "name": code.title(), "quantity": count, "price": PRICE} for code, count in lines]
    end = END if lines else None
    return frame("cart", version=version, expires_at=end, lines=told, pending=list(pending), **fields)


def held(request: str, line: int, version: int, product: str = "TEAPOT") -> Step:
    return frame("held", id=request, product=product, quantity=1, line_quantity=line, expires_at=END, version=version)


def add(quantity: int = 1, product: str = "TEAPOT") -> Step:
    return ("change", "add", product, quantity)


LIVE: Final = (welcome(), cart(0))

# ---- the version rule -----------------------------------------------------------------------------------------------


async def test_a_change_is_pending_at_once_and_held_with_its_outcome(page: Page) -> None:
    asked = await drive(page, *LIVE, add(2))
    assert asked["sent"][-1] == [{"id": "i1", "type": "add", "product": "TEAPOT", "quantity": 2}]
    assert asked["lines"] == [["TEAPOT", "pending", 0, 2]]
    done = await drive(page, *LIVE, add(2), frame("pending", id="i1"), held("i1", 2, 1))
    assert done["lines"] == [["TEAPOT", "held", 2, 2]]
    assert (done["version"], done["saved"]) == (1, None)


async def test_the_countdown_goes_by_the_servers_clock(page: Page) -> None:
    (step, first, _) = welcome()
    told = await drive(page, (step, first, 45_000), cart(1, ("TEAPOT", 1)))
    assert told["left"] == 15 * 60_000 - (60_000 - 45_000)  # it is 60,000 by our clock


async def test_a_leap_asks_for_the_cart_once_and_settles_the_request(page: Page) -> None:
    told = await drive(page, *LIVE, add(), held("i1", 3, 3), held("elsewhere", 4, 4))
    assert told["sent"][-2:] == [[{"id": "i2", "type": "cart"}], []]
    assert (told["version"], told["lines"], told["saved"]) == (0, [], None)
    told = await drive(page, *LIVE, add(), held("i1", 3, 3), cart(3, ("TEAPOT", 3), id="i2"))
    assert (told["version"], told["lines"]) == (3, [["TEAPOT", "held", 3, 3]])


async def test_an_outcome_of_an_old_version_only_settles_its_request(page: Page) -> None:
    told = await drive(page, welcome(), cart(5, ("TEAPOT", 7)), add(), held("i1", 2, 5), held("i1", 2, 5))
    assert (told["version"], told["lines"], told["saved"]) == (5, [["TEAPOT", "held", 7, 7]], None)


async def test_outcomes_that_swap_end_at_the_same_cart(page: Page) -> None:
    told = await drive(page, *LIVE, add(), add(), held("i2", 2, 2), held("i1", 1, 1), cart(2, ("TEAPOT", 2), id="i3"))
    assert (told["version"], told["lines"]) == (2, [["TEAPOT", "held", 2, 2]])


async def test_an_old_cart_is_ignored_and_requested_again_if_a_newer_one_exists(page: Page) -> None:
    old = await drive(page, welcome(), cart(4, ("TEAPOT", 4)), cart(3, ("TEAPOT", 3)))
    assert (old["version"], old["lines"]) == (4, [["TEAPOT", "held", 4, 4]])
    lag = await drive(page, *LIVE, held("x", 5, 5), cart(4, ("TEAPOT", 4), id="i1"), ("tick", 1000))
    assert (lag["version"], lag["sent"][-1]) == (4, [{"id": "i2", "type": "cart"}])


async def test_a_product_that_the_page_does_not_know_is_asked_for_with_the_cart(page: Page) -> None:
    told = await drive(page, *LIVE, held("another-page", 1, 1, product="LANTERN"))
    assert (told["lines"], told["sent"][-1]) == ([["LANTERN", "held", 1, 1]], [{"id": "i1", "type": "cart"}])


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("EDWARDIAN PARASOL BLACK", "Edwardian parasol black"),
        ("Edwardian PARASOL", "Edwardian PARASOL"),
        ("edwardian parasol", "edwardian parasol"),
        ("6 RIBBONS RUSTIC CHARM", "6 ribbons rustic charm"),
        ("SET/20 RED RETROSPOT PAPER NAPKINS ", "Set/20 red retrospot paper napkins "),
        ("iPod holder", "iPod holder"),
        ("12", "12"),
        ("ΣΊΣΥΦΟΣ", "Σίσυφος"),
        ("हिन्दी", "हिन्दी"),
        ("ÉTÉ", "Été"),
        ("TEAPOT", "TEAPOT"),  # its code
    ],
)
async def test_a_name_in_capitals_is_displayed_in_lower_case(page: Page, name: str, shown: str) -> None:
    script = """async (name) => (await import("/static/format.js")).displayName(name, "TEAPOT")"""
    assert await page.evaluate(script, name) == shown


# ---- outcomes -------------------------------------------------------------------------------------------------------


async def test_a_refusal_says_why_and_leaves_what_is_held(page: Page) -> None:
    refused = frame("refused", id="i1", product="TEAPOT", reason="out_of_stock", available=3)
    told = await drive(page, welcome(), cart(1, ("TEAPOT", 1)), add(9), refused, refused)
    assert (told["lines"], told["refusals"]) == ([["TEAPOT", "refused", 1, 1]], ["out_of_stock"])
    assert [(event["type"], event["available"]) for event in told["events"]] == [("refused", 3)]
    again = await drive(page, *LIVE, add(9), refused, add(3))
    assert again["lines"] == [["TEAPOT", "pending", 0, 3]]


async def test_another_pages_refusal_is_not_shown(page: Page) -> None:
    told = await drive(page, *LIVE, frame("refused", id="x", product="TEAPOT", reason="limit", available=None))
    assert (told["lines"], told["events"]) == ([], [])


async def test_a_removal_hides_its_line_at_once_and_an_empty_cart_has_no_clock(page: Page) -> None:
    full = (welcome(), cart(1, ("TEAPOT", 2), ("LANTERN", 1)))
    assert (await drive(page, *full, ("change", "remove", "TEAPOT")))["lines"] == [["LANTERN", "held", 1, 1]]
    assert (await drive(page, *full, ("change", "clear")))["lines"] == []
    back = await drive(page, *full, ("change", "remove", "TEAPOT"), add(5))
    assert back["lines"] == [["TEAPOT", "pending", 0, 5], ["LANTERN", "held", 1, 1]]
    gone = await drive(page, *full, ("change", "clear"), frame("removed", id="i1", version=2))
    assert (gone["lines"], gone["version"], gone["left"]) == ([], 2, None)


async def test_a_request_of_another_page_is_shown_until_its_outcome(page: Page) -> None:
    pending = {"id": "x", "type": "add", "product": "TEAPOT", "quantity": 2, "since": START}
    told = await drive(page, welcome(), cart(1, ("TEAPOT", 1), pending=(pending,)))
    assert told["lines"] == [["TEAPOT", "pending", 1, 3]]
    told = await drive(page, welcome(), cart(1, ("TEAPOT", 1), pending=(pending,)), held("x", 3, 2))
    assert told["lines"] == [["TEAPOT", "held", 3, 3]]


async def test_an_expired_cart_is_empty_and_reported_once(page: Page) -> None:
    expired = frame("expired", lines=[{"product": "TEAPOT", "quantity": 2}], version=2)
    told = await drive(page, welcome(), cart(1, ("TEAPOT", 2)), expired, expired)
    assert (told["lines"], told["version"], told["left"]) == ([], 2, None)
    assert [event["type"] for event in told["events"]] == ["expired"]


async def test_stock_keeps_its_highest_version(page: Page) -> None:
    stock = [frame("stock", product="TEAPOT", available=count, version=v) for count, v in ((6, 8), (9, 7), (5, 9))]
    assert (await drive(page, *LIVE, *stock[:2]))["available"] == 6
    assert (await drive(page, *LIVE, *stock))["available"] == 5


async def test_only_products_in_view_are_watched_and_others_unwatched_first(page: Page) -> None:
    told = await drive(page, ("watch", ["A", "B"]), *LIVE, ("watch", ["B", "C"]), ("handleDisconnect",), welcome())
    assert told["sent"][1] == [{"id": "i1", "type": "watch", "products": ["A", "B"]}]
    assert [(each["type"], each["products"]) for each in told["sent"][3]] == [("unwatch", ["A"]), ("watch", ["C"])]
    assert told["sent"][5][0] == {"id": "i4", "type": "watch", "products": ["B", "C"]}


# ---- cuts -----------------------------------------------------------------------------------------------------------


async def test_after_a_cut_the_old_view_stays_and_only_the_unknown_is_sent_again(page: Page) -> None:
    cut = (
        welcome(),
        cart(7, ("TEAPOT", 1)),
        add(),
        add(5, "LANTERN"),
        add(1, "VASE"),
        ("handleDisconnect",),
        add(2, "CUP"),
    )
    away = await drive(page, *cut, welcome())
    resume = {"id": "i5", "type": "resume", "version": 7, "unresolved": ["i1", "i2", "i3", "i4"]}
    assert away["sent"][-2:] == [[], [resume]]
    assert away["lines"][0] == ["TEAPOT", "pending", 1, 2]
    told = await drive(
        page,
        *cut,
        welcome(),
        cart(9, ("TEAPOT", 2), id="i5"),
        held("i1", 2, 8),
        frame("resumed", id="i5", pending=["i3"], unknown=["i2", "i4"]),
    )
    assert told["sent"][-1] == [
        {"id": "i2", "type": "add", "product": "LANTERN", "quantity": 5},
        {"id": "i4", "type": "add", "product": "CUP", "quantity": 2},
    ]
    assert (told["version"], told["lines"][0]) == (9, ["TEAPOT", "held", 2, 2])


async def test_an_unknown_request_is_sent_again(page: Page) -> None:
    told = await drive(
        page,
        *LIVE,
        add(),
        ("handleDisconnect",),
        welcome(),
        cart(0, id="i2"),
        frame("resumed", id="i2", pending=[], unknown=[]),
    )
    assert [each["id"] for each in told["sent"][-1]] == ["i1"]


async def test_requests_made_while_resuming_are_sent_afterwards(page: Page) -> None:
    back = (*LIVE, ("handleDisconnect",), welcome(), add())
    assert (await drive(page, *back))["sent"][-1] == []
    told = await drive(page, *back, cart(0, id="i1"), frame("resumed", id="i1", pending=[], unknown=[]))
    assert [each["id"] for each in told["sent"][-1]] == ["i2"]


async def test_unresolved_requests_outlive_the_page(page: Page) -> None:
    left = (await drive(page, *LIVE, add(2)))["saved"]
    request = {"id": "i1", "type": "add", "product": "TEAPOT", "quantity": 2}
    assert left == {"user": "ann", "frames": [request]}
    told = await drive(page, welcome(), saved=left)
    assert told["sent"] == [[{"id": "i1", "type": "resume", "version": 0, "unresolved": ["i1"]}]]
    assert told["lines"] == [["TEAPOT", "pending", 0, 2]]


async def test_another_shopper_inherits_nothing(page: Page) -> None:
    told = await drive(page, welcome(), cart(3, ("TEAPOT", 1)), add(), ("handleDisconnect",), welcome("bob"))
    assert (told["lines"], told["version"], told["saved"]) == ([], None, None)
    assert told["sent"][-1] == []
    assert [event["type"] for event in told["events"]] == ["new_user"]


async def test_a_request_that_may_be_lost_is_sent_again_unchanged(page: Page) -> None:
    for code in ("unavailable", "rate_limited", "too_many"):
        error = frame("error", id="i1", code=code, detail="", retry_after=2)
        told = await drive(page, *LIVE, add(2), error, ("tick", 1999), ("tick", 2000), ("tick", 9999))
        assert told["sent"][-3:] == [[], [{"id": "i1", "type": "add", "product": "TEAPOT", "quantity": 2}], []]
        assert told["lines"] == [["TEAPOT", "pending", 0, 2]]


async def test_a_request_that_can_never_be_accepted_is_settled(page: Page) -> None:
    told = await drive(page, *LIVE, add(2), frame("error", id="i1", code="bad_quantity", detail=""))
    assert (told["saved"], told["refusals"]) == (None, ["bad_quantity"])


async def test_a_request_without_an_outcome_is_asked_after(page: Page) -> None:
    told = await drive(page, *LIVE, ("tick", 0), add(), ("tick", 29_999), ("tick", 30_000))
    assert told["sent"][-2:] == [[], [{"id": "i2", "type": "resume", "version": 0, "unresolved": ["i1"]}]]


async def test_no_more_than_64_requests_wait_for_an_answer(page: Page) -> None:
    told = await drive(page, *LIVE, *[add()] * 65)
    assert [len(sent) for sent in told["sent"][2:]] == [1] * 64 + [0]


@pytest.mark.parametrize("code", [1001, 1005, 1006, 1011, 1012, 4408])
async def test_a_lost_connection_is_retried_with_full_jitter_up_to_30_seconds(page: Page, code: int) -> None:
    async def wait(failures: int, chance: float) -> float:
        return float((await page.evaluate(AFTER_CLOSE, [code, "", failures, chance]))["wait"])

    assert [await wait(failures, 0.5) for failures in range(8)] == [250, 500, 1000, 2000, 4000, 8000, 15000, 15000]
    assert await wait(9, 0) == 0


@pytest.mark.parametrize("code", [1013, 4410, 4429])
async def test_a_busy_shop_says_when_to_come_back(page: Page, code: int) -> None:
    told = await page.evaluate(AFTER_CLOSE, [code, "retry_after=7", 3, 0.5])
    assert told == {"wait": 7000, "guest": False}
    assert 5000 <= (await page.evaluate(AFTER_CLOSE, [code, "", 0, 0.5]))["wait"] <= 10_000


async def test_an_expired_token_is_renewed_and_a_forbidden_request_not_retried(page: Page) -> None:
    assert (await page.evaluate(AFTER_CLOSE, [4401, "", 0, 0.5]))["guest"] is True
    for code in (1003, 1007, 1009, 4400, 4403):
        assert await page.evaluate(AFTER_CLOSE, [code, "", 0, 0.5]) is None
