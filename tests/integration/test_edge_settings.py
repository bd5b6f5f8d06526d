"""The edge as it is set up otherwise: in production, with a new key, without Redis, beside another; and old routes."""

import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from contracts.inventory import PRODUCTS, STOCK
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from infrastructure.security.tokens import issue
from tests.testkit.edge import BRIEF, Running, running_edge
from tests.testkit.servers import Servers


def stream(url: str, token: str | None = None, **more: Any) -> ClientConnection:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    line: ClientConnection = connect(
        f"{url.replace('http', 'ws')}/v1/stream", additional_headers=headers, proxy=None, **more
    )
    return line


def receive(line: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line.recv(timeout=20))
    return found


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def token(secret: str, *roles: str) -> str:
    return issue(secret, user_id="root", roles=roles, lifetime=timedelta(hours=1), now=datetime.now(UTC))[0]


# ---- one edge that is set up otherwise in every way that goes together ----------------------------------------------

OLD, NEW = "the key that was before, long enough", "the key that is now, long enough too"


@pytest.fixture(scope="module")
def production(servers: Servers) -> Iterator[tuple[Running, str]]:
    """An edge in production, whose key is being rotated and whose Redis is away; and where its health is served."""
    port = free_port()
    more = {
        "HOLDFAST_PROFILE": "production",
        "HOLDFAST_SECRET": NEW,
        "HOLDFAST_SECRET_PREVIOUS": OLD,
        "HOLDFAST_WEBHOOK_SECRET": "the key of the payment provider's webhooks",
        "HOLDFAST_HEALTH_PORT": str(port),
        "HOLDFAST_LIMIT_ADDRESS_SOCKETS": "3",
        "HOLDFAST_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
    }
    with running_edge(servers, f"eq{secrets.token_hex(3)}.", **more) as running:
        yield running, f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    "path", ["/metrics", "/docs", "/docs/start.js", "/openapi.json", "/asyncapi.json", "/test", "/migration"]
)
def test_production_shows_visitors_no_metrics_and_no_descriptions(production: tuple[Running, str], path: str) -> None:
    edge, _ = production
    with edge.client() as client:
        found = client.get(path)
    assert (found.status_code, found.json()["type"]) == (404, "/problems/not-found")


def test_production_has_them_on_its_health_port(production: tuple[Running, str]) -> None:
    _, health = production
    with httpx.Client(base_url=health, trust_env=False) as client:
        assert "holdfast_edge_sockets" in client.get("/metrics").text
        assert client.get("/readyz").status_code == 200


def test_in_production_a_cookie_goes_over_tls_alone(production: tuple[Running, str]) -> None:
    edge, _ = production
    with edge.client() as client:
        cookie = client.post("/v1/guests").headers["set-cookie"]
    assert "Secure" in cookie.split("; ")


def test_a_key_that_is_being_rotated_out_still_counts(production: tuple[Running, str]) -> None:
    edge, _ = production
    for secret in (OLD, NEW):
        with stream(edge.url, token(secret)) as line:
            assert receive(line)["type"] == "welcome"
    for secret in (DEVELOPMENT_SECRET, "x" * 40):
        with pytest.raises(InvalidStatus) as caught:
            stream(edge.url, token(secret))
        assert caught.value.response.status_code == 401
    with edge.client(token(OLD)) as client:
        fresh = client.post("/v1/guests").json()
    assert fresh["user_id"] == "root", "who comes with the old key gets a token of the new one"


def test_without_redis_there_are_no_tickets_and_all_else_goes_on(production: tuple[Running, str]) -> None:
    edge, _ = production
    with edge.client(token(NEW)) as client:
        refused = client.post("/v1/ws-tickets")
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(InvalidStatus) as caught:
            stream(edge.url, subprotocols=["holdfast.v1", f"ticket.{'x' * 43}"])
        assert caught.value.response.status_code == 503
        done = client.post("/v1/cart/items", json={"product": "P", "quantity": 1}, headers={"Prefer": "wait=20"})
        assert done.json()["type"] == "held"


def test_more_sockets_than_an_address_may_have_are_turned_away(production: tuple[Running, str]) -> None:
    edge, _ = production
    with (
        stream(edge.url, token(NEW)) as one,
        stream(edge.url, token(NEW)) as two,
        stream(edge.url, token(NEW)) as three,
    ):
        for line in (one, two, three):
            assert receive(line)["type"] == "welcome"
        with stream(edge.url, token(NEW)) as fourth, pytest.raises(ConnectionClosed) as caught:
            fourth.recv(timeout=20)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1013, "retry_after=5")


def test_in_production_loopback_has_its_limit_too(production: tuple[Running, str]) -> None:
    edge, _ = production
    with edge.client() as client:
        refused = next(answer for _ in range(2000) if (answer := client.get("/v1/products")).status_code != 200)
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
        # A client with a user counts toward the user's limit, and is still admitted.
        client.headers["Authorization"] = f"Bearer {token(NEW)}"
        assert client.get("/v1/products").status_code == 200


