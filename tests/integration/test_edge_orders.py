"""Orders at the edge, over HTTP and over the socket, with a stand-in for the services behind it."""

import asyncio
import json
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import TypeAdapter
from websockets.sync.client import ClientConnection, connect

from contracts import cart, deliveries, payments
from contracts.ids import derive_id
from rest_api.protocol.server_frames import Server
from rest_api.read_models.orders.projector import OrderProjector
from rest_api.read_models.orders.queries import OrderStore
from rest_api.read_models.store import Store
from rest_api.settings import EdgeSettings
from tests.testkit.edge import SILENT, Running, running_edge
from tests.testkit.fake_orders import PRICE, SCARCE
from tests.testkit.rest_client import ADDRESS, ONE, WAIT, problem, token, until, wanted
from tests.testkit.servers import Servers

SERVER = TypeAdapter[Any](Server)


@pytest.fixture(scope="module")
def edge(servers: Servers) -> Iterator[Running]:
    with running_edge(servers, f"eo{secrets.token_hex(3)}.", HOLDFAST_PROVIDER_PATIENCE_SECONDS="1") as running:
        yield running


@pytest.fixture
def client(edge: Running) -> Iterator[httpx.Client]:
    """A guest's client."""
    with edge.client(edge.guest()["token"]) as found:
        yield found


@pytest.fixture
def support(edge: Running) -> Iterator[httpx.Client]:
    with edge.client(token(edge.settings, "support")) as found:
        yield found


def fill(client: httpx.Client, quantity: int = 2) -> int:
    """A cart with something in it, at the version that is returned."""
    done = client.post("/v1/cart/items", json={"product": "P", "quantity": quantity}, headers=WAIT)
    return int(done.json()["version"])


def placed(client: httpx.Client, **more: Any) -> str:
    """An order whose stock is held for it."""
    response = client.post("/v1/orders", json=wanted(**more), headers=WAIT)
    assert response.status_code == 200, response.text
    return str(response.json()["order_id"])


def cancelled(client: httpx.Client) -> str:
    """An order that its shopper wanted no more."""
    order_id = placed(client)
    assert client.post(f"/v1/orders/{order_id}/cancel", headers=WAIT).json()["status"] == "cancelled"
    return order_id


def move(edge: Running, order_id: str, kind: str, status: str, **more: Any) -> int:
    """Have the order service publish the next event of an order; return its version."""
    told = edge.carts.desk.event(order_id, kind, status, **more)
    edge.carts.publish(told.topic, told.source, told.kind, told.key, told.data)
    return int(told.data["version"])


def at_version(client: httpx.Client, order_id: str, version: int) -> dict[str, Any]:
    """An order once the read model has it at this version."""
    until(lambda: client.get(f"/v1/orders/{order_id}").json()["order_version"] >= version)
    found: dict[str, Any] = client.get(f"/v1/orders/{order_id}").json()
    return found


# ---- placing --------------------------------------------------------------------------------------------------------


def test_an_order_can_be_read_where_it_was_accepted_at_once(client: httpx.Client, edge: Running) -> None:
    response = client.post("/v1/orders", json=wanted(items=[{"product": SILENT, "quantity": 1}]))
    assert response.status_code == 202
    order_id = response.json()["order_id"]
    assert response.headers["location"] == f"/v1/orders/{order_id}"
    found = client.get(response.headers["location"])
    assert found.status_code == 200
    assert {name: found.json()[name] for name in ("order_id", "status", "order_version", "lines", "total")} == {
        "order_id": order_id,
        "status": "placed",
        "order_version": 0,
        "lines": [],
        "total": None,
    }
    until(lambda: any(event.data.get("order_id") == order_id for event in edge.carts.requests))
    asked = next(event for event in edge.carts.requests if event.data.get("order_id") == order_id)
    assert asked.type == "holdfast.cart.checkout"
    assert derive_id(asked.subject, asked.requestid or "", "order") == order_id
    assert asked.data["address"] == ADDRESS


