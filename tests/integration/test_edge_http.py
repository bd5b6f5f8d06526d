"""HTTP at a real edge: ids that need encoding on every route, conditional reads, preferences, and raw requests."""

import asyncio
import json
import re
import secrets
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from websockets.asyncio.client import connect

from contracts.insights import RELATED
from contracts.inventory import PRODUCTS, STOCK
from contracts.url_paths import DOT_SEGMENTS, encode_segment
from tests.testkit.edge import SILENT, Running, running_edge
from tests.testkit.fake_orders import PRICE
from tests.testkit.odd_ids import ODD_IDS, edge_app, edge_routes
from tests.testkit.rest_client import ONE, WAIT, problem, token, until, wanted
from tests.testkit.servers import Servers

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
READS = [entry for entry in edge_routes(edge_app()) if entry.method == "GET"]


@pytest.fixture(scope="module")
def edge(servers: Servers) -> Iterator[Running]:
    """An edge without limits that knows a product for each odd code."""
    with running_edge(servers, f"h{secrets.token_hex(3)}.", HOLDFAST_LIMITS="off") as running:
        for code in ("A", *ODD_IDS, "last"):
            product = {"code": code, "name": f"name of {code}", "price": PRICE, "version": 1}
            running.carts.publish(PRODUCTS, "/inventory", "holdfast.catalogue.product", code, product)
            stock = {"product": code, "available": 7, "received": 7, "held": 0, "sold": 0, "version": 1}
            running.carts.publish(STOCK, "/inventory", "holdfast.inventory.stock", code, stock)
            item = {"product": "A", "support": 0.5, "confidence": 0.5, "lift": 1.5}
            related = {"product": code, "orders": 2, "items": [item], "version": 1}
            running.carts.publish(RELATED, "/insights", "holdfast.insights.related", code, related)
        with running.client() as visitor:
            until(lambda: len(visitor.get("/v1/products?limit=100").json()["items"]) == len(ODD_IDS) + 2)
            until(lambda: all(item["available"] for item in visitor.get("/v1/products?limit=100").json()["items"]))
            until(lambda: visitor.get("/v1/products/last/related").json()["items"])
        yield running


@pytest.fixture
def client(edge: Running) -> Iterator[httpx.Client]:
    """A shopper's client."""
    with edge.client(edge.guest()["token"]) as found:
        yield found


@pytest.fixture
def service(edge: Running) -> Iterator[httpx.Client]:
    """The client of another service."""
    with edge.client(token(edge.settings, "service", user=f"warehouse/{secrets.token_hex(3)}")) as found:
        yield found


def _is_readable(client: httpx.Client, address: str) -> bool:
    return client.get(address).status_code == 200


def _has(client: httpx.Client, address: str, name: str, value: object) -> bool:
    return bool(client.get(address).json()[name] == value)


def _items(client: httpx.Client, address: str) -> object:
    return client.get(address).json()["items"]


# ---- ids that need encoding -----------------------------------------------------------------------------------------


def test_products_are_found_by_any_code(edge: Running) -> None:
    with edge.client() as visitor:
        for code in ODD_IDS:
            address = f"/v1/products/{encode_segment(code)}"
            found = visitor.get(address)
            assert (found.status_code, found.json()["code"], found.json()["available"]) == (200, code, 7)
            assert visitor.head(address).headers["etag"] == found.headers["etag"]
            until(partial(_items, visitor, f"{address}/related"))
            assert [item["code"] for item in visitor.get(f"{address}/related").json()["items"]] == ["A"]


def test_cart_lines_are_changed_by_any_code(client: httpx.Client) -> None:
    for code in ODD_IDS:
        address = f"/v1/cart/items/{encode_segment(code)}"
        held = client.put(address, json={"quantity": 2}, headers=WAIT)
        assert (held.status_code, held.json()["product"]) == (200, code), held.text
        assert [line["product"] for line in client.get("/v1/cart").json()["lines"]] == [code]
        gone = client.delete(address, headers=WAIT)
        assert (gone.status_code, gone.json()["product"]) == (200, code), gone.text