@pytest.mark.parametrize("name", ["HOLDFAST_SECRET", "HOLDFAST_SECRET_PREVIOUS"])
def test_production_takes_no_development_secret_anywhere(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rest_api", "run"],
        env={"HOLDFAST_PROFILE": "production", "HOLDFAST_SECRET": NEW, name: DEVELOPMENT_SECRET},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "HOLDFAST_SECRET" in done.stderr


# ---- two edges on one schema ----------------------------------------------------------------------------------------


@contextmanager
def second_edge(edge: Running) -> Iterator[str]:
    """Another edge of the same shop: its address."""
    replica = edge.shop.add("rest_api", "other")
    replica.start()
    try:
        url = replica.wait_for_url()
        replica.wait_ready()
        yield url
    finally:
        status = replica.stop()
    assert status == 0


def test_two_edges_share_claims_carts_tickets_and_the_catalogue(edge: Running, servers: Servers) -> None:
    guest = edge.guest()["token"]
    code = f"T{secrets.token_hex(4)}"
    product = {"code": code, "name": "Told to both", "price": {"amount": 1, "currency": "GBP"}, "version": 1}
    with second_edge(edge) as url, edge.client(guest) as one:
        two = httpx.Client(base_url=url, headers=one.headers, trust_env=False, timeout=40)
        key = {"Idempotency-Key": "one key", "Prefer": "wait=20"}
        first, second = (
            each.post("/v1/cart/items", json={"product": "P", "quantity": 2}, headers=key) for each in (one, two)
        )
        assert first.status_code == second.status_code == 200
        assert first.content == second.content, "whichever edge is asked"
        other = two.post("/v1/cart/items", json={"product": "P", "quantity": 3}, headers=key)
        assert other.json()["type"] == "/problems/idempotency-key-reused"
        assert two.get("/v1/cart").json() == one.get("/v1/cart").json()
        assert two.get("/v1/cart").json()["lines"][0]["quantity"] == 2

        ticket = one.post("/v1/ws-tickets").json()["ticket"]
        with stream(url, subprotocols=["holdfast.v1", f"ticket.{ticket}"]) as there, stream(edge.url, guest) as here:
            for line in (there, here):
                assert [receive(line)["type"] for _ in range(2)] == ["welcome", "cart"]
            here.send(json.dumps({"id": "a", "type": "add", "product": "P", "quantity": 1}))
            assert receive(there)["id"] == "a", "an outcome reaches the shopper's sockets, wherever they are"

        edge.carts.publish(PRODUCTS, "/inventory", "holdfast.catalogue.product", code, product)
        stock = {"product": code, "available": 9, "received": 9, "held": 0, "sold": 0, "version": 1}
        for version, available in ((1, 9), (3, 7), (2, 8)):
            told = {**stock, "available": available, "held": 9 - available, "version": version}
            edge.carts.publish(STOCK, "/inventory", "holdfast.inventory.stock", code, told)
        for each in (one, two):
            while (found := each.get(f"/v1/products/{code}")).status_code == 404 or found.json()["available"] != 7:
                pass
        two.close()


# ---- time -----------------------------------------------------------------------------------------------------------


def test_every_socket_gets_one_expiry_warning(edge: Running) -> None:
    guest = edge.guest()["token"]
    with stream(edge.url, guest) as one, stream(edge.url, guest) as two:
        for line in (one, two):
            assert [receive(line)["type"] for _ in range(2)] == ["welcome", "cart"]
        one.send(json.dumps({"id": "b", "type": "add", "product": BRIEF, "quantity": 1}))
        assert [receive(one)["type"] for _ in range(2)] == ["pending", "held"]
        assert receive(two)["type"] == "held"
        told = [receive(line) for line in (one, two)]
        assert [(frame["type"], frame["version"]) for frame in told] == [("expiring", 1)] * 2
        one.send(json.dumps({"id": "c", "type": "cart"}))
        shown = receive(one)
        assert (shown["type"], shown["id"]) == ("cart", "c"), "and once"
        assert shown["expires_at"] == told[0]["expires_at"]


# ---- old routes -----------------------------------------------------------------------------------------------------


def test_an_administrator_migrates_twice_and_loses_nothing(edge: Running) -> None:
    root = token(DEVELOPMENT_SECRET, "admin")
    schema = edge.settings.schema_name("inventory")
    try:
        with edge.client(root) as client:
            for _ in range(2):
                done = client.post("/migration")
                assert (done.status_code, done.json()) == (200, {"status": "ok"}), done.text
        with psycopg.connect(edge.settings.postgres_url) as database:
            found = database.execute(f'SELECT count(*), sum(received) FROM "{schema}".inventory'.encode()).fetchone()
        assert found is not None
        assert found[0] > 100
        assert found[1] > 0
    finally:
        with psycopg.connect(edge.settings.postgres_url, autocommit=True) as database:
            database.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE'.encode())
