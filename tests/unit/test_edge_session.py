"""The session of a socket, frame by frame, without I/O."""

import json
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from contracts import cart
from contracts.inventory import Line, Money, Stored
from contracts.inventory import Refused as StoredRefused
from rest_api.protocol import frame_encoder
from rest_api.protocol.client_frames import MAX_WATCHED
from rest_api.protocol.effects import Close, Effect, Publish, StartWatching, StopWatching
from rest_api.security.admission import Admission
from rest_api.websocket.in_flight import MAX_AWAITED, InFlight
from rest_api.websocket.session import MAX_EXTRA_RESUMES, Session
from rest_api.websocket.user_state import UserLimits, UserState
from tests.testkit.edge_session import NOW, USER, error, frames_of, make_session, make_user, send

NO_QUANTITIES: tuple[Any, ...] = (0, -1, 1000, 1.0, 1.5, True, "3", None, [], 2**63, 2**64, 1e308)


def held(request_id: str = "a1", version: int = 1, ends: float = NOW + 900) -> cart.Held:
    return cart.Held(
        user_id=USER,
        id=request_id,
        product="P",
        quantity=2,
        line_quantity=2,
        expires_at=datetime.fromtimestamp(ends, UTC),
        version=version,
    )


def outcome(session: Session, message: cart.Held) -> list[dict[str, Any]]:
    return frames_of(session.on_outcome(message.id, frame_encoder.outcome(message)))


def add(session: Session, request_id: str = "a1") -> list[Effect]:
    return send(session, id=request_id, type="add", product="P", quantity=2)


# ---- opening --------------------------------------------------------------------------------------------------------


def test_a_session_begins_with_welcome_and_a_read_of_the_cart() -> None:
    session = make_session(opened=False)
    welcome, ask = session.open(NOW)
    assert frames_of([welcome])[0] == {
        "type": "welcome",
        "user_id": USER,
        "session": "s1",
        "server_time": frame_encoder.format_time(NOW),
        "ping": 20,
        "limits": {
            "changes": 100,
            "others": 600,
            "unanswered": 64,
            "sockets": 5,
            "watched": 100,
            "frame_bytes": 16384,
        },
    }
    assert ask == Publish("s1/cart", "read", {"user_id": USER, "session": "s1"})


def test_welcome_has_the_ping_interval() -> None:
    session = Session("s1", make_user(), expires_at=NOW + 3600, ping=7)
    assert frames_of(session.open(NOW))[0]["ping"] == 7


def test_the_first_cart_has_no_id() -> None:
    session = make_session(opened=False)
    session.open(NOW)
    assert session.client_id("s1/cart") is None
    assert session.client_id("c1") == "c1"


def test_the_first_read_of_the_cart_is_retried() -> None:
    session = make_session(opened=False)
    session.open(NOW)
    assert session.tick(NOW + 4) == []
    assert session.next_wakeup == NOW + 5
    (again,) = session.tick(NOW + 5)
    assert isinstance(again, Publish)
    assert again.request_id == "s1/cart"
    assert session.on_read_answered("s1/cart", [b"x"]) == [b"x"]
    assert session.tick(NOW + 20) == []


def test_the_first_read_of_the_cart_is_retried_without_an_acknowledgement() -> None:
    session = make_session(opened=False)
    session.open(NOW)
    assert session.on_unacknowledged("s1/cart", 2) == []
    assert len(session.tick(NOW)) == 1


# ---- changes --------------------------------------------------------------------------------------------------------


def test_a_change_is_sent_then_pending_then_its_outcome() -> None:
    session = make_session()
    assert add(session) == [Publish("a1", "add", {"user_id": USER, "product": "P", "quantity": 2})]
    assert frames_of(session.on_acknowledged("a1")) == [{"type": "pending", "id": "a1"}]
    assert [frame["type"] for frame in outcome(session, held())] == ["held"]


def test_an_outcome_before_the_acknowledgement_sends_pending_first() -> None:
    session = make_session()
    add(session)
    assert [frame["type"] for frame in outcome(session, held())] == ["pending", "held"]
    assert session.on_acknowledged("a1") == []


def test_an_outcome_reaches_the_other_socket_without_a_pending() -> None:
    shopper = make_user()
    asking, looking = make_session(shopper), make_session(shopper, "s2")
    add(asking)
    assert [frame["type"] for frame in outcome(looking, held())] == ["held"]
    assert looking.on_acknowledged("a1") == []


def test_an_unsolicited_frame_has_no_pending() -> None:
    frame = frame_encoder.outcome(cart.Expired(user_id=USER, lines=(), version=3))
    assert frames_of(make_session().on_outcome(None, frame)) == [{"type": "expired", "lines": [], "version": 3}]