@pytest.mark.parametrize("end", ["commit", "delete"])
def test_reservations_are_settled_under_any_id(service: httpx.Client, end: str) -> None:
    for name in ODD_IDS:
        body = {"reservation_id": name, "items": ONE}
        if name in DOT_SEGMENTS:
            found = problem(service.post("/v1/reservations", json=body), 422, "invalid")
            assert [error["pointer"] for error in found["errors"]] == ["/reservation_id"]
            continue
        accepted = service.post("/v1/reservations", json=body)
        assert accepted.status_code == 202, accepted.text
        address = accepted.headers["location"]
        assert re.fullmatch(r"/v1/reservations/[A-Za-z0-9._~%-]+", address)
        until(partial(_is_readable, service, address))
        assert service.get(address).json()["reservation_id"] == name
        settle = service.post(f"{address}/commit") if end == "commit" else service.delete(address)
        assert (settle.status_code, settle.headers["location"]) == (202, address)
        state = "COMMITTED" if end == "commit" else "CANCELLED"
        until(partial(_has, service, address, "state", state))


def test_orders_are_read_and_changed_by_any_id(edge: Running, client: httpx.Client) -> None:
    order_id = client.post("/v1/orders", json=wanted(), headers=WAIT).json()["order_id"]
    user = client.get(f"/v1/orders/{order_id}").json()["user_id"]
    desk = edge.carts.desk
    for name in (name for name in ODD_IDS if name not in DOT_SEGMENTS):
        odd = f"{name}{user}"[:64] if len(name) < 64 else name
        desk.orders[odd] = {"user_id": user, "status": "placed", "version": 0, "captured": False}
        lines = [{**ONE[0], "price": PRICE}]
        for told in (
            desk.event(odd, "placed", "placed", request_id="r1"),
            desk.event(odd, "committed", "committed", lines=lines, total=PRICE),
        ):
            edge.carts.publish(told.topic, told.source, told.kind, told.key, told.data)
        address = f"/v1/orders/{encode_segment(odd)}"
        until(partial(_is_readable, client, address))
        until(partial(_has, client, address, "order_version", 2))
        assert client.get(address).json()["order_id"] == odd
        problem(client.get(f"{address}/shipment"), 404, "not-found")
        assert client.get(f"{address}/payments").json()["items"] == []
        first = client.get(f"{address}/events?limit=1")
        following = re.fullmatch(r'<([^<>]+)>; rel="next"', first.headers["link"])
        assert following is not None
        rest = client.get(urljoin(f"{edge.url}{address}/events", following[1]))
        assert [event["version"] for event in first.json()["items"] + rest.json()["items"]] == [1, 2]
        cancelled = client.post(f"{address}/cancel")
        assert (cancelled.status_code, cancelled.headers["location"]) == (202, address)
        until(partial(_has, client, address, "status", "cancelled"))


async def test_outcomes_are_read_by_any_id_of_a_frame(edge: Running) -> None:
    guest = edge.guest()
    headers = {"Authorization": f"Bearer {guest['token']}"}
    async with connect(f"{edge.url.replace('http', 'ws')}/v1/stream", additional_headers=headers, proxy=None) as line:
        for name in ODD_IDS:
            await line.send(json.dumps({"id": name, "type": "add", "product": "A", "quantity": 1}))
            async with asyncio.timeout(20):
                while (sent := json.loads(await line.recv())).get("id") != name or sent["type"] == "pending":
                    pass
    async with httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=40, trust_env=False) as client:
        for name in ODD_IDS:
            found = await client.get(f"/v1/cart/requests/{encode_segment(name)}")
            assert (found.status_code, found.json()["id"]) == (200, name), found.text


# ---- conditional reads ----------------------------------------------------------------------------------------------


def conditional_cases(etag: str) -> Iterator[tuple[list[tuple[str, str]], int]]:
    bare = etag.removeprefix("W/")
    for value, status in (
        (bare, 304),
        (f"W/{bare}", 304),
        (f'"other", W/{bare} , "last"', 304),
        ("*", 304),
        ('"other"', 200),
        ('W/"other", "last"', 200),
        (bare.strip('"'), 200),
        (f"w/{bare}", 200),
        ("", 200),
    ):
        yield [("if-none-match", value)], status
    yield [("if-none-match", '"other"'), ("if-none-match", bare)], 304
    yield [("if-none-match", bare), ("if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT")], 304
    yield [("if-match", bare)], 200
    yield [("if-match", f"W/{bare}")], 412
    yield [("if-match", '"other"')], 412


