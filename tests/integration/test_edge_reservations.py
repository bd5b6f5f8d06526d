"""Other services at the edge: their reservations, and the payment provider's webhooks."""

import json
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from contracts import inventory, payments
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from infrastructure.security.webhooks import HEADER, sign
from rest_api.http.routers.reservations import reservation_order_id
from tests.testkit.edge import Running
from tests.testkit.fake_orders import PRICE, SCARCE
from tests.testkit.rest_client import ONE, WAIT, problem, token, until


@pytest.fixture
def service(edge: Running) -> Iterator[httpx.Client]:
    with edge.client(token(edge.settings, "service", user="warehouse")) as found:
        yield found


def reserved(service: httpx.Client, **more: Any) -> str:
    response = service.post("/v1/reservations", json={"items": ONE, **more}, headers=WAIT)
    assert response.status_code == 200, response.text
    return str(response.json()["reservation_id"])


# ---- reservations ---------------------------------------------------------------------------------------------------


def test_a_reservation_is_held_then_sold(service: httpx.Client, edge: Running) -> None:
    accepted = service.post("/v1/reservations", json={"items": ONE})
    assert accepted.status_code == 202
    address = accepted.headers["location"]
    assert address == f"/v1/reservations/{accepted.json()['reservation_id']}"
    until(lambda: service.get(address).status_code == 200)
    found = service.get(address).json()
    assert found["state"] == "PENDING"
    assert found["lines"] == [{**ONE[0], "price": PRICE}]
    assert service.post(f"{address}/commit").status_code == 202
    until(lambda: service.get(address).json()["state"] == "COMMITTED")
    done = service.post(f"{address}/commit", headers=WAIT)
    assert (done.status_code, done.json()["state"]) == (200, "COMMITTED")
    problem(service.delete(address, headers=WAIT), 409, "reservation-settled")
    asked = [event for event in edge.carts.asked if event.type == inventory.Commit.TYPE]
    assert {(event.source, event.subject, event.data["purpose"]) for event in asked} == {
        ("/edge", "warehouse", "reservation")
    }


def test_a_released_reservation_is_cancelled(service: httpx.Client) -> None:
    name = reserved(service)
    assert service.delete(f"/v1/reservations/{name}", headers=WAIT).json()["state"] == "CANCELLED"
    assert service.delete(f"/v1/reservations/{name}", headers=WAIT).status_code == 200
    problem(service.post(f"/v1/reservations/{name}/commit", headers=WAIT), 409, "reservation-settled")


def test_unavailable_stock_is_not_reserved(service: httpx.Client) -> None:
    items = [*ONE, {"product": SCARCE, "quantity": 1}]
    found = problem(service.post("/v1/reservations", json={"items": items}, headers=WAIT), 409, "out-of-stock")
    assert found["detail"] == f"{SCARCE}: 0 available"


def test_a_service_has_names_of_its_own(service: httpx.Client, edge: Running) -> None:
    name = f"job-{secrets.token_hex(3)}"
    assert reserved(service, reservation_id=name) == name
    assert reserved(service, reservation_id=name) == name, "the same once more"
    other_items = {"items": [{"product": "Q", "quantity": 1}], "reservation_id": name}
    found = problem(service.post("/v1/reservations", json=other_items), 422, "idempotency-key-reused")
    assert [error["pointer"] for error in found["errors"]] == ["/reservation_id"]
    with edge.client(token(edge.settings, "service", user="till")) as other:
        problem(other.get(f"/v1/reservations/{name}"), 404, "not-found")
        problem(other.post(f"/v1/reservations/{name}/commit", headers=WAIT), 404, "not-found")
        assert reserved(other, reservation_id=name) == name
    assert reservation_order_id("warehouse", name) != reservation_order_id("till", name)
    assert service.get(f"/v1/reservations/{name}").json()["state"] == "PENDING"


def test_an_unknown_reservation_is_not_found(service: httpx.Client) -> None:
    problem(service.get("/v1/reservations/none"), 404, "not-found")
    problem(service.post("/v1/reservations/none/commit", headers=WAIT), 404, "not-found")