def test_with_prefer_wait_the_order_is_the_answer(client: httpx.Client) -> None:
    version = fill(client)
    total = {"amount": 2 * PRICE["amount"], "currency": "GBP"}
    response = client.post("/v1/orders", json=wanted(version=version, expect={"total": total}), headers=WAIT)
    assert (response.status_code, response.headers["preference-applied"]) == (200, "wait=10")
    order = response.json()
    assert (order["status"], order["order_version"], order["total"]) == ("committed", 2, total)
    assert [(line["product"], line["quantity"], line["price"]) for line in order["lines"]] == [("P", 2, PRICE)]
    assert client.get("/v1/cart").json()["lines"] == []


@pytest.mark.parametrize(
    ("more", "status", "slug"),
    [
        ({"version": 0}, 409, "cart-empty"),
        ({"version": 7}, 409, "cart-changed"),
        ({"expect": {"total": {"amount": 1, "currency": "GBP"}}}, 409, "total-changed"),
        ({"items": [{"product": SCARCE, "quantity": 1}]}, 409, "out-of-stock"),
    ],
)
def test_an_order_that_is_refused_is_a_problem(
    client: httpx.Client, more: dict[str, Any], status: int, slug: str
) -> None:
    key = {"Idempotency-Key": secrets.token_hex(8)}
    for _ in range(2):
        problem(client.post("/v1/orders", json=wanted(**more), headers={**WAIT, **key}), status, slug)


def test_the_same_key_and_body_make_one_order(client: httpx.Client, edge: Running) -> None:
    key = {"Idempotency-Key": secrets.token_hex(8)}
    first, second = (client.post("/v1/orders", json=wanted(), headers=key) for _ in range(2))
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert first.headers["location"] == second.headers["location"]
    waited = client.post("/v1/orders", json=wanted(), headers={**key, **WAIT})
    assert (waited.status_code, waited.json()["order_id"]) == (200, first.json()["order_id"])
    assert client.post("/v1/orders", json=wanted(), headers={**key, **WAIT}).json() == waited.json()
    other = wanted(address={**ADDRESS, "city": "Leeds"})
    problem(client.post("/v1/orders", json=other, headers=key), 422, "idempotency-key-reused")
    assert len(client.get("/v1/orders").json()["items"]) == 1
    with psycopg.connect(edge.settings.postgres_url) as database:
        schema = edge.settings.schema_name("edge")
        rows = database.execute(f'SELECT fingerprint FROM "{schema}".claim'.encode()).fetchall()
    assert not any("York" in row[0] or "ann@" in row[0] for row in rows), "nobody's address stands beside a key"