def test_a_repeated_frame_is_published_again() -> None:
    session = make_session()
    assert add(session) == add(session)
    session.on_acknowledged("a1")
    assert session.on_acknowledged("a1") == []
    assert add(session) == add(session)


@pytest.mark.parametrize(
    ("frame", "verb", "data"),
    [
        ({"type": "set", "product": "P", "quantity": 0}, "set", {"product": "P", "quantity": 0}),
        ({"type": "remove", "product": "P"}, "remove", {"product": "P"}),
        ({"type": "clear"}, "clear", {}),
        ({"type": "check", "product": "P"}, "check", {"product": "P", "session": "s1"}),
        ({"type": "cart"}, "read", {"session": "s1"}),
        (
            {"type": "resume", "version": 7, "unresolved": ["a", "b", "a"]},
            "lookup",
            {"ids": ["a", "b"], "session": "s1"},
        ),
        ({"type": "resume", "version": 0}, "lookup", {"ids": [], "session": "s1"}),
    ],
)
def test_each_frame_becomes_a_request_to_the_carts(frame: dict[str, Any], verb: str, data: dict[str, Any]) -> None:
    assert send(make_session(), id="x", **frame) == [Publish("x", verb, {"user_id": USER, **data})]
    parsed = cart.REQUEST_REGISTRY.types[f"holdfast.cart.{verb}"]
    parsed.model_validate_json(orjson.dumps({"user_id": USER, **data}))


def test_the_frames_trace_goes_along() -> None:
    (request,) = send(make_session(), id="x", type="cart", traceparent="00-ab")
    assert isinstance(request, Publish)
    assert request.traceparent == "00-ab"


# ---- no acknowledgement ---------------------------------------------------------------------------------------------


def test_an_unacknowledged_change_is_unavailable_and_never_refused() -> None:
    session = make_session()
    add(session)
    frame = error(session.on_unacknowledged("a1", 2))
    assert (frame["id"], frame["code"], frame["retry_after"]) == ("a1", "unavailable", 2)
    assert "a1" not in session.user.unanswered
    assert [frame["type"] for frame in outcome(session, held())] == ["pending", "held"]


def test_an_unacknowledged_read_is_unavailable_once() -> None:
    session = make_session()
    send(session, id="c1", type="cart")
    assert error(session.on_unacknowledged("c1", 2))["code"] == "unavailable"
    assert session.on_unacknowledged("c1", 2) == []
    assert not session.user.unanswered


def test_the_number_of_awaited_changes_is_bounded() -> None:
    session = make_session(make_user(changes=None))
    for number in range(MAX_AWAITED + 1):
        add(session, f"a{number}")
        session.on_unacknowledged(f"a{number}", 2)
    assert session.on_acknowledged("a0") == []
    assert len(session.on_acknowledged("a1")) == 1


# ---- reads ----------------------------------------------------------------------------------------------------------


def test_a_read_is_answered_once_and_only_to_its_socket() -> None:
    shopper = make_user()
    asking, looking = make_session(shopper), make_session(shopper, "s2")
    send(asking, id="c1", type="cart")
    assert looking.on_read_answered("c1", [b"x"]) == []
    assert asking.on_read_answered("c1", [b"x", b"y"]) == [b"x", b"y"]
    assert asking.on_read_answered("c1", [b"x"]) == []
    assert not shopper.unanswered


def test_a_read_without_an_answer_is_unavailable() -> None:
    session = make_session()
    send(session, id="c1", type="cart")
    assert session.next_wakeup == NOW + 10
    frame = error(session.tick(NOW + 10))
    assert (frame["id"], frame["code"], frame["retry_after"]) == ("c1", "unavailable", 1)
    assert session.next_wakeup == session.closes_at


def test_two_sockets_may_use_one_id_for_their_reads() -> None:
    shopper = make_user()
    for session in (make_session(shopper), make_session(shopper, "s2")):
        send(session, id="c1", type="cart")
    assert len(shopper.unanswered) == 2


def test_a_closed_socket_drops_its_reads_but_not_its_changes() -> None:
    session = make_session()
    send(session, id="c1", type="cart")
    add(session)
    session.close()
    assert list(session.user.unanswered) == ["a1"]
    assert not session.user.sessions


