"""Every field of a request reaches every place it must reach: retries, fingerprints, orders, frames.

The fields are taken from the models, so a field that is added later and forgotten in one of these places fails here.
"""

from dataclasses import asdict
from typing import Any, Literal

import orjson
import pytest
from pydantic import BaseModel

from cart_service import model as cart_model
from contracts import cart, deliveries, inventory, orders, payments
from contracts.envelope import Envelope, Message
from contracts.ids import derive_id
from inventory_service import model as inventory_model
from inventory_service.fingerprint import LoggedRequest, fingerprint
from inventory_service.state import CartState, Decision, LineChange, State
from order_service.commands import PersonalData, next_commands
from order_service.delivery.model import Parcel
from order_service.delivery.model import apply_request as apply_delivery_request
from order_service.model import Incoming, SagaTimeouts, handle
from order_service.payment.model import Operation, operation_key
from order_service.payment.model import apply_request as apply_payment_request
from order_service.payment.store import _row as payment_row
from order_service.payment.store import operation_of
from order_service.state import Order, evolve
from order_service.store import event_row, read_event, read_personal_data
from rest_api.http.routers import cart as cart_routes
from rest_api.http.routers import orders as order_routes
from rest_api.protocol import client_frames, frame_encoder, server_frames
from rest_api.protocol.effects import Publish
from tests.testkit.edge_session import make_session
from tests.testkit.inventory_model import InventoryModel
from tests.testkit.samples import NOON, samples, variants

CHANGES: tuple[type[cart.Change], ...] = (cart.Add, cart.Set, cart.Remove, cart.Clear, cart.Checkout)
LOGGED: tuple[type[LoggedRequest], ...] = (
    inventory.Hold,
    inventory.Remove,
    inventory.Clear,
    inventory.Commit,
    inventory.Sell,
    inventory.ReleaseOrder,
    inventory.Restock,
)
FORMS: dict[type[BaseModel], tuple[dict[str, Any], ...]] = {
    cart.Checkout: ({"items": None}, {"version": None}),
    client_frames.Checkout: ({"items": None}, {"version": None}),
    inventory.Commit: ({"lines": None}, {"version": None}),
}
"""Fields that exclude each other; each form of the request leaves one of them out."""
TO_ORDERS_ONLY = {"address", "contact", "payment"}
"""Fields of a checkout that only the order service gets: they are personal, and inventory needs none of them."""


def each_field(kinds: tuple[type[BaseModel], ...], *excluded: str) -> list[Any]:
    """Return two messages that differ in one field, for each field but those excluded, as parameters of a test."""
    return [
        pytest.param(*pair, id=f"{kind.__name__}.{name}" + "".join(f" without {each}" for each in form))
        for kind in kinds
        for form in FORMS.get(kind, ({},))
        for name, pair in variants(kind, **form).items()
        if name not in excluded
    ]


def pending(change: cart.Change) -> cart.PendingRequest:
    [request] = cart_model.add_pending(cart_model.Cart(), "r1", change, accepted=NOON).pending
    return cart.PendingRequest.model_validate_json(request.model_dump_json())  # as the table keeps it


# ---- carts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), each_field(CHANGES, *TO_ORDERS_ONLY))
def test_a_change_reaches_inventory_with_every_field(one: cart.Change, other: cart.Change) -> None:
    assert cart_model.to_inventory_request(one) != cart_model.to_inventory_request(other)


@pytest.mark.parametrize(("one", "other"), each_field(CHANGES))
def test_a_retry_equals_the_first_request(one: cart.Change, other: cart.Change) -> None:
    for change in (one, other):
        assert cart_model.retry_request(change.user_id, pending(change)) == cart_model.to_inventory_request(change)


@pytest.mark.parametrize(("one", "other"), each_field((cart.Add, cart.Set, cart.Remove, cart.Clear), "user_id"))
def test_a_pending_request_is_shown_with_every_field(one: cart.Change, other: cart.Change) -> None:
    shown = []
    for change in (one, other):
        view = cart.CartView(version=1, pending=(pending(change),))
        [request] = frame_encoder.cart_body("ann", view, {}, "GBP")["pending"]
        shown.append(server_frames.PendingChange.model_validate_json(orjson.dumps(request)))
        assert shown[-1].model_dump(exclude_none=True).keys() == request.keys()
    assert shown[0] != shown[1]


