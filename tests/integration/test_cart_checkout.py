"""A checkout through the real edge, carts and inventory: one cart makes one order, under repetitions and crashes."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest

from cart_service.audit import audit
from contracts import orders
from contracts.envelope import Envelope
from contracts.ids import derive_id
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process.settings import Settings
from tests.testkit.processes import Processes, clean_up, processes, until
from tests.testkit.rest_client import WAIT, problem, token, wanted
from tests.testkit.servers import Servers


@pytest.fixture(scope="module")
def shop(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """An edge, a cart worker and an inventory worker, kept."""
    settings = servers.settings()
    with processes(servers, settings, tmp_path_factory.mktemp("shop")) as here:
        here.seed(MUG=1000, LAST=1)
        for module in ("rest_api", "cart_service", "inventory_service"):
            here.start(module, module.partition("_")[0])
        for replica in here.replicas:
            replica.wait_ready()
        yield here
    asyncio.run(clean_up(settings))


def client_of(shop: Processes, *roles: str) -> httpx.Client:
    edge = next(replica for replica in shop.replicas if replica.module == "rest_api")
    headers = {"Authorization": f"Bearer {token(shop.settings, *roles)}"}
    return httpx.Client(base_url=f"http://127.0.0.1:{edge.port}", headers=headers, timeout=60, trust_env=False)


@pytest.fixture
def client(shop: Processes) -> Iterator[httpx.Client]:
    with client_of(shop) as found:
        yield found


def fill(client: httpx.Client, product: str = "MUG", quantity: int = 2) -> int:
    body = {"product": product, "quantity": quantity}
    return int(client.post("/v1/cart/items", json=body, headers={"Prefer": "wait=30"}).json()["version"])


async def told_to_orders(settings: Settings, order_id: str) -> list[Envelope]:
    """Return the messages of one order on `orders.requests`."""
    events = [
        Envelope.decode(record.key, record.value)
        async for record in read_topic(settings, [settings.topic(orders.REQUESTS)])
    ]
    return [event for event in events if event.subject == order_id]


def test_a_cart_becomes_an_order_and_is_empty(client: httpx.Client, shop: Processes) -> None:
    version = fill(client)
    response = client.post("/v1/orders", json=wanted(version=version), headers=WAIT)
    assert (response.status_code, response.json()["status"]) == (200, "committed"), response.text
    shown = client.get("/v1/cart").json()
    assert (shown["version"], shown["lines"], shown["pending"]) == (version + 1, [], [])
    order_id = response.json()["order_id"]
    (place,) = asyncio.run(told_to_orders(shop.settings, order_id))
    assert (place.type, place.data["version"]) == (orders.Place.TYPE, version)
    assert order_id == derive_id(place.data["user_id"], place.requestid or "", "order")


def test_two_tabs_that_check_out_at_the_same_instant_make_one_order(client: httpx.Client) -> None:
    version = fill(client)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(client.post, "/v1/orders", json=wanted(version=version), headers=WAIT) for _ in range(2)]
    done, refused = sorted((each.result() for each in both), key=lambda response: response.status_code)
    assert done.json()["status"] == "committed"
    problem(refused, 409, "cart-changed")


def test_faults_of_a_cart_are_found(client: httpx.Client) -> None:
    problem(client.post("/v1/orders", json=wanted(version=0), headers=WAIT), 409, "cart-empty")
    version = fill(client)
    problem(client.post("/v1/orders", json=wanted(version=version + 1), headers=WAIT), 409, "cart-changed")
    wrong = {"total": {"amount": 1, "currency": "GBP"}}
    problem(client.post("/v1/orders", json=wanted(version=version, expect=wrong), headers=WAIT), 409, "total-changed")
    assert client.get("/v1/cart").json()["version"] == version


def test_an_order_of_items_leaves_the_cart_alone(client: httpx.Client) -> None:
    version = fill(client)
    item = [{"product": "LAST", "quantity": 1}]
    first, second = (client.post("/v1/orders", json=wanted(items=item), headers=WAIT) for _ in range(2))
    assert first.json()["status"] == "committed"
    problem(second, 409, "out-of-stock")
    none = [{"product": "NONE", "quantity": 1}]
    problem(client.post("/v1/orders", json=wanted(items=none), headers=WAIT), 404, "unknown-product")
    assert client.get("/v1/cart").json()["version"] == version


def test_a_reservation_is_held_then_let_go_or_sold(shop: Processes) -> None:
    with client_of(shop, "service") as service:
        names = []
        for _ in range(2):
            body = {"items": [{"product": "MUG", "quantity": 3}]}
            response = service.post("/v1/reservations", json=body, headers=WAIT)
            assert (response.status_code, response.json()["state"]) == (200, "PENDING"), response.text
            names.append(response.json()["reservation_id"])
        gone = service.delete(f"/v1/reservations/{names[0]}", headers=WAIT)
        sold = service.post(f"/v1/reservations/{names[1]}/commit", headers=WAIT)
        assert (gone.json()["state"], sold.json()["state"]) == ("CANCELLED", "COMMITTED")
        problem(service.post(f"/v1/reservations/{names[0]}/commit", headers=WAIT), 409, "reservation-settled")
        problem(service.delete(f"/v1/reservations/{names[1]}", headers=WAIT), 409, "reservation-settled")
        assert service.get(f"/v1/reservations/{names[1]}").json()["lines"][0]["quantity"] == 3


@pytest.mark.parametrize("point", ["cart.placed", "cart.taken"])
def test_a_cart_worker_that_crashes_in_a_checkout(shop: Processes, client: httpx.Client, point: str) -> None:
    worker = next(replica for replica in shop.replicas if replica.module == "cart_service")
    version = fill(client)
    deaths = len(worker.exits)
    worker.arm(f"{point}:1")
    response = client.post("/v1/orders", json=wanted(version=version), headers={"Prefer": "wait=30"})
    assert (response.status_code, response.json()["status"]) == (200, "committed"), response.text
    until(lambda: len(worker.exits) > deaths)
    worker.wait_ready()
    until(lambda: client.get("/v1/cart").status_code == 200)
    assert client.get("/v1/cart").json()["version"] == version + 1


async def test_at_the_end_everything_adds_up(shop: Processes) -> None:
    report: dict[str, Any] = {}
    async with asyncio.timeout(30):
        while not report.get("ok"):
            report = await audit(shop.settings, timedelta(seconds=0))
            await asyncio.sleep(0.2)
    assert report["figures"]["requests_answered"] >= 10, json.dumps(report)