def test_resume_settles_the_requests_that_it_reports() -> None:
    session = make_session()
    add(session)
    stored = Stored(id="a1", outcome=StoredRefused(product="P", reason="out_of_stock", available=0))
    message = cart.Resumed(
        user_id=USER, id="r1", session="s1", cart=cart.CartView(version=1), outcomes=(stored,), unknown=("b2",)
    )
    session.on_resumed(message)
    assert session.on_acknowledged("a1") == []
    assert "a1" not in session.user.unanswered
    assert isinstance(stored.outcome, StoredRefused)
    shown = frames_of([frame_encoder.outcome(stored.outcome, stored.id, replayed=True), frame_encoder.resumed(message)])
    assert shown == [
        {"type": "refused", "id": "a1", "product": "P", "reason": "out_of_stock", "available": 0, "replayed": True},
        {"type": "resumed", "id": "r1", "pending": [], "unknown": ["b2"]},
    ]


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "nonsense", "NaN", '{"id":1e400}', "[" * 10_000, '"\\ud800"', "{'id':1}"])
def test_a_frame_that_is_not_json_closes_the_socket(text: str) -> None:
    frame, close = make_session().receive(text, NOW)
    assert frames_of([frame])[0]["code"] == "bad_json"
    assert close == Close(4400, "bad_json")


@pytest.mark.parametrize(
    ("frame", "code", "field"),
    [
        ([], "missing_id", None),
        (1, "missing_id", None),
        ({}, "missing_id", None),
        ({"id": None, "type": "clear"}, "missing_id", None),
        ({"id": 1, "type": "clear"}, "bad_id", None),
        ({"id": "", "type": "clear"}, "bad_id", None),
        ({"id": "x" * 65, "type": "clear"}, "bad_id", None),
        ({"id": "é", "type": "clear"}, "bad_id", None),
        ({"id": "a\nb", "type": "clear"}, "bad_id", None),
        ({"id": "s1/cart", "type": "cart"}, "bad_id", None),
        ({"id": "x"}, "unknown_type", None),
        ({"id": "x", "type": "nonsense"}, "unknown_type", None),
        ({"id": "x", "type": ["add"]}, "unknown_type", None),
        ({"id": "x", "type": "clear", "user_id": "u2"}, "forbidden", None),
        ({"id": "x", "type": "clear", "cart_id": "u2"}, "forbidden", None),
        ({"id": "x", "type": "add", "quantity": 1}, "bad_field", "product"),
        ({"id": "x", "type": "add", "product": "", "quantity": 1}, "bad_field", "product"),
        ({"id": "x", "type": "add", "product": "x" * 65, "quantity": 1}, "bad_field", "product"),
        ({"id": "x", "type": "add", "product": "\uff11", "quantity": 1}, "bad_field", "product"),
        ({"id": "x", "type": "add", "product": 1, "quantity": 1}, "bad_field", "product"),
        ({"id": "x", "type": "clear", "traceparent": 1}, "bad_field", "traceparent"),
        ({"id": "x", "type": "watch", "products": []}, "bad_field", "products"),
        ({"id": "x", "type": "watch", "products": "P"}, "bad_field", "products"),
        ({"id": "x", "type": "watch", "products": [1]}, "bad_field", "products"),
        ({"id": "x", "type": "watch", "products": ["P"] * 101}, "bad_field", "products"),
        ({"id": "x", "type": "resume"}, "bad_field", "version"),
        ({"id": "x", "type": "resume", "version": -1}, "bad_field", "version"),
        ({"id": "x", "type": "resume", "version": 1, "unresolved": ["a"] * 65}, "bad_field", "unresolved"),
        *(
            ({"id": "x", "type": "add", "product": "P", "quantity": quantity}, "bad_quantity", "quantity")
            for quantity in NO_QUANTITIES
        ),
        ({"id": "x", "type": "add", "product": "P"}, "bad_quantity", "quantity"),
        ({"id": "x", "type": "set", "product": "P", "quantity": -1}, "bad_quantity", "quantity"),
    ],
)
def test_an_invalid_frame_is_an_error_and_the_socket_stays(frame: object, code: str, field: str | None) -> None:
    session = make_session()
    answer = error(session.receive(json.dumps(frame), NOW))
    assert answer["code"] == code
    assert answer.get("field") == field
    assert answer["id"] == ("x" if isinstance(frame, dict) and frame.get("id") == "x" else None)
    assert not session.user.unanswered
    assert len(add(session)) == 1, "the socket stays"


def test_a_frame_may_name_its_own_user() -> None:
    assert isinstance(send(make_session(), id="x", type="clear", user_id=USER)[0], Publish)