NOT_A_CARD = "4111 1111 1111 1112"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"items": None}, "/version"),
        ({"version": 1, "items": ONE}, "/version"),
        ({"version": -1}, "/version"),
        ({"version": 1.0}, "/version"),
        ({"version": 2**63}, "/version"),
        ({"items": []}, "/items"),
        ({"items": "P"}, "/items"),
        ({"items": ONE + ONE}, "/items"),
        ({"items": [{"product": "P", "quantity": 0}]}, "/items/0/quantity"),
        ({"items": [{"product": "P", "quantity": 1.5}]}, "/items/0/quantity"),
        ({"items": [{"product": "P", "quantity": 2**64}]}, "/items/0/quantity"),
        ({"items": [{"product": f"P{number}", "quantity": 1} for number in range(101)]}, "/items"),
        ({"address": None}, "/address"),
        ({"address": {**ADDRESS, "country": "gb"}}, "/address/country"),
        ({"address": {**ADDRESS, "city": ""}}, "/address/city"),
        ({"address": {**ADDRESS, "name": "a\x00b"}}, "/address/name"),
        ({"address": {**ADDRESS, "name": "x" * 201}}, "/address/name"),
        ({"contact": {"email": "ann"}}, "/contact/email"),
        *[
            ({"contact": {"email": address}}, "/contact/email")
            for address in (
                *(
                    "a,b@x",
                    "x@y>",
                    "|x@y",
                    "?=@[=?x",
                    "john.@example.org",
                    ".john@example.org",
                    "try..this@example.org",
                ),
                *("ann@example.org.", "ann@example..org", "ann;bob@example.org", "<ann@example.org", "a b@example.org"),
                *(
                    "ann@exa\u200bmple.org",
                    "jürgen@example.org",
                    "ann@[127.0.0.1]",
                    "ann@localhost",
                    "ann\0@example.org",
                ),
                *("=?utf-8?q?a=0d=0a?=@example.org", f"ann@{'x' * 250}.org"),
            )
        ],
        ({"contact": {"email": "ann@example.org", "phone": "call me"}}, "/contact/phone"),
        ({"contact": {"email": "ann@example.org", "phone": "112"}}, "/contact/phone"),
        ({"contact": {"email": "ann@example.org", "phone": "+44 20 7946 0123" * 9}}, "/contact/phone"),
        ({"payment": {}}, "/payment/token"),
        ({"payment": {"token": 4111111111111111}}, "/payment/token"),
        ({"payment": {"token": ""}, "status": "paid"}, "/status"),
        ({"expect": {"total": {"amount": -1, "currency": "GBP"}}}, "/expect/total/amount"),
        ({"expect": {"total": {"amount": 2**64, "currency": "GBP"}}}, "/expect/total/amount"),
        ({"expect": {"total": {"amount": 1, "currency": "pounds"}}}, "/expect/total/currency"),
        ({"status": "paid"}, "/status"),
        ({"user_id": "u2"}, "/user_id"),
        ({"total": {"amount": 0, "currency": "GBP"}}, "/total"),
    ],
)
def test_an_order_that_is_not_allowed(client: httpx.Client, change: dict[str, Any], pointer: str) -> None:
    body = {name: value for name, value in wanted(**change).items() if value is not None}
    found = problem(client.post("/v1/orders", json=body), 422, "invalid")
    assert pointer in [error["pointer"] for error in found["errors"]], found


def test_a_contact_is_normalised_before_it_is_an_order(edge: Running, client: httpx.Client) -> None:
    contact = {"email": "Ann@BÜCHER.example", "phone": "0044 (0)20 7946-0123"}
    order_id = placed(client, contact=contact)
    [place] = [each for each in edge.carts.requests if each.data.get("order_id") == order_id]
    assert place.data["contact"] == {"email": "Ann@bücher.example", "phone": "+442079460123"}


def test_a_lone_surrogate_is_no_text(client: httpx.Client) -> None:
    body = json.dumps(wanted()).replace("Ann", "\\ud800")
    response = client.post("/v1/orders", content=body, headers={"Content-Type": "application/json"})
    assert problem(response, 422, "invalid")["errors"][0]["pointer"] == "/address/name"


CARD = "4242424242424242"


@pytest.mark.parametrize(
    "token", ["tok_nonsense", NOT_A_CARD, "TOK_APPROVE", CARD, "4242 4242 4242 4242", "", "x" * 65, "tok\n"]
)
def test_an_unknown_payment_token(client: httpx.Client, token: str) -> None:
    places = {
        "/payment/token": client.post("/v1/orders", json=wanted(payment={"token": token})),
        "/token": client.post(f"/v1/orders/{placed(client)}/payments", json={"token": token}),
    }
    for place, response in places.items():
        found = problem(response, 422, "unknown-payment-token")
        assert [error["pointer"] for error in found["errors"]] == [place]