def test_every_route_with_an_etag_answers_conditions(edge: Running, client: httpx.Client) -> None:
    """The routes are found by reading them all, so a new one with an `ETag` is covered."""
    client.post("/v1/cart/items", json=ONE[0], headers=WAIT).raise_for_status()
    order_id = client.post("/v1/orders", json=wanted(), headers=WAIT).json()["order_id"]
    until(lambda: client.get(f"/v1/orders/{order_id}").json()["order_version"] == 2)
    values = {"code": "KDP/601", "order_id": order_id, "figure": "all", "slug": "invalid"}
    names = {"/static/{name}": "shop.js", "/docs/{name}": "start.js"}
    tagged = set()
    for entry in READS:
        address = entry.url(**values, name=names.get(entry.path, ""))
        etag = client.get(address).headers.get("etag")
        if etag is None:
            continue
        tagged.add(entry.path)
        for headers, status in conditional_cases(etag):
            for method in ("GET", "HEAD"):
                response = client.request(method, address, headers=headers)
                assert response.status_code == status, (method, address, headers)
                if status != 412:
                    assert response.headers["etag"] == etag
                    assert response.headers["cache-control"] in {"no-store", "no-cache", "private"}
                if status == 304:
                    assert (response.content, "content-type" in response.headers) == (b"", False)
    assert tagged >= {"/v1/products/{code}", "/v1/orders/{order_id}", "/v1/cart", "/", "/static/{name}"}


# ---- preferences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "applied"),
    [
        (["wait=9"], "wait=9"),
        (["respond-async", "wait=9"], "wait=9"),
        (['wait="9"'], "wait=9"),
        (["WAIT = 9, wait=1"], "wait=9"),
        (["return=minimal; x=y", "foo, wait=99"], "wait=30"),
        (["foo; wait=9"], None),
        (["wait=soon", "wait=9"], None),
        (["wait=0"], None),
    ],
)
def test_every_change_reads_preferences_alike(
    service: httpx.Client, edge: Running, lines: list[str], applied: str
) -> None:
    headers = [("prefer", line) for line in lines]
    with edge.client(edge.guest()["token"]) as client:
        order_id = client.post("/v1/orders", json=wanted(), headers=WAIT).json()["order_id"]
        until(lambda: client.get(f"/v1/orders/{order_id}").json()["order_version"] == 2)
        made = service.post("/v1/reservations", json={"items": ONE}, headers=WAIT).json()["reservation_id"]
        changes: list[tuple[httpx.Client, str, str, dict[str, Any]]] = [
            (client, "POST", "/v1/cart/items", {"json": ONE[0]}),
            (client, "PUT", "/v1/cart/items/A", {"json": {"quantity": 2}}),
            (client, "DELETE", "/v1/cart/items/A", {}),
            (client, "DELETE", "/v1/cart", {}),
            (client, "POST", "/v1/orders", {"json": wanted()}),
            (client, "POST", f"/v1/orders/{order_id}/cancel", {}),
            (service, "POST", "/v1/reservations", {"json": {"items": ONE}}),
            (service, "POST", f"/v1/reservations/{made}/commit", {}),
        ]
        for sender, method, address, options in changes:
            response = sender.request(method, address, headers=headers, **options)
            assert response.status_code == (200 if applied else 202), (address, response.text)
            assert response.headers.get("preference-applied") == applied, address


def test_a_preference_that_was_applied_in_vain_is_reported(client: httpx.Client) -> None:
    body = {"product": SILENT, "quantity": 1}
    response = client.post("/v1/cart/items", json=body, headers=[("Prefer", "respond-async"), ("Prefer", 'wait="1"')])
    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=1")