def test_a_rejection_goes_only_to_the_socket_that_sent_the_request() -> None:
    shopper = make_user()
    asking, looking = make_session(shopper), make_session(shopper, "s2")
    add(asking)
    message = cart.Error(user_id=USER, id="a1", code="id_reused", detail="used before")
    assert error(asking.on_rejected(message))["code"] == "id_reused"
    assert looking.on_rejected(message) == []


def test_a_rejected_read_names_the_invalid_field() -> None:
    session = make_session()
    send(session, id="k", type="check", product="P")
    frame = error(session.on_rejected(cart.Error(user_id=USER, id="k", code="bad_field", detail="ahead", field="time")))
    assert (frame["code"], frame["field"]) == ("bad_field", "time")
    assert not session.user.unanswered


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_64_requests_may_be_unanswered_on_all_sockets_of_a_user() -> None:
    shopper = make_user()
    one, two = make_session(shopper), make_session(shopper, "s2")
    for number in range(64):
        assert isinstance(add(one if number % 2 else two, f"a{number}")[0], Publish)
    assert error(add(one, "b"))["code"] == "too_many"
    assert error(send(two, id="c", type="cart"))["code"] == "too_many"
    assert isinstance(add(one, "a1")[0], Publish), "one of the 64, sent again"
    shopper.release("a1")
    assert isinstance(add(one, "b")[0], Publish)


def test_a_client_at_its_limit_may_still_resume() -> None:
    shopper = make_user()
    session = make_session(shopper)
    for number in range(64):
        add(session, f"a{number}")
    for number in range(MAX_EXTRA_RESUMES):
        (request,) = send(session, id=f"r{number}", type="resume", version=0, unresolved=[])
        assert isinstance(request, Publish)
    assert error(send(session, id="r", type="resume", version=0, unresolved=[]))["code"] == "too_many"
    assert error(add(session, "b"))["code"] == "too_many"


def test_stale_requests_no_longer_count() -> None:
    session = make_session(make_user(unanswered=1))
    add(session)
    assert error(add(session, "b"))["code"] == "too_many"
    assert isinstance(send(session, NOW + 901, id="b", type="clear")[0], Publish)


def test_frames_past_the_limit_are_refused_and_past_its_double_close_the_socket() -> None:
    session = make_session(make_user(changes=3))
    assert all(isinstance(add(session)[0], Publish) for _ in range(3))
    for _ in range(3):
        frame = error(add(session))
        assert (frame["id"], frame["code"], frame["retry_after"]) == ("a1", "rate_limited", 20)
    told_last, close = add(session)
    assert frames_of([told_last])[0]["code"] == "rate_limited"
    assert close == Close(4429, "retry_after=20")


def test_reads_and_invalid_frames_have_a_separate_limit() -> None:
    session = make_session(make_user(changes=1, others=2))
    add(session)
    assert error(send(session, id="x", type="nonsense"))["code"] == "unknown_type"
    assert isinstance(send(session, id="x", type="cart")[0], Publish)
    assert error(send(session, id="x", type="cart"))["code"] == "rate_limited"


def test_limits_may_be_disabled() -> None:
    session = make_session(make_user(changes=None, others=None, unanswered=None, sockets=None))
    assert all(isinstance(add(session, f"a{number}")[0], Publish) for number in range(1000))


# ---- watching -------------------------------------------------------------------------------------------------------


def test_watch_and_unwatch_some_products_or_all() -> None:
    session = make_session()
    assert send(session, id="w", type="watch", products=["P", "Q"]) == [StartWatching(("P", "Q"))]
    assert send(session, id="w", type="watch") == [StartWatching(None)]
    assert send(session, id="w", type="unwatch", products=["P"]) == [StopWatching(("P",))]
    assert send(session, id="w", type="unwatch") == [StopWatching(None)]


def test_a_socket_watches_a_hundred_products_at_most() -> None:
    session = make_session()
    send(session, id="w", type="watch", products=[f"P{number}" for number in range(MAX_WATCHED)])
    assert error(send(session, id="w", type="watch", products=["Q"]))["field"] == "products"
    assert send(session, id="w", type="watch", products=["P1"]) == [StartWatching(("P1",))]
    send(session, id="w", type="unwatch", products=["P1"])
    assert send(session, id="w", type="watch", products=["Q"]) == [StartWatching(("Q",))]


# ---- time -----------------------------------------------------------------------------------------------------------


def test_the_socket_is_closed_after_the_token_and_the_leeway() -> None:
    session = make_session()
    assert session.tick(NOW + 3629) == []
    assert session.tick(NOW + 3630) == [Close(4401, "the token has expired")]