def test_a_card_number_is_neither_sent_nor_logged(client: httpx.Client, edge: Running) -> None:
    body = wanted(payment={"token": CARD})
    for _ in range(2):
        response = client.post("/v1/orders", json=body, headers={"Idempotency-Key": "card"})
        assert CARD not in response.text
    assert not any(CARD in line for line in edge.log)
    with psycopg.connect(edge.settings.postgres_url) as database:
        schema = edge.settings.schema_name("edge")
        rows = database.execute(f'SELECT claim::text FROM "{schema}".claim'.encode()).fetchall()
    assert not any(CARD in row[0] for row in rows)
    assert not any(CARD in event.encode().decode() for event in edge.carts.requests)


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_list_is_the_newest_first_and_its_pages_join(client: httpx.Client) -> None:
    made = [placed(client) for _ in range(5)]
    seen: list[str] = []
    address = "/v1/orders?limit=2"
    while address:
        response = client.get(address)
        seen += [order["order_id"] for order in response.json()["items"]]
        link = re.fullmatch(r'<(.+)>; rel="next"', response.headers.get("link", ""))
        assert (link is None) == (response.json()["after"] is None)
        address = link[1] if link else ""
    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("query", "status", "slug"),
    [
        ("limit=0", 422, "invalid"),
        ("limit=101", 422, "invalid"),
        ("after=nonsense", 400, "bad-cursor"),
        ("after=W10x", 400, "bad-cursor"),
        ("after=WyIxIiwieCJd", 400, "bad-cursor"),  # ["1","x"]
        ("after=Wy0xLCJ4Il0", 400, "bad-cursor"),  # [-1,"x"]
        ("after=WzksIlx1MDAwMCJd", 400, "bad-cursor"),  # [9,"\u0000"]
        ("after=Wzk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5LCJ4Il0", 400, "bad-cursor"),
        ("after=Wzk5OTk5OTk5OTk5OTk5OTksIngiXQ", 400, "bad-cursor"),
    ],
)
def test_a_list_that_is_asked_for_wrongly(client: httpx.Client, query: str, status: int, slug: str) -> None:
    problem(client.get(f"/v1/orders?{query}"), status, slug)


def test_an_order_has_an_etag(client: httpx.Client, edge: Running) -> None:
    order_id = placed(client)
    etag = client.get(f"/v1/orders/{order_id}").headers["etag"]
    same = {"If-None-Match": etag}
    assert client.get(f"/v1/orders/{order_id}", headers=same).status_code == 304
    version = move(edge, order_id, "captured", "paid", payment_id="pay-1", amount=PRICE)
    at_version(client, order_id, version)
    assert client.get(f"/v1/orders/{order_id}", headers=same).status_code == 200


def test_an_order_its_events_its_payments_and_its_parcel(client: httpx.Client, edge: Running) -> None:
    order_id = placed(client)
    problem(client.get(f"/v1/orders/{order_id}/shipment"), 404, "not-found")
    user = client.get(f"/v1/orders/{order_id}").json()["user_id"]
    about = {"order_id": order_id, "user_id": user}
    paid = {**about, "payment_id": "pay-1", "amount": PRICE}
    edge.carts.publish(payments.EVENTS, "/payments", "holdfast.payments.captured", order_id, paid)
    move(edge, order_id, "captured", "paid", payment_id="pay-1", amount=PRICE)
    move(edge, order_id, "confirmed", "confirmed")
    parcel = {"shipment_id": "ship-1", "carrier": "Royal Mail", "tracking": "RM1"}
    for kind in ("shipped", "booked"):  # in whatever order they come
        edge.carts.publish(
            deliveries.EVENTS, "/deliveries", f"holdfast.deliveries.{kind}", order_id, {**about, **parcel}
        )
    last = move(edge, order_id, "shipped", "shipped", **parcel)
    assert at_version(client, order_id, last)["status"] == "shipped"
    events = client.get(f"/v1/orders/{order_id}/events").json()["items"]
    assert [event["type"] for event in events] == ["placed", "committed", "captured", "confirmed", "shipped"]
    assert [event["version"] for event in events] == [1, 2, 3, 4, 5]
    assert "user_id" not in events[0]
    first = client.get(f"/v1/orders/{order_id}/events?limit=2").json()
    rest = client.get(f"/v1/orders/{order_id}/events?limit=10&after={first['after']}").json()
    assert [*first["items"], *rest["items"]] == events
    until(lambda: client.get(f"/v1/orders/{order_id}/shipment").json().get("status") == "shipped")
    until(lambda: len(client.get(f"/v1/orders/{order_id}/shipment").json()["history"]) == 2)
    shipment = client.get(f"/v1/orders/{order_id}/shipment").json()
    assert [step["status"] for step in shipment["history"]] == ["booked", "shipped"]
    assert (shipment["carrier"], shipment["tracking"]) == ("Royal Mail", "RM1")
    until(lambda: client.get(f"/v1/orders/{order_id}/payments").json()["items"])
    (payment,) = client.get(f"/v1/orders/{order_id}/payments").json()["items"]
    assert (payment["type"], payment["payment_id"], payment["amount"]) == ("captured", "pay-1", PRICE)