# ---- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (wanted(items=[{**ONE[0], "price": {"amount": 1, "currency": "GBP"}}]), "/items/0/price"),
        (wanted(total={"amount": 1, "currency": "GBP"}), "/total"),
        (wanted(payment={"token": "tok_approve", "amount": 1}), "/payment/amount"),
        (wanted(expect={"total": {**PRICE, "tax": 1}}), "/expect/total/tax"),
        (wanted(expect={"total": PRICE, "tax": 1}), "/expect/tax"),
        (wanted(contact={"email": "ann@example.org", "fax": "1"}), "/contact/fax"),
        (wanted(address={**wanted()["address"], "line3": "x"}), "/address/line3"),
    ],
)
def test_an_order_names_nothing_that_is_ignored(client: httpx.Client, body: dict[str, Any], pointer: str) -> None:
    found = problem(client.post("/v1/orders", json=body), 422, "invalid")
    assert found["errors"][0]["pointer"] == pointer


def test_no_other_body_names_what_is_ignored(edge: Running, client: httpx.Client, service: httpx.Client) -> None:
    order_id = client.post("/v1/orders", json=wanted(), headers=WAIT).json()["order_id"]
    item = {**ONE[0], "price": PRICE}
    support = edge.client(token(edge.settings, "support"))
    with support:
        for sender, method, address, body, pointer in (
            (client, "POST", "/v1/cart/items", item, "/price"),
            (client, "PUT", "/v1/cart/items/A", {"quantity": 1, "price": 1}, "/price"),
            (client, "DELETE", "/v1/cart/items/A", {"quantity": 1}, "/quantity"),
            (client, "DELETE", "/v1/cart", {"product": "A"}, "/product"),
            (client, "POST", f"/v1/orders/{order_id}/cancel", {"items": ONE}, "/items"),
            (support, "POST", f"/v1/orders/{order_id}/refunds", {"amount": {**PRICE, "tax": 1}}, "/amount/tax"),
            (service, "POST", "/v1/reservations", {"items": [item]}, "/items/0/price"),
            (service, "POST", "/v1/reservations/A/commit", {"items": ONE}, "/items"),
            (service, "DELETE", "/v1/reservations/A", {"items": ONE}, "/items"),
        ):
            found = problem(sender.request(method, address, json=body), 422, "invalid")
            assert found["errors"][0]["pointer"] == pointer
            assert sender.request(method, address, content=b"").status_code != 500


async def test_an_order_over_a_socket_is_as_strict(edge: Running) -> None:
    headers = {"Authorization": f"Bearer {edge.guest()['token']}"}
    async with connect(f"{edge.url.replace('http', 'ws')}/v1/stream", additional_headers=headers, proxy=None) as line:
        order = wanted(items=[{**ONE[0], "price": PRICE}])
        await line.send(json.dumps({"id": "c1", "type": "checkout", **order}))
        async with asyncio.timeout(20):
            while (sent := json.loads(await line.recv())).get("id") != "c1":
                pass
        assert (sent["type"], sent["code"]) == ("error", "bad_field")
        await line.send(json.dumps({"id": "c2", "type": "add", "product": "A", "quantity": 1, "colour": "red"}))
        async with asyncio.timeout(20):
            while (sent := json.loads(await line.recv())).get("id") != "c2":
                pass
        assert sent["type"] == "pending", "a frame may have fields that this version does not know"


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_no_text_that_cannot_be_stored_is_accepted(service: httpx.Client, text: str) -> None:
    notice = {"user_id": "u1", "params": {"title": "t", "body": text}}
    body = json.dumps(notice).encode()
    response = service.post("/v1/notifications", content=body, headers={"content-type": "application/json"})
    assert [error["pointer"] for error in problem(response, 422, "invalid")["errors"]] == ["/params/body"]


# ---- on the wire ----------------------------------------------------------------------------------------------------


def exchange(edge: Running, head: str, body: bytes = b"") -> bytes:
    """Send raw bytes on a connection that the server closes, and return what it answers."""
    with socket.create_connection(("127.0.0.1", edge.port), timeout=20) as line:
        line.sendall(head.replace("\n", "\r\n").replace("HOST", f"127.0.0.1:{edge.port}").encode("latin-1") + body)
        answer = b""
        while received := line.recv(65536):
            answer += received
    return answer