def test_expiring_is_sent_once_two_minutes_before() -> None:
    shopper = make_user()
    session = make_session(shopper)
    shopper.observe_cart(held(ends=NOW + 900))
    assert not shopper.needs_expiry_warning(NOW + 779)
    assert shopper.needs_expiry_warning(NOW + 780)
    (request,) = session.read_before_expiry_warning(NOW + 780)
    assert isinstance(request, Publish)
    assert request.request_id == "s1/end"
    assert session.read_before_expiry_warning(NOW + 780) == []
    warning = shopper.take_expiry_warning(NOW + 780)
    assert warning is not None
    assert frames_of([warning]) == [
        {"type": "expiring", "expires_at": frame_encoder.format_time(NOW + 900), "version": 1}
    ]
    assert shopper.take_expiry_warning(NOW + 781) is None


def test_the_read_before_the_warning_is_retried() -> None:
    session = make_session()
    session.read_before_expiry_warning(NOW)
    (again,) = session.tick(NOW + 5)
    assert isinstance(again, Publish)
    assert again.request_id == "s1/end"


def test_a_later_expiry_is_warned_of_again() -> None:
    shopper = make_user()
    make_session(shopper)
    shopper.observe_cart(held(ends=NOW + 100))
    assert shopper.take_expiry_warning(NOW)
    shopper.observe_cart(held(version=2, ends=NOW + 900))
    assert shopper.take_expiry_warning(NOW + 1) is None
    assert shopper.take_expiry_warning(NOW + 790)


def test_no_warning_for_an_empty_or_expired_cart_or_without_a_socket() -> None:
    shopper = make_user()
    assert shopper.take_expiry_warning(NOW) is None
    shopper.observe_cart(held(ends=NOW + 60))
    assert shopper.take_expiry_warning(NOW) is None, "nobody is here"
    make_session(shopper)
    assert shopper.take_expiry_warning(NOW + 60) is None, "it is over"
    shopper.observe_cart(cart.CartView(version=1, expires_at=datetime.fromtimestamp(NOW + 60, UTC)))
    assert shopper.take_expiry_warning(NOW) is None, "it is empty"


def test_only_newer_messages_change_the_state() -> None:
    shopper = make_user()
    shopper.observe_cart(held(version=5, ends=NOW + 900))
    shopper.observe_cart(held(version=4, ends=NOW + 100))
    shopper.observe_cart(cart.CartView(version=4))
    shopper.observe_cart(cart.Expired(user_id=USER, lines=(), version=5))
    assert (shopper.cart_version, shopper.cart_expires_at) == (5, NOW + 900)
    shopper.observe_cart(cart.Removed(user_id=USER, id="r", version=6))
    assert (shopper.cart_version, shopper.cart_expires_at) == (6, NOW + 900)
    shopper.observe_cart(cart.Refused(user_id=USER, id="r", reason="limit"))
    line = Line(product="P", quantity=1, price=Money(amount=1, currency="GBP"))
    shopper.observe_cart(cart.CartView(version=6, expires_at=datetime.fromtimestamp(NOW + 50, UTC), lines=(line,)))
    assert shopper.cart_expires_at == NOW + 50
    shopper.observe_cart(cart.Expired(user_id=USER, lines=(), version=7))
    assert shopper.cart_version == 7
    assert shopper.cart_expires_at is None


def test_an_idle_user_may_be_dropped() -> None:
    shopper = make_user()
    assert not shopper.is_idle(NOW + 60)
    assert shopper.is_idle(NOW + 121)
    shopper.register("a", NOW)
    assert not shopper.is_idle(NOW + 121)
    assert shopper.is_idle(NOW + 901), "an answer that never came holds nobody for ever"


# ---- when the whole shop has too much to do -------------------------------------------------------------------------


def test_an_overloaded_shop_refuses_requests_at_once() -> None:
    in_flight = InFlight(Admission(2))
    shoppers = [UserState(f"u{number}", UserLimits(), NOW, in_flight) for number in range(3)]
    sessions = [make_session(shopper, f"s{number}") for number, shopper in enumerate(shoppers)]
    assert all(isinstance(add(session)[0], Publish) for session in sessions[:2])
    refused = error(add(sessions[2]))
    assert (refused["code"], refused["id"], refused["retry_after"]) == ("unavailable", "a1", 1)
    assert shoppers[2].unanswered == [], "it does not count against its shopper"
    assert isinstance(add(sessions[0])[0], Publish), "what is under way may be sent again"
    assert isinstance(send(sessions[2], id="r", type="resume", version=0)[0], Publish), "who was cut off may come back"
    outcome(sessions[0], held())
    shoppers[0].release("a1")
    assert isinstance(add(sessions[2])[0], Publish), "there is room again"