def test_repeated_and_unknown_events_change_nothing(client: httpx.Client, edge: Running) -> None:
    order_id = placed(client)
    told = edge.carts.desk.event(order_id, "cancelled", "cancelled", reason="declined")
    for _ in range(2):
        edge.carts.publish(told.topic, told.source, told.kind, told.key, told.data)
    edge.carts.publish(told.topic, told.source, "holdfast.orders.polished", told.key, told.data)
    edge.carts.publish(told.topic, "/edge", "holdfast.orders.delivered", told.key, {**told.data, "status": "delivered"})
    order = at_version(client, order_id, 3)
    assert (order["status"], order["reason"]) == ("cancelled", "declined")
    assert len(client.get(f"/v1/orders/{order_id}/events").json()["items"]) == 3


# ---- asking ---------------------------------------------------------------------------------------------------------


def test_an_order_is_cancelled_once(client: httpx.Client, edge: Running) -> None:
    order_id = placed(client)
    key = {"Idempotency-Key": "cancel it"}
    first = client.post(f"/v1/orders/{order_id}/cancel", headers=key)
    assert (first.status_code, first.headers["location"]) == (202, f"/v1/orders/{order_id}")
    done = client.post(f"/v1/orders/{order_id}/cancel", headers={**key, **WAIT})
    assert (done.status_code, done.json()["status"], done.json()["reason"]) == (200, "cancelled", "cancelled")
    asked = [event for event in edge.carts.asked if event.type == "holdfast.orders.cancel"]
    assert len({event.requestid for event in asked if event.subject == order_id}) == 1
    other = placed(client)
    problem(client.post(f"/v1/orders/{other}/cancel", headers=key), 422, "idempotency-key-reused")


@pytest.mark.parametrize("wait", [{}, WAIT])
def test_a_shipped_order_is_not_cancelled(client: httpx.Client, edge: Running, wait: dict[str, str]) -> None:
    order_id = placed(client)
    at_version(client, order_id, move(edge, order_id, "shipped", "shipped", shipment_id="s", carrier="c", tracking="t"))
    problem(client.post(f"/v1/orders/{order_id}/cancel", headers=wait), 409, "order-not-cancellable")


def test_the_order_service_has_the_last_word(client: httpx.Client, edge: Running) -> None:
    order_id = placed(client)
    edge.carts.desk.orders[order_id]["status"] = "shipped"  # and the read model does not know
    problem(client.post(f"/v1/orders/{order_id}/cancel", headers=WAIT), 409, "order-not-cancellable")


