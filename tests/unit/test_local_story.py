"""The search for the story of an id: what belongs to it, what is followed, and how it is bounded."""

import json
import shlex
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contracts.ids import derive_id
from infrastructure.local.commands import story, story_search
from infrastructure.local.commands.story_search import (
    SUMMARY_LENGTH,
    Search,
    Step,
    log_step,
    mail_step,
    record_step,
    strings,
    summarize,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ORDER = derive_id("ann", "checkout-1", "order")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER_TRACE = "00000000000000000000000000000abc"


class World:
    """Records in the order of their time."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, topic: str, type_: str, subject: str, trace: str = TRACE, request: str = "", **data: Any) -> None:
        event = {
            "source": "/edge",
            "type": f"holdfast.{type_}",
            "subject": subject,
            "id": f"{subject}/{request}/x",
            "traceparent": f"00-{trace}-00f067aa0ba902b7-01",
            "data": data,
        }
        event |= {"requestid": request} if request else {}
        at = NOON + timedelta(seconds=len(self.steps))
        place = f"{topic} 0@{len(self.steps)}"
        self.steps.append(record_step(place, at, subject, event, json.dumps(event)))

    def find(self, id_: str) -> tuple[Search, list[str]]:
        """Search in rounds as the command does; return the search and the types of what was found."""
        search = Search(id_)
        for _ in range(story.ROUNDS):
            more = [search.add(step) for step in self.steps if self._passes(search, step)]
            if not any(more):
                break
        return search, [step.type for step in search.story()]

    @staticmethod
    def _passes(search: Search, step: Step) -> bool:
        text = json.dumps(step.data).encode()
        return any(needle in text for needle in search.needles())


@pytest.fixture
def world() -> World:
    """Two shoppers who use the same request ids; ann adds, and orders."""
    world = World()
    world.add("cart.requests", "cart.add", "ann", OTHER_TRACE, "add-1", user_id="ann", product="MUG")
    world.add("cart.requests", "cart.checkout", "ann", TRACE, "checkout-1", user_id="ann")
    world.add("cart.requests", "cart.checkout", "bob", "b" * 32, "checkout-1", user_id="bob")
    world.add("orders.requests", "orders.place", ORDER, TRACE, "checkout-1", order_id=ORDER, user_id="ann")
    world.add("orders.events", "orders.placed", ORDER, TRACE, order_id=ORDER, user_id="ann", request_id="checkout-1")
    world.add("payments.requests", "payments.charge", ORDER, TRACE, f"{ORDER}/charge", order_id=ORDER, user_id="ann")
    world.add(
        "payments.events", "payments.captured", ORDER, "c" * 32, order_id=ORDER, user_id="ann", payment_id="pay-1"
    )
    world.add("notifications.events", "notifications.sent", "ann", "d" * 32, user_id="ann", cause=f"order/{ORDER}/3")
    return world


WHOLE = [
    "cart.checkout",
    "orders.place",
    "orders.placed",
    "payments.charge",
    "payments.captured",
    "notifications.sent",
]


@pytest.mark.parametrize("id_", [ORDER, TRACE, "pay-1"])
def test_the_story_of_an_order_is_found_from_any_of_its_ids_and_stays_with_the_order(world: World, id_: str) -> None:
    search, types = world.find(id_)
    assert types == WHOLE
    assert {step.user for step in search.story()} <= {"ann", ""}
    assert not search.is_cut


def test_the_story_of_a_shopper_has_everything_of_this_shopper_only(world: World) -> None:
    search, types = world.find("ann")
    assert types == ["cart.add", *WHOLE]
    assert (search.others, search.orders) == (set(), {ORDER})


def test_a_request_id_of_two_shoppers_names_both(world: World) -> None:
    search, types = world.find("checkout-1")
    assert types.count("cart.checkout") == 2
    assert search.shoppers() == ["ann", "bob"]
    assert set(WHOLE) <= set(types)
    assert "cart.add" not in types
    for order in (ORDER, derive_id("bob", "checkout-1", "order")):
        mail = mail_step({"number": order, "received_at": NOON.isoformat(), "cause": f"order/{order}/4"})
        assert mail is not None
        search.add_unfollowed(mail)
    assert len([step for step in search.story() if step.type == "mail"]) == 2
    of_ann = search.story("ann")
    assert [step.place for step in of_ann if step.type == "mail"] == [f"mail {ORDER}"]
    assert {step.user for step in of_ann} == {"ann", ""}
    assert search.story("nobody") == []


def test_an_unknown_id_and_a_part_of_an_id_find_nothing(world: World) -> None:
    assert world.find("nobody")[1] == []
    assert world.find(ORDER[:-1])[1] == []


def test_the_search_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(story_search, "MAX_STEPS", 2)
    search, types = world.find(ORDER)
    assert (len(types), search.is_cut) == (2, True)
    monkeypatch.setattr(story_search, "MAX_STEPS", 5000)
    monkeypatch.setattr(story_search, "MAX_IDS", 1)
    assert world.find("checkout-1")[0].is_cut


@pytest.mark.parametrize(
    ("content", "raw", "inner", "id_"),
    [
        (None, "not json, about order-1!", "", "order-1"),
        ([["order-1"]], '[["order-1"]]', "", "order-1"),
        ({"type": 7, "x": "order-1"}, '{"type": 7, "x": "order-1"}', "", "order-1"),
        ({"type": "holdfast.dead-letter", "data": {}}, "", '{"data": {"order_id": "order-1"}}', "order-1"),
        ({"type": "holdfast.dead-letter", "data": {}}, "", "key=order-1;", "order-1"),
        ({"type": "holdfast.x", "traceparent": 7, "data": ["order-1"]}, "", "", "order-1"),
        ({"type": "holdfast.x", "id": "a/order-1/b"}, "", "", "order-1"),
    ],
)
def test_foreign_records_and_dead_letters_are_found_too(content: Any, raw: str, inner: str, id_: str) -> None:
    search = Search(id_)
    search.add(record_step("t 0@1", NOON, "key", content, raw, inner))
    [step] = search.story()
    assert len(step.summary) <= SUMMARY_LENGTH
    assert json.dumps(step.as_json())


def test_a_line_has_no_personal_data_and_no_line_break() -> None:
    line = summarize(
        {
            "address": {"name": "Ann"},
            "contact": {"email": "ann@example.org"},
            "payment": {"token": "tok"},
            "total": {"amount": 5, "currency": "GBP"},
            "lines": [1, 2],
            "outcome": {"type": "held", "product": "MUG"},
            "reason": "one\nway\x1b[31m",
            "long": "x" * 500,
        }
    )
    assert line.startswith("total=5 GBP lines=[2] outcome=held (product=MUG) reason=one way [31m long=xxx")
    assert (len(line), "Ann" in line, "ann@" in line, "tok" in line) == (SUMMARY_LENGTH, False, False, False)
    assert (summarize(None), summarize([1])) == ("", "[1]")


def test_logs_and_mails_of_the_matter_are_added(world: World) -> None:
    search, _ = world.find("ann")
    line = json.dumps(
        {"time": "2026-01-01T12:00:09Z", "level": "info", "replica": "cart-1", "message": "x", "o": ORDER}
    )
    found = log_step("log cart-1.log:3", line, search.local_ids())
    assert found is not None
    assert (found.who, found.summary) == ("cart-1", f"x o={ORDER}")
    search.add_unfollowed(found)
    mail = mail_step(
        {"number": 4, "received_at": NOON.isoformat(), "cause": f"order/{ORDER}/3", "subject": "Confirmed"}
    )
    assert mail is not None
    search.add_unfollowed(mail)
    other = mail_step({"number": 5, "received_at": NOON.isoformat(), "cause": "order/another/3"})
    assert other is not None
    search.add_unfollowed(other)
    assert [step.place for step in search.story() if " 0@" not in step.place] == ["mail 4", "log cart-1.log:3"]
    for broken in (f"{ORDER} no json", json.dumps([ORDER]), json.dumps({"time": 7, "m": ORDER}), "about nothing"):
        assert log_step("log x:1", broken, search.local_ids()) is None
    assert mail_step({"received_at": "yesterday"}) is None


def test_the_time_in_an_id_bounds_the_search_and_no_other_id_does() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    seven = uuid.UUID(int=int(at.timestamp() * 1000) << 80 | 0x7 << 76 | 0b10 << 62)
    assert story._time_of(str(seven)) == at - story.SKEW
    for other in (ORDER, "an order", "", str(uuid.uuid4())):
        assert story._time_of(other) is None
    latest = uuid.UUID(int=((1 << 48) - 1) << 80 | 0x7 << 76 | 0b10 << 62)
    assert story._time_of(str(latest)) is None


@pytest.mark.parametrize("milliseconds", [-1, 0, 10**18, 1_700_000_000_000])
def test_a_record_of_any_time_can_be_shown(milliseconds: int) -> None:
    record = type("Record", (), {"timestamp": milliseconds})()
    assert story._time_of_record(record) - story.MARGIN >= datetime(1970, 1, 1, tzinfo=UTC)


def test_the_example_of_an_option_is_quoted_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    search = Search("r1")
    shopper, other = "$(id) it's", "zoe"
    for number, user in enumerate((shopper, other)):
        event = {"type": "holdfast.cart.add", "subject": user, "requestid": "r1", "data": {"user_id": user}}
        search.add(record_step(f"t 0@{number}", NOON, user, event, json.dumps(event)))
    story._show(search.story(), search, None)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "for example --user" in line]
    assert shlex.split(line.partition("for example --user ")[2]) == [shopper]


def test_strings_are_found_at_any_depth() -> None:
    deep: Any = "order-1"
    for _ in range(5000):
        deep = [deep]
    assert list(strings(deep)) == ["order-1"]
    assert set(strings({"a": ["x/y", {"b": "z"}], "n": 1})) == {"x/y", "x", "y", "z"}