@pytest.mark.parametrize(("one", "other"), each_field((cart.Checkout,)))
def test_a_checkout_reaches_orders_with_every_field(one: cart.Checkout, other: cart.Checkout) -> None:
    assert cart_model.to_order_request(one) != cart_model.to_order_request(other)


@pytest.mark.parametrize(("one", "other"), each_field((inventory.Line,)))
def test_a_line_of_a_cart_is_shown_with_every_field(one: inventory.Line, other: inventory.Line) -> None:
    bodies = [
        frame_encoder.cart_body("ann", cart.CartView(version=1, lines=(line,)), {}, "GBP") for line in (one, other)
    ]
    lines = [server_frames.CartBody.model_validate_json(orjson.dumps(body)).lines for body in bodies]
    assert lines[0] != lines[1]


OUTCOMES: dict[type[BaseModel], type[Message]] = {
    inventory.Held: cart.Held,
    inventory.Refused: cart.Refused,
    inventory.Removed: cart.Removed,
    inventory.Expired: cart.Expired,
}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_an_outcome_is_told_to_the_shopper_with_every_field(kind: type[BaseModel]) -> None:
    excluded = {"type", "order_id"}  # the frame's own type; an order's refusal is answered by its order
    for name, pair in variants(kind).items():
        if name in excluded:
            continue
        frames = []
        for outcome in pair:
            decided = inventory.Decided(user_id="ann", outcome=outcome, cart=inventory.Cart(revision=1))  # type: ignore[arg-type]
            response = cart_model.to_response(cart_model.Cart(), "r1", decided)
            assert isinstance(response, OUTCOMES[kind])
            frames.append(frame_encoder._pass_through(response, "r1"))
        assert frames[0] != frames[1], name


# ---- inventory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), each_field(LOGGED, "user_id"))
def test_a_fingerprint_has_every_field(one: LoggedRequest, other: LoggedRequest) -> None:
    """The user is the first half of the log's key."""
    assert fingerprint(one) != fingerprint(other)
    assert orjson.loads(orjson.dumps(fingerprint(one))) == fingerprint(one), "as the log stores it"


@pytest.mark.parametrize("mode", ["add", "set"])
def test_a_granted_hold_keeps_every_field_of_its_request(mode: str) -> None:
    for name, pair in variants(inventory.Hold, user_id="ann", mode=mode).items():
        carts = []
        for hold in pair:
            shop = InventoryModel(**{each.product: 10 for each in pair})
            assert shop.ask(hold).type == "held"
            carts.append(shop.holders["ann"].to_message())
        assert carts[0] != carts[1], name


@pytest.mark.parametrize("form", [{"lines": None}, {"version": None}])
def test_a_request_that_failed_has_the_fingerprint_of_its_command(form: dict[str, Any]) -> None:
    kinds: tuple[type[LoggedRequest], ...] = (inventory.Hold, inventory.Remove, inventory.Clear, inventory.Commit)
    for kind in kinds:
        for request in samples(kind, **(form if kind is inventory.Commit else {})):
            command = {"type": kind.TYPE, **request.model_dump(mode="json", exclude_none=True)}
            assert fingerprint(inventory.Fail(user_id="ann", command=command)) == fingerprint(request)


@pytest.mark.parametrize(("one", "other"), each_field((inventory.Line,), "product"))
def test_a_line_that_changed_in_any_field_is_written(one: inventory.Line, other: inventory.Line) -> None:
    state = State(NOON, {"ann": CartState(lines={one.product: one})}, {}, {})
    removed = inventory.Removed(product=one.product, version=1)  # whatever the outcome is
    inventory_model._change_cart(state, "ann", Decision(removed, (LineChange(one.product, other),)))
    assert state.changed_lines == {("ann", one.product)}
    assert state.carts["ann"].lines == {one.product: other}


# ---- orders, payment, delivery --------------------------------------------------------------------------------------

ORDER = {"order_id": derive_id("ann", "r1", "order"), "user_id": "ann"}