def test_paying_again(client: httpx.Client, edge: Running) -> None:
    order_id, body = placed(client), {"token": "tok_approve"}
    address = f"/v1/orders/{order_id}/payments"
    assert client.post(address, json=body).status_code == 202
    assert client.post(address, json=body, headers=WAIT).json()["status"] == "committed"
    problem(client.post(address, json={"token": "tok_nonsense"}), 422, "unknown-payment-token")
    problem(client.post(address, json={}), 422, "invalid")
    edge.carts.desk.orders[order_id]["captured"] = True
    problem(client.post(address, json=body, headers=WAIT), 409, "already-paid")
    at_version(client, order_id, move(edge, order_id, "captured", "paid", payment_id="p", amount=PRICE))
    problem(client.post(address, json=body), 409, "already-paid")


def test_support_gives_money_back(client: httpx.Client, support: httpx.Client, edge: Running) -> None:
    order_id = placed(client)
    address = f"/v1/orders/{order_id}/refunds"
    problem(client.post(address, json={}), 403, "forbidden")
    problem(support.post(address, headers=WAIT), 409, "not-paid")
    edge.carts.desk.orders[order_id]["captured"] = True
    too_much = {"amount": {**PRICE, "amount": PRICE["amount"] + 1}}
    problem(support.post(address, json=too_much), 409, "refund-too-large")
    problem(support.post(address, json={"amount": {"amount": 1, "currency": "EUR"}}), 422, "invalid")
    for amount in (0, -1, 2**64, 1.5, "1"):
        problem(support.post(address, json={"amount": {**PRICE, "amount": amount}}), 422, "invalid")
    assert support.post(address, json={"amount": PRICE}, headers=WAIT).json()["order_id"] == order_id
    problem(support.post(address, headers=WAIT), 409, "already-refunded")
    refund = next(event for event in edge.carts.asked if event.type == "holdfast.orders.refund")
    owner = client.get(f"/v1/orders/{order_id}").json()["user_id"]
    assert (refund.subject, refund.data["user_id"]) == (order_id, owner)


# ---- who may --------------------------------------------------------------------------------------------------------

ALL = ("owner", "other", "service", "support", "admin")
NOT_THERE = {"other": 404, "service": 404}
ONLY_SERVICES = dict.fromkeys(ALL, 403)
ROUTES: list[tuple[str, str, Any, dict[str, int]]] = [
    ("GET", "/v1/orders", None, dict.fromkeys(ALL, 200)),
    ("POST", "/v1/orders", wanted(), dict.fromkeys(ALL, 202)),
    ("GET", "/v1/orders/{order_id}", None, dict.fromkeys(ALL, 200) | NOT_THERE),
    ("GET", "/v1/orders/{order_id}/events", None, dict.fromkeys(ALL, 200) | NOT_THERE),
    ("GET", "/v1/orders/{order_id}/payments", None, dict.fromkeys(ALL, 200) | NOT_THERE),
    ("GET", "/v1/orders/{order_id}/shipment", None, dict.fromkeys(ALL, 404)),
    ("POST", "/v1/orders/{order_id}/payments", {"token": "tok_late"}, dict.fromkeys(ALL, 202) | NOT_THERE),
    ("POST", "/v1/orders/{order_id}/cancel", None, dict.fromkeys(ALL, 202) | NOT_THERE),
    ("POST", "/v1/orders/{order_id}/refunds", {}, dict.fromkeys(ALL, 403) | {"support": 202, "admin": 202}),
    ("POST", "/v1/reservations", {"items": ONE}, ONLY_SERVICES | {"service": 202}),
    ("GET", "/v1/reservations/{reservation_id}", None, ONLY_SERVICES | {"service": 404}),
    ("DELETE", "/v1/reservations/{reservation_id}", None, ONLY_SERVICES | {"service": 202}),
    ("POST", "/v1/reservations/{reservation_id}/commit", None, ONLY_SERVICES | {"service": 202}),
]
"""Method, path, body, and what each kind of visitor is answered who asks about an order of `owner`."""


