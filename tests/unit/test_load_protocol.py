"""The client's rules: whatever the line does to the frames, the view ends as the shop's cart is."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load.protocol import MAX_UNRESOLVED, ClientState, Frame, Reconnect, backoff_seconds, plan_reconnect

Cart = dict[str, int]


def conversation() -> ClientState:
    numbers: Iterator[int] = count()
    return ClientState(lambda: f"own-{next(numbers)}")


def cart_frame(version: int, lines: Cart, **more: Any) -> dict[str, Any]:
    told = [{"product": product, "quantity": quantity} for product, quantity in lines.items()]
    return {"type": "cart", "version": version, "lines": told, "pending": [], **more}


NONE: st.SearchStrategy[list[Frame]] = st.just([])
changes = st.lists(
    st.one_of(
        st.tuples(st.just("held"), st.sampled_from("ABC"), st.integers(1, 9)),
        st.tuples(st.just("removed"), st.sampled_from("ABC"), st.just(0)),
        st.tuples(st.sampled_from(["cleared", "expired"]), st.just(""), st.just(0)),
    ),
    max_size=12,
)


def told(change: tuple[str, str, int], version: int) -> dict[str, Any]:
    what, product, quantity = change
    frame: dict[str, Any] = {"id": f"r{version}", "version": version}
    if what == "held":
        return {**frame, "type": "held", "product": product, "quantity": 1, "line_quantity": quantity}
    if what == "removed":
        return {**frame, "type": "removed", "product": product}
    return {**frame, "type": "removed"} if what == "cleared" else {"type": "expired", "lines": [], "version": version}


def after(cart: Cart, change: tuple[str, str, int]) -> Cart:
    what, product, quantity = change
    rest = {} if what in {"cleared", "expired"} else {name: held for name, held in cart.items() if name != product}
    return rest | {product: quantity} if what == "held" else rest


@given(changes, st.data())
def test_lost_doubled_and_reordered_frames_leave_the_right_cart(
    history: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    carts: list[Cart] = [{}]
    for change in history:
        carts.append(after(carts[-1], change))
    frames: list[Frame] = [told(change, version) for version, change in enumerate(history, start=1)]
    # The line repeats, swaps and loses; only the last change surely arrives, as it would with the cart after a cut.
    doubles = data.draw(st.lists(st.sampled_from(frames)) if frames else NONE)
    line = data.draw(st.permutations([*frames, *doubles]))
    lost = data.draw(st.sets(st.sampled_from(range(1, len(history)))) if len(history) > 1 else st.just(set()))
    line = [frame for frame in line if frame["version"] not in lost]

    client = conversation()
    asked: list[Frame] = []
    for frame in line:
        before = client.version
        asked += client.apply(frame).send
        assert client.version >= before
        assert client.lines == carts[client.version]  # the view is always a cart that was once true
        answers = data.draw(st.booleans())
        if asked and answers:  # the shop answers when it likes, perhaps with an older cart
            newest = data.draw(st.integers(0, len(history)))
            asked += client.apply(cart_frame(newest, carts[newest], id=asked.pop(0)["id"])).send
            assert client.lines == carts[client.version]
        assert client.version >= before
    while asked:
        asked += client.apply(cart_frame(len(history), carts[-1], id=asked.pop(0)["id"])).send
    assert (client.version, client.lines) == (len(history), carts[-1])


def test_a_jump_asks_for_the_cart_once_and_keeps_the_old_view() -> None:
    client = conversation()
    assert [frame["type"] for frame in client.apply(told(("held", "A", 1), 2)).send] == ["cart"]
    assert client.apply(told(("held", "A", 5), 3)).send == []
    assert (client.version, client.lines) == (0, {})
    assert client.apply(cart_frame(3, {"A": 5}, id="own-0")).send == []
    assert (client.version, client.lines) == (3, {"A": 5})


def test_a_cart_older_than_a_received_outcome_is_requested_again() -> None:
    client = conversation()
    client.apply(told(("held", "A", 5), 3))
    assert [frame["type"] for frame in client.apply(cart_frame(2, {"A": 4}, id="own-0")).send] == ["cart"]


def said(client: ClientState, id_: str, type_: str = "add") -> Frame:
    frame = {"id": id_, "type": type_, "product": "A", "quantity": 1}
    client.record_sent(frame)
    return frame


def test_an_id_is_settled_by_its_first_outcome() -> None:
    client = conversation()
    said(client, "a1")
    assert client.apply({"type": "pending", "id": "a1"}).settled == []
    outcome = {"type": "refused", "id": "a1", "product": "A", "reason": "out_of_stock"}
    assert client.apply(outcome).settled == [("a1", outcome)]
    assert client.apply(outcome).settled == []
    assert client.version == 0


@pytest.mark.parametrize("code", ["unavailable", "rate_limited", "too_many"])
def test_a_frame_that_may_have_been_accepted_is_said_again(code: str) -> None:
    client = conversation()
    frame = said(client, "a1")
    step = client.apply({"type": "error", "id": "a1", "code": code, "detail": "", "retry_after": 2})
    assert (step.resend, step.settled) == ([(frame, 2.0)], [])


def test_an_error_that_is_final_settles() -> None:
    client = conversation()
    said(client, "a1")
    error = {"type": "error", "id": "a1", "code": "id_reused", "detail": ""}
    assert client.apply(error).settled == [("a1", error)]


def test_resume_works_as_the_contract_describes_it() -> None:
    client = conversation()
    client.apply(cart_frame(7, {"85123A": 1}))
    said(client, "a1")
    unknown = said(client, "b2", "set")
    resume = client.resume()
    assert resume == {"id": "own-0", "type": "resume", "version": 7, "unresolved": ["a1", "b2"]}
    client.apply(cart_frame(9, {"85123A": 2}, id="own-0"))
    held = {"type": "held", "id": "a1", "product": "85123A", "quantity": 2, "line_quantity": 2, "version": 8}
    assert [id_ for id_, _ in client.apply(held).settled] == ["a1"]
    assert client.lines == {"85123A": 2}  # version 8 is below 9: it only settles
    assert client.apply({"type": "resumed", "id": "own-0", "pending": [], "unknown": ["b2"]}).send == [unknown]


def test_pending_requests_are_awaited_and_rejected_ones_sent_again() -> None:
    client = conversation()
    for number in range(MAX_UNRESOLVED + 2):
        said(client, f"r{number}")
    resume = client.resume()
    assert len(resume["unresolved"]) == MAX_UNRESOLVED
    step = client.apply({"type": "resumed", "id": resume["id"], "pending": resume["unresolved"], "unknown": []})
    assert [frame["id"] for frame in step.send] == [f"r{MAX_UNRESOLVED}", f"r{MAX_UNRESOLVED + 1}"]


def test_reads_are_retried_after_a_disconnect() -> None:
    client = conversation()
    check = said(client, "c1", "check")
    resume = client.resume()
    assert resume["unresolved"] == []
    assert client.apply({"type": "resumed", "id": resume["id"], "pending": [], "unknown": []}).send == [check]


@pytest.mark.parametrize("code", [1003, 1007, 1009, 4400, 4403])
def test_some_closes_are_for_good(code: int) -> None:
    assert plan_reconnect(code, "", attempt=0, chance=0.5) is None


@pytest.mark.parametrize("code", [1013, 4410, 4429])
def test_an_overloaded_shop_says_when(code: int) -> None:
    assert plan_reconnect(code, "retry_after=7", attempt=3, chance=0.5) == Reconnect(7.0)
    assert plan_reconnect(code, "busy", attempt=0, chance=0.5) == Reconnect(5.5)


def test_an_expired_token_is_renewed_first() -> None:
    assert plan_reconnect(4401, "", attempt=0, chance=0.5) == Reconnect(0.0, new_token=True)


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_lost_connections_are_reopened_with_full_jitter_up_to_30_seconds(attempt: int, chance: float) -> None:
    again = plan_reconnect(1006, "", attempt=attempt, chance=chance)
    assert again is not None
    assert again.seconds == backoff_seconds(attempt, chance) <= min(30.0, 0.5 * 2 ** min(attempt, 10))