def test_a_release_that_comes_first_closes_the_reservation(service: httpx.Client) -> None:
    name = f"closed-{secrets.token_hex(3)}"
    closed = {"reservation_id": name, "state": "CANCELLED", "lines": []}
    released = service.delete(f"/v1/reservations/{name}", headers=WAIT)
    assert (released.status_code, released.json()) == (200, closed)
    late = service.post("/v1/reservations", json={"items": ONE, "reservation_id": name}, headers=WAIT)
    problem(late, 503, "unavailable")
    assert service.get(f"/v1/reservations/{name}").json() == closed


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/items"),
        ({"items": []}, "/items"),
        ({"items": ONE + ONE}, "/items"),
        ({"items": [{"product": "P", "quantity": 0}]}, "/items/0/quantity"),
        ({"items": ONE, "reservation_id": ""}, "/reservation_id"),
        ({"items": ONE, "reservation_id": "x" * 65}, "/reservation_id"),
        ({"items": ONE, "state": "COMMITTED"}, "/state"),
    ],
)
def test_a_reservation_that_is_not_allowed(service: httpx.Client, body: dict[str, Any], pointer: str) -> None:
    found = problem(service.post("/v1/reservations", json=body), 422, "invalid")
    assert pointer in [error["pointer"] for error in found["errors"]]


def test_inventory_that_is_away_is_unavailable_in_time(service: httpx.Client, edge: Running) -> None:
    edge.carts.desk.silent = True
    try:
        begun = time.monotonic()
        problem(service.get("/v1/reservations/none"), 503, "unavailable")
        assert time.monotonic() - begun < 5
    finally:
        edge.carts.desk.silent = False


# ---- webhooks -------------------------------------------------------------------------------------------------------


def notification(order_id: str = "o1") -> bytes:
    data = {"key": f"pay-{order_id}", "status": "captured", "metadata": {"order_id": order_id, "user_id": "ann"}}
    return json.dumps({"type": "charge.captured", "created": "2026-11-21T03:24:41.118Z", "data": data}).encode()


def send(edge: Running, body: bytes, header: str | None = None, *, late: timedelta = timedelta()) -> httpx.Response:
    secret = DEVELOPMENT_SECRET
    signature = sign(secret, body, datetime.now(UTC) - late) if header is None else header
    with edge.client() as provider:
        headers = [(b"Content-Type", b"application/json"), (HEADER.encode(), signature.encode("latin-1"))]
        return provider.post("/v1/webhooks/payments", content=body, headers=headers)


def test_a_webhook_has_the_provider_asked_however_often_it_comes(edge: Running) -> None:
    order_id = f"o{secrets.token_hex(3)}"
    body = notification(order_id)
    assert [send(edge, body).status_code for _ in range(2)] == [202, 202]

    def told() -> list[Any]:
        return [event for event in edge.carts.asked if event.subject == order_id]

    until(lambda: len(told()) == 2)
    assert {event.type for event in told()} == {payments.Notified.TYPE}
    assert len({event.id for event in told()}) == 1, "the same event"
    assert told()[0].data == {"order_id": order_id, "user_id": "ann", "payment_id": f"pay-{order_id}"}


@pytest.mark.parametrize(
    "header", ["", "nonsense", "t=1,v1=00", "v1=00", f"t={'9' * 13},v1=00", "t=1", "t=\xb2,v1=\xe9"]
)
def test_an_unsigned_webhook(edge: Running, header: str) -> None:
    found = send(edge, notification(), header)
    assert problem(found, 401, "bad-signature")["instance"]


def test_a_webhook_that_was_changed_on_its_way(edge: Running) -> None:
    signed = sign(DEVELOPMENT_SECRET, notification(), datetime.now(UTC))
    problem(send(edge, notification("o2"), signed), 401, "bad-signature")


@pytest.mark.parametrize("late", [timedelta(minutes=6), -timedelta(minutes=6)])
def test_a_webhook_of_another_time(edge: Running, late: timedelta) -> None:
    problem(send(edge, notification(), late=late), 401, "stale-webhook")


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b"{", 400, "bad-request"),
        (b"[]", 422, "invalid"),
        (b'{"type":"charge.captured"}', 422, "invalid"),
        (b'{"type":"charge.captured","data":{"key":"k","metadata":{"order_id":null,"user_id":null}}}', 422, "invalid"),
    ],
)
def test_a_webhook_that_says_nothing(edge: Running, body: bytes, status: int, slug: str) -> None:
    problem(send(edge, body), status, slug)