@pytest.fixture(scope="module")
def people(edge: Running) -> dict[str, str]:
    """A token of each kind."""
    return {
        "owner": token(edge.settings, "guest"),
        "other": token(edge.settings, "shopper"),
        **{role: token(edge.settings, role) for role in ("support", "admin", "service")},
    }


def test_no_route_of_orders_or_reservations_lacks_a_row(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    there = {
        (method.upper(), path)
        for path, operations in paths.items()
        if path.startswith(("/v1/orders", "/v1/reservations"))
        for method in operations
    }
    assert {(method, path) for method, path, _, _ in ROUTES} == there


@pytest.mark.parametrize(("method", "path", "body", "answers"), ROUTES, ids=[f"{row[0]} {row[1]}" for row in ROUTES])
def test_roles_and_their_permissions(
    edge: Running, people: dict[str, str], method: str, path: str, body: Any, answers: dict[str, int]
) -> None:
    with edge.client(people["owner"]) as owner:
        order_id = placed(owner)
    address = path.format(order_id=order_id, reservation_id="none")
    found: dict[str, int] = {}
    for who in ALL:
        with edge.client(people[who]) as asking:
            found[who] = asking.request(method, address, json=body).status_code
    with edge.client() as nobody:
        problem(nobody.request(method, address, json=body), 401, "unauthenticated")
    assert found == answers


def test_anothers_order_is_as_one_that_is_not_there(client: httpx.Client, edge: Running) -> None:
    order_id = placed(client)
    with edge.client(edge.guest()["token"]) as other:
        theirs, none = other.get(f"/v1/orders/{order_id}").json(), other.get("/v1/orders/none").json()
        assert {**theirs, "instance": ""} == {**none, "instance": ""}
        assert other.get("/v1/orders").json()["items"] == []


# ---- over the socket ------------------------------------------------------------------------------------------------


class Line:
    """A shopper's socket; each frame is held against its model."""

    def __init__(self, line: ClientConnection) -> None:
        self.line = line

    def say(self, **frame: Any) -> None:
        self.line.send(json.dumps(frame))

    def hear(self, kind: str) -> dict[str, Any]:
        """The next frame of a kind; those before it are passed over."""
        while True:
            text = self.line.recv(timeout=20)
            SERVER.validate_json(text, strict=True)
            found: dict[str, Any] = json.loads(text)
            if found["type"] == kind:
                return found


@pytest.fixture
def line(edge: Running) -> Iterator[Line]:
    token = edge.guest()["token"]
    url = f"{edge.url.replace('http', 'ws')}/v1/stream"
    with connect(url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None) as socket:
        line = Line(socket)
        line.hear("cart")
        yield line


def test_a_checkout_is_pending_then_an_order_that_moves(line: Line, edge: Running) -> None:
    line.say(id="a1", type="add", product="P", quantity=2)
    held = line.hear("held")
    line.say(id="c1", type="checkout", **wanted(version=held["version"]))
    assert line.hear("pending")["id"] == "c1"
    order = line.hear("order")
    assert (order["id"], order["status"], order["order_version"]) == ("c1", "committed", 2)
    shown = line.hear("cart")
    assert (shown["lines"], shown["version"]) == ([], held["version"] + 1)
    desk = edge.carts.desk
    user = desk.orders[order["order_id"]]["user_id"]
    moved = {"user_id": user, "id": "c1", "order_id": order["order_id"], "order_version": 9}
    told = {**moved, "status": "cancelled", "reason": "declined"}
    edge.carts.publish(cart.RESPONSES, "/orders", "holdfast.cart.order", user, told)
    assert line.hear("order") == {"type": "order", **{name: told[name] for name in told if name != "user_id"}}


def test_a_checkout_is_resumed_and_repeated(line: Line) -> None:
    line.say(id="c1", type="checkout", **wanted())
    first = line.hear("order")
    line.say(id="r1", type="resume", version=0, unresolved=["c1", "c2"])
    assert line.hear("order") == {**first, "replayed": True}
    assert line.hear("resumed")["unknown"] == ["c2"]
    line.say(id="c1", type="checkout", **wanted())
    assert line.hear("order") == {**first, "replayed": True}


def test_a_checkout_that_is_refused(line: Line) -> None:
    line.say(id="c1", type="checkout", **wanted(version=3))
    assert line.hear("pending")["id"] == "c1"
    assert line.hear("refused") == {"type": "refused", "id": "c1", "reason": "cart_changed", "available": None}


def test_an_unknown_payment_token_on_a_frame(line: Line) -> None:
    line.say(id="c1", type="checkout", **wanted(payment={"token": "tok_nonsense"}))
    error = line.hear("error")
    assert (error["id"], error["code"], error["field"]) == ("c1", "bad_field", "payment.token")


# ---- when the provider is away --------------------------------------------------------------------------------------


def test_without_a_provider_no_order_is_begun_and_those_that_are_go_on(
    edge: Running, client: httpx.Client, line: Line
) -> None:
    key = {"Idempotency-Key": "before"}
    before = client.post("/v1/orders", json=wanted(), headers={**key, **WAIT}).json()
    line.say(id="before", type="checkout", **wanted())
    line.hear("order")

    def provider(version: int, *, available: bool) -> None:
        since = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
        told = {"provider": "simulated", "available": available, "since": since, "version": version}
        edge.carts.publish(payments.STATE, "/payments", "holdfast.payments.provider", "simulated", told)

    provider(1, available=False)
    until(lambda: client.post("/v1/orders", json=wanted()).status_code == 503)
    response = client.post("/v1/orders", json=wanted(), headers=WAIT)
    problem(response, 503, "payment-unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert client.post("/v1/orders", json=wanted(), headers={**key, **WAIT}).json() == before
    line.say(id="after", type="checkout", **wanted())
    assert line.hear("pending")["id"] == "after"
    assert line.hear("refused")["reason"] == "payment_unavailable"
    line.say(id="before", type="checkout", **wanted())
    assert line.hear("order")["replayed"] is True
    provider(2, available=True)
    provider(1, available=False)  # old news
    until(lambda: client.post("/v1/orders", json=wanted()).status_code == 202)


# ---- the read model -------------------------------------------------------------------------------------------------


async def test_made_again_from_its_topics_the_read_model_is_the_same(edge: Running, client: httpx.Client) -> None:
    made = [placed(client), cancelled(client), cancelled(client)]
    settings = EdgeSettings(**edge.settings.model_dump())
    schema = settings.schema_name("edge")
    names = ("placed_order", "order_event", "order_step")
    with psycopg.connect(settings.postgres_url, autocommit=True) as database:

        def tables() -> list[Any]:
            # An order that was asked for, and has no event yet, is known to this edge alone.
            where = {"placed_order": "WHERE version > 0"}
            return [
                database.execute(f'SELECT * FROM "{schema}".{name} {where.get(name, "")} ORDER BY 1, 2, 3'.encode())
                .fetchall()
                for name in names
            ]  # fmt: skip

        told = {order: kept["version"] for order, kept in edge.carts.desk.orders.items()}
        until(lambda: {row[0]: row[2] for row in tables()[0]} == told)  # all events of any test are there
        before = None
        while before != (before := tables()):  # and the events of payments and deliveries, too
            await asyncio.sleep(1)
        assert len(before[0]) >= len(made)
        database.execute(f'TRUNCATE {", ".join(f""""{schema}".{name}""" for name in (*names, "position"))}'.encode())
        store = Store(settings)
        await store.open()
        again = asyncio.create_task(OrderProjector(settings, store, OrderStore(store)).run())
        try:
            async with asyncio.timeout(20):
                while tables() != before:
                    await asyncio.sleep(0.05)
        finally:
            again.cancel()
            await asyncio.gather(again, return_exceptions=True)
            await store.close()