HEAD = "HTTP/1.1\nHost: HOST\nConnection: close\n"


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (f"GET /v1/products/KDP%2f601 {HEAD}\n", b"", 200),
        (f"GET /v1/products/KDP/601 {HEAD}\n", b"", 404),
        (f"GET /v1/products/.. {HEAD}\n", b"", 200),
        (f"GET /v1/products/%2E%2e {HEAD}\n", b"", 200),
        (f"GET /v1/products/../products {HEAD}\n", b"", 404),
        (f"GET /v1/products/%zz {HEAD}\n", b"", 400),
        (f"GET /v1/products/%FF {HEAD}\n", b"", 400),
        (f"GET /%76%31/products {HEAD}\n", b"", 200),
        (f"GET /static/..%2fsettings.py {HEAD}\n", b"", 404),
        (f"GET /static/%2e%2e/settings.py {HEAD}\n", b"", 404),
        (f"OPTIONS /v1/cart {HEAD}\n", b"", 204),
        (f"OPTIONS * {HEAD}\n", b"", 204),
        (f"TRACE /v1/cart {HEAD}\n", b"", 405),
        (
            f"POST /v1/guests {HEAD}Content-Type: application/json\nContent-Length: 2\nExpect: 100-continue\n\n",
            b"{}",
            100,
        ),
        (f"POST /v1/guests {HEAD}Content-Type: application/json\nContent-Length: 2\nExpect: more\n\n", b"{}", 417),
        (f"POST /v1/guests {HEAD}Content-Type: text/plain\nContent-Length: 2\nExpect: 100-continue\n\n", b"", 415),
        (
            f"POST /v1/guests {HEAD}Content-Type: application/json\nTransfer-Encoding: chunked\nTrailer: X\n\n",
            b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
            201,
        ),
        (f"POST /v1/guests {HEAD}Transfer-Encoding: chunked\n\n", b"0\r\n\r\n", 201),
        (f"GET /v1/products {HEAD}TE: trailers, gzip\nRange: bytes=0-1\nAccept: image/png\n\n", b"", 200),
        (f"GET / {HEAD}Range: bytes=0-1\n\n", b"", 200),
    ],
)
def test_raw_requests(edge: Running, head: str, body: bytes, status: int) -> None:
    answer = exchange(edge, head, body)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert b"HTTP/1.1 500" not in answer
    if status == 100:
        assert b"HTTP/1.1 201" in answer


def test_a_head_has_the_headers_of_a_get_and_no_body(edge: Running, client: httpx.Client) -> None:
    for entry in READS:
        address = entry.url(code="KDP/601", slug="invalid", figure="all", name="shop.js")
        for headers in ({}, BROWSER):
            get, head = client.get(address, headers=headers), client.head(address, headers=headers)
            assert (head.status_code, head.content) == (get.status_code, b""), address
            assert head.headers["content-type"] == get.headers["content-type"]
            if entry.path not in {"/metrics", "/v1/analytics/{figure}"} and get.status_code == 200:
                assert head.headers["content-length"] == get.headers["content-length"]


def test_metrics_name_no_path(edge: Running, client: httpx.Client) -> None:
    client.get("/v1/products/KDP%2F601")
    client.request("BREW", "/v1/products/pot")
    text = client.get("/metrics").text
    assert "KDP" not in text
    assert "BREW" not in text


def test_browsers_get_pages(edge: Running, client: httpx.Client) -> None:
    for method, address, status in (
        ("GET", "/nowhere", 404),
        ("POST", "/", 405),
        ("GET", "/v1/orders/none", 404),
        ("GET", "/v1/products?limit=x", 422),
        ("GET", "/v1/products/%zz", 400),
    ):
        page = client.request(method, address, headers=BROWSER)
        assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert '<a href="/">' in page.text
        assert "Accept" in page.headers["vary"]
        document = client.request(method, address)
        assert document.headers["content-type"] == "application/problem+json"
        assert "Accept" in document.headers["vary"]
    listed = client.get("/problems/", headers=BROWSER)
    assert (listed.status_code, "/problems/out-of-stock" in listed.text) == (200, True)
