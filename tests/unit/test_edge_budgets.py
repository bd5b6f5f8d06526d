"""Budgets by user and by network: each route and frame has one, and what is expensive costs more."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute

from infrastructure.process import clock
from infrastructure.security import tokens as tokens_module
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from infrastructure.security.tokens import issue
from rest_api.__main__ import build_state
from rest_api.app import create_app
from rest_api.http import idempotency
from rest_api.protocol.client_frames import CLIENT_FRAMES
from rest_api.protocol.effects import Close, Publish, StartWatching
from rest_api.protocol.problems import Problem
from rest_api.security import authentication
from rest_api.security.address_limiter import AddressLimiter
from rest_api.security.admission import Admission
from rest_api.security.costs import FRAMES, ROUTES, WHOLE_STOCK, Budget, Cost, frame_cost, route_cost
from rest_api.security.token_bucket import Allowance
from rest_api.settings import EdgeSettings
from rest_api.websocket import connections as connections_module
from rest_api.websocket.connections import ConnectionManager
from rest_api.websocket.in_flight import InFlight
from rest_api.websocket.send_queue import SendQueue
from rest_api.websocket.session import Session
from rest_api.websocket.stock_broadcaster import REPEAT_SECONDS, StockBroadcaster
from tests.testkit.edge_session import NOW, error, frames_of, make_app_state, make_session, make_user, send

FAR = "203.0.113.9"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    instant = clock.now()
    monkeypatch.setattr(clock, "now", lambda: instant)  # however busy the machine is


@asynccontextmanager
async def visitor(address: str = FAR, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(build_state(EdgeSettings(**settings), 8080)[0])
    transport = httpx.ASGITransport(app, client=(address, 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
        yield client


async def guest(client: httpx.AsyncClient) -> dict[str, str]:
    client.cookies.clear()
    token = (await client.post("/v1/guests")).json()["token"]
    client.cookies.clear()
    return {"Authorization": f"Bearer {token}"}


# ---- the table ------------------------------------------------------------------------------------------------------


def routes() -> set[str]:
    found: set[str] = set()
    for route in create_app(make_app_state()).routes:
        included: Any = getattr(route, "original_router", None)
        each: Any
        for each in included.routes if included else [route]:
            if not isinstance(each, WebSocketRoute):
                found |= {f"{method} {each.path_format}" for method in each.methods}
    return found


def test_every_route_and_every_frame_has_a_budget() -> None:
    assert set(ROUTES) == routes()
    assert set(FRAMES) == set(CLIENT_FRAMES)


@pytest.mark.parametrize(
    ("request_", "limit", "cost"),
    [
        ("GET /v1/cart", "", 5),
        ("GET /v1/cart/requests/{request_id}", "", 2),
        ("POST /v1/cart/items", "", 1),
        ("GET /v1/products", "", 1),
        ("GET /v1/products", "50", 1),
        ("GET /v1/products", "100", 2),
        ("GET /v1/products", "9" * 5000, 1),
        ("GET /v1/orders", "100", 2),
        ("GET /v1/nothing", "", 1),
    ],
)
def test_the_cost_of_a_request(request_: str, limit: str, cost: int) -> None:
    method, _, route = request_.partition(" ")
    assert route_cost(method, route, limit, 600) == cost


@pytest.mark.parametrize(
    ("kind", "products", "cost"),
    [
        ("watch", None, 75),
        ("watch", "nonsense", 75),
        ("watch", ["P"], 1),
        ("watch", ["P"] * 100, 10),
        ("watch", ["P"] * 2000, 75),
        ("cart", None, 5),
        ("resume", None, 5),
        ("check", None, 1),
        ("nonsense", None, 1),
        (["watch"], None, 1),
    ],
)
def test_the_cost_of_a_frame(kind: object, products: object, cost: int) -> None:
    assert frame_cost(kind, products, 600) == cost
    assert frame_cost(kind, products, 1) == 1 or isinstance(products, list), "a small limit is not used up at once"


# ---- HTTP, by network -----------------------------------------------------------------------------------------------


async def test_users_of_one_network_share_its_limit_of_changes() -> None:
    async with visitor(limit_network_changes=5) as client:
        guests = [await guest(client) for _ in range(8)]
        body = {"product": "P", "quantity": 1}
        found = [await client.post("/v1/cart/items", json=body, headers=bearer) for bearer in guests]
    assert [each.status_code for each in found] == [503] * 5 + [429] * 3, "Kafka is away, but all are counted"
    assert found[-1].json()["type"] == "/problems/rate-limited"
    assert "one network" in found[-1].json()["detail"]
    assert int(found[-1].headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "path", ["/", "/static/shop.js", "/problems/rate-limited", "/analytics", "/docs", "/v1/nothing"]
)
async def test_pages_files_and_unknown_paths_are_counted(path: str) -> None:
    async with visitor(limit_network_others=3) as client:
        codes = [(await client.get(path)).status_code for _ in range(4)]
    assert codes[3] == 429
    assert 429 not in codes[:3]


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_a_probe_is_always_answered(path: str) -> None:
    async with visitor(limit_network_others=1) as client:
        assert 429 not in {(await client.get(path)).status_code for _ in range(50)}


async def test_refused_hosts_and_bodies_are_counted_too() -> None:
    async with visitor(limit_network_others=2) as client:
        codes = [(await client.get("/", headers={"Host": "evil.example"})).status_code for _ in range(3)]
    assert codes == [400, 400, 429]


async def test_an_expensive_request_costs_the_network_more() -> None:
    async with visitor(limit_network_others=20, limit_others=600) as client:
        bearers = [await guest(client) for _ in range(4)]
        codes = [(await client.get("/v1/cart", headers=bearer)).status_code for bearer in bearers]
    assert codes == [503, 503, 503, 429], "4 guests and 3 carts of five each are 19"


async def test_one_network_makes_few_guests() -> None:
    async with visitor(limit_network_guests=3) as client:
        bearer = await guest(client)
        codes = []
        for _ in range(3):
            codes.append((await client.post("/v1/guests")).status_code)
            client.cookies.clear()
        assert codes == [201, 201, 429]
        assert (await client.post("/v1/guests", headers=bearer)).status_code == 201, "a returning guest is not new"


async def test_loopback_is_exempt_in_the_local_profile_only() -> None:
    async with visitor("127.0.0.1", limit_network_others=1) as client:
        assert {(await client.get("/static/shop.js")).status_code for _ in range(5)} == {200}


def test_the_networks_of_each_limit_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rest_api.security.address_limiter.MAX_ADDRESSES", 100)
    limiter = AddressLimiter(EdgeSettings())
    for number in range(1000):
        scope = {"type": "http", "client": (f"198.51.{number // 250}.{number % 250}", 1), "state": {}, "path": "/"}
        limiter.allowances(scope)
        limiter.count_guest(HTTPConnection(scope))
    assert len(limiter._networks) == len(limiter._new_guests) == 100


# ---- sockets --------------------------------------------------------------------------------------------------------


class Network:
    """The budget of a network, as `AddressLimiter.allowances` returns it."""

    def __init__(self, changes: int, others: int) -> None:
        self.changes, self.others = Allowance(changes, NOW), Allowance(others, NOW)


def test_frames_of_all_users_count_for_their_network() -> None:
    network = Network(changes=3, others=100)
    sessions = [Session(f"s{number}", make_user(), expires_at=NOW + 3600, network=network) for number in range(4)]
    found = [send(each, id="a", type="add", product="P", quantity=1)[0] for each in sessions]
    assert [isinstance(each, Publish) for each in found] == [True, True, True, False]
    assert error(found[3:])["code"] == "rate_limited"
    for _ in range(20):
        told = send(sessions[3], id="b", type="add", product="P", quantity=1)
        assert not any(isinstance(each, Close) for each in told), "others may have used it up"


def test_the_whole_stock_may_be_asked_for_a_few_times_only() -> None:
    session = make_session(make_user(others=600))
    granted = 0
    for number in range(200):
        granted += StartWatching(None) in send(session, id=f"w{number}", type="watch")
        send(session, id=f"u{number}", type="unwatch")
    assert granted <= WHOLE_STOCK.per_minute
    assert StartWatching(None) in send(session, NOW + 60, id="later", type="watch")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def stale(queue: SendQueue) -> list[str]:
    found = list(queue._stale_stock)
    queue._stale_stock.clear()
    return found


def test_a_repeated_watch_is_answered_once_an_interval() -> None:
    ticking = Clock()
    broadcaster = StockBroadcaster(ticking)
    broadcaster.update((f"P{number}", 5, 1) for number in range(3))
    queue = SendQueue(_never, broadcaster.stock_frame)
    broadcaster.watch(queue, None)
    assert stale(queue) == ["P0", "P1", "P2"]
    for _ in range(100):
        broadcaster.watch(queue, None)
    assert stale(queue) == []
    broadcaster.watch(queue, ("P0",))
    broadcaster.watch(queue, ("P0", "P1"))
    broadcaster.watch(queue, ("P1",))
    assert stale(queue) == ["P0", "P1"]
    ticking.now += REPEAT_SECONDS
    broadcaster.watch(queue, None)
    broadcaster.watch(queue, ("P1",))
    assert stale(queue) == ["P0", "P1", "P2"]
    broadcaster.unwatch(queue, ("P1",))
    broadcaster.watch(queue, ("P1",))
    assert stale(queue) == ["P1"]
    broadcaster.unwatch(queue, None)
    assert not broadcaster._sent_at
    broadcaster.watch(queue, None)
    assert len(stale(queue)) == 3, "the stock may have changed while it was not watched"


async def _never(message: Any) -> None:
    raise AssertionError(message)


def test_sockets_opened_without_end_read_the_cart_once_a_second() -> None:
    shopper = make_user(sockets=None)
    reads = 0
    for number in range(100):
        session = Session(f"s{number}", shopper, expires_at=NOW + 3600)
        reads += sum(isinstance(effect, Publish) for effect in session.open(NOW + number / 100))
        session.close()
    assert reads == 1
    late = Session("late", shopper, expires_at=NOW + 3600)
    assert len(late.open(NOW + 0.5)) == 1, "the greeting alone"
    assert late.next_wakeup <= NOW + 1
    [read] = late.tick(NOW + 1)
    assert isinstance(read, Publish)
    assert read.request_id == "late/cart"
    [answer] = late.on_read_answered("late/cart", [b'{"type":"pending","id":"x"}'])
    assert frames_of([answer])


def test_too_many_users_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "MAX_USERS", 2)
    edge = make_app_state().connections
    for user in ("a", "b", "a"):
        edge.user_state(user)
    with pytest.raises(Problem) as caught:
        edge.user_state("c")
    assert caught.value.slug == "overloaded"


async def test_reads_over_http_are_limited_like_changes() -> None:
    edge: ConnectionManager = make_app_state().connections
    edge.in_flight = InFlight(Admission(1))
    with idempotency.registered_read(edge, "ann", "r1"):
        with pytest.raises(Problem) as caught, idempotency.registered_read(edge, "bob", "r2"):
            pass
        assert caught.value.slug == "overloaded"
    with idempotency.registered_read(edge, "bob", "r3"):
        assert edge.in_flight.unanswered("bob") == ["r3"]
    assert edge.in_flight.unanswered("bob") == []
    assert orjson.dumps(edge.in_flight._users) == b"{}"


def test_the_documented_budgets_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs/services/edge.md").read_text()
    rows = [line.split("|")[1:5] for line in page.partition("### Budgets")[2].partition("\n### ")[0].splitlines()]
    table = {name: row for row in rows if len(row) == 4 for name in re.findall(r"`([^`]+)`", row[0])}
    names = {name for name in ROUTES if ROUTES[name] is not Budget.UNCOUNTED} | set(FRAMES)
    assert names <= set(table), "without a row"
    assert {name for name in table if name.isupper() or "/" in name} - set(ROUTES) <= {"/docs"}
    for name, cost in [*ROUTES.items(), *FRAMES.items()]:
        if isinstance(cost, Cost) and name not in {"watch", "POST /v1/guests"}:
            assert (table[name][2].strip(), table[name][3].strip()) == (str(cost.of(600)), str(cost.per_minute)), name


# ---- overload -------------------------------------------------------------------------------------------------------


async def test_changes_of_an_overloaded_edge_are_refused_before_anything_else() -> None:
    state = build_state(EdgeSettings(), 8080)[0]
    state.connections.in_flight = InFlight(Admission(0))
    transport = httpx.ASGITransport(create_app(state), client=(FAR, 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
        for method, path in (("POST", "/v1/cart/items"), ("DELETE", "/v1/cart"), ("POST", "/v1/orders")):
            response = await client.request(method, path, content=b"{" if method == "POST" else None)
            assert (response.status_code, response.json()["type"]) == (503, "/problems/overloaded")
            assert response.headers["retry-after"] == "1"
        assert (await client.post("/v1/guests")).status_code == 201
        assert (await client.get("/problems/")).status_code == 200


# ---- tokens ---------------------------------------------------------------------------------------------------------


async def test_a_token_is_verified_once_and_still_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    verified = []

    def verify(secret: str, token: str, **more: Any) -> Any:
        verified.append(token)
        return tokens_module.verify(secret, token, **more)

    monkeypatch.setattr(authentication, "verify", verify)
    monkeypatch.setattr(authentication, "MAX_VERIFIED", 2)
    authenticator = build_state(EdgeSettings(), 8080)[0].authenticator
    now = clock.now()
    tokens = [
        issue(DEVELOPMENT_SECRET, user_id=f"u{number}", roles=["guest"], lifetime=HOUR, now=now)[0]
        for number in range(3)
    ]

    def user(token: str) -> str:
        scope = {"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())]}
        credential = authenticator.credential(HTTPConnection(scope))
        assert credential is not None
        return authenticator._verify(credential).user_id

    assert [user(tokens[number]) for number in (0, 0, 1, 0)] == ["u0", "u0", "u1", "u0"]
    assert verified == tokens[:2]
    assert [user(tokens[number]) for number in (2, 1, 0)] == ["u2", "u1", "u0"], "the oldest one was dropped"
    assert verified == [*tokens, tokens[0]]
    with pytest.raises(Problem) as caught:
        user(tokens[0][:-2] + ("AA" if tokens[0][-2:] != "AA" else "BB"))
    assert caught.value.slug == "unauthenticated"
    monkeypatch.setattr(clock, "now", lambda: now + 2 * HOUR)
    with pytest.raises(Problem) as caught:
        user(tokens[0])
    assert caught.value.slug == "token-expired"