def placed(place: orders.Place) -> Order:
    """Return the order that a request makes, from its event as it is stored."""
    incoming = Incoming(place.order_id, place.user_id, "r1", place)
    [event] = handle(None, (), incoming, now=NOON, timeouts=SagaTimeouts()).events
    return evolve(None, read_event(*event_row(event)[1:]), NOON)


@pytest.mark.parametrize("form", [{"items": None}, {"version": None}])
def test_an_order_keeps_every_field_of_its_request(form: dict[str, Any]) -> None:
    for name, pair in variants(orders.Place, **ORDER, **form).items():
        kept = [(placed(place), PersonalData.of(place)) for place in pair]
        assert kept[0] != kept[1], name
        assert [read_personal_data(*(each.model_dump_json() for each in data if each)) for _, data in kept] == [
            data for _, data in kept
        ]


@pytest.mark.parametrize("form", [{"items": None}, {"version": None}])
def test_an_order_repeats_the_commit_that_the_cart_sent(form: dict[str, Any]) -> None:
    for checkout in samples(cart.Checkout, **ORDER, **form):
        order = placed(cart_model.to_order_request(checkout))
        [command] = next_commands(order, None, overdue=True)
        assert command.message == cart_model.to_inventory_request(checkout)


@pytest.mark.parametrize(("one", "other"), each_field((payments.Charge, payments.Refund), "order_id", "user_id"))
def test_payment_keeps_every_field_of_a_request(one: payments.Request, other: payments.Request) -> None:
    kept = []
    for request in (one, other):
        intent: Literal["refund", "query"] = "refund" if isinstance(request, payments.Refund) else "query"
        ids = request.order_id, request.user_id, request.payment_id
        operation = apply_payment_request(Operation(operation_key(request), *ids, intent), request).operation
        row = {
            **asdict(operation),
            **payment_row(
                operation, Envelope.of(request, source="/orders", request_id="r1", time=NOON), ask=True, tell=True
            ),
        }
        row |= {"state": "open", "settled_currency": None, "doubted_at": None}
        assert operation_of(row) == operation, "as its row keeps it"
        kept.append(operation)
    assert kept[0] != kept[1]


@pytest.mark.parametrize(
    ("one", "other"), each_field((deliveries.Book,), "order_id", "user_id", "shipment_id", "lines")
)
def test_delivery_keeps_every_field_of_a_booking(one: deliveries.Book, other: deliveries.Book) -> None:
    """All but the lines: a parcel is booked by its address, and the ids are its key."""
    parcel = Parcel(one.shipment_id, one.order_id, one.user_id)
    assert apply_delivery_request(parcel, one).parcel != apply_delivery_request(parcel, other).parcel


# ---- the edge -------------------------------------------------------------------------------------------------------

FRAMES: dict[str, type[cart.Change]] = {
    "add": cart.Add,
    "set": cart.Set,
    "remove": cart.Remove,
    "clear": cart.Clear,
    "checkout": cart.Checkout,
}


@pytest.mark.parametrize("verb", FRAMES)
def test_a_frame_reaches_the_carts_with_every_field(verb: str) -> None:
    frame_class = client_frames.CLIENT_FRAMES[verb]
    assert set(frame_class.model_fields) - {"id", "type", "traceparent"} == set(FRAMES[verb].model_fields) - {
        "user_id",
        "order_id",
    }
    for form in FORMS.get(frame_class, ({},)):
        for name, pair in variants(frame_class, **form).items():
            if name in {"id", "type", "traceparent"}:
                continue
            published = []
            for frame in pair:
                text = frame.model_dump_json(exclude_none=True)
                [effect] = make_session().receive(text, NOON.timestamp())
                assert isinstance(effect, Publish), text
                published.append(FRAMES[verb].model_validate_json(orjson.dumps(effect.data)))
            assert published[0] != published[1], name


def test_the_bodies_of_the_cart_routes_have_the_fields_of_their_requests() -> None:
    assert set(cart_routes.Wanted.model_fields) == set(cart.Add.model_fields) - {"user_id"}
    assert {*cart_routes.Amount.model_fields, "product"} == set(cart.Set.model_fields) - {"user_id"}
    assert set(order_routes.NewOrder.model_fields) == set(client_frames.Wanted.model_fields)
