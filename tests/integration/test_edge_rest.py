"""The HTTP side of the edge over real servers."""

import json
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from websockets.sync.client import connect

from contracts.ids import derive_id
from contracts.inventory import PRODUCTS, STOCK
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from infrastructure.security.tokens import issue
from tests.testkit.edge import SILENT, Running
from tests.testkit.fake_orders import SCARCE


@pytest.fixture
def client(edge: Running) -> Iterator[httpx.Client]:
    """A guest's client."""
    with edge.client(edge.guest()["token"]) as found:
        yield found


@pytest.fixture
def visitor(edge: Running) -> Iterator[httpx.Client]:
    with edge.client() as found:
        yield found


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The body of a response that must be this problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"/problems/{slug}"
    assert body["status"] == status
    assert body["instance"] == response.headers["x-request-id"]
    return body


# ---- guests and tokens ----------------------------------------------------------------------------------------------


def test_a_guest_gets_a_token_and_a_cookie(visitor: httpx.Client) -> None:
    response = visitor.post("/v1/guests")
    guest = response.json()
    assert response.status_code == 201
    assert guest.keys() == {"user_id", "token", "expires_at"}
    cookie = response.headers["set-cookie"]
    assert cookie.startswith(f"holdfast_session={guest['token']};")
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie


def test_a_guest_who_comes_back_is_the_same(client: httpx.Client, visitor: httpx.Client) -> None:
    first, second = client.post("/v1/guests").json(), client.post("/v1/guests").json()
    assert first["user_id"] == second["user_id"]
    assert first["token"] != second["token"]
    assert visitor.post("/v1/guests").json()["user_id"] != first["user_id"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/cart"), ("DELETE", "/v1/cart"), ("POST", "/v1/ws-tickets")])
def test_routes_that_require_a_token(visitor: httpx.Client, edge: Running, method: str, path: str) -> None:
    response = visitor.request(method, path)
    problem(response, 401, "unauthenticated")
    assert response.headers["www-authenticate"].startswith("Bearer")
    key = DEVELOPMENT_SECRET
    old, _ = issue(key, user_id="u", roles=[], lifetime=timedelta(hours=1), now=datetime.now(UTC) - timedelta(hours=2))
    problem(visitor.request(method, path, headers={"Authorization": f"Bearer {old}"}), 401, "token-expired")
    problem(visitor.request(method, path, headers={"Authorization": "Bearer nonsense"}), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "http://localhost:{port}"}, True),
    ],
)
def test_a_cookie_changes_things_only_from_an_allowed_page(
    edge: Running, visitor: httpx.Client, headers: dict[str, str], allowed: bool
) -> None:
    visitor.cookies.set("holdfast_session", edge.guest()["token"])
    assert visitor.get("/v1/cart").status_code == 200
    said = {name: value.format(port=edge.port) for name, value in headers.items()}
    response = visitor.delete("/v1/cart", headers=said)
    if allowed:
        assert response.status_code == 202
    else:
        problem(response, 403, "bad-origin")


def test_a_cookie_that_does_not_count_is_none_where_no_token_is_needed(edge: Running, visitor: httpx.Client) -> None:
    key = DEVELOPMENT_SECRET
    old, _ = issue(key, user_id="u", roles=[], lifetime=timedelta(hours=1), now=datetime.now(UTC) - timedelta(hours=2))
    for token, slug in ((old, "token-expired"), ("nonsense", "unauthenticated")):
        visitor.cookies.set("holdfast_session", token)
        assert visitor.get("/v1/products").status_code == 200
        for path in ("/v1/products/none", "/v1/products/none/related"):
            problem(visitor.get(path), 404, "unknown-product")
        problem(visitor.get("/v1/cart"), 401, slug)
        problem(visitor.get("/v1/products", headers={"Authorization": f"Bearer {token}"}), 401, slug)


def test_other_pages_may_not_read_and_allowed_ones_may(edge: Running, visitor: httpx.Client) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}
    allowed = visitor.options("/v1/cart/items", headers={"Origin": f"http://localhost:{edge.port}", **asked})
    assert allowed.headers["access-control-allow-origin"] == f"http://localhost:{edge.port}"
    other = visitor.options("/v1/cart/items", headers={"Origin": "http://evil.example", **asked})
    assert "access-control-allow-origin" not in other.headers


# ---- the cart -------------------------------------------------------------------------------------------------------


def test_a_change_is_accepted_and_its_outcome_can_be_read(client: httpx.Client) -> None:
    response = client.post("/v1/cart/items", json={"product": "P", "quantity": 2})
    assert response.status_code == 202
    name = response.json()["request_id"]
    assert response.headers["location"] == f"/v1/cart/requests/{name}"
    outcome = client.get(response.headers["location"]).json()
    assert (outcome["type"], outcome["id"], outcome["quantity"]) == ("held", name, 2)


def test_with_prefer_wait_the_outcome_is_the_answer(client: httpx.Client) -> None:
    wait = {"Prefer": "wait=5"}
    held = client.post("/v1/cart/items", json={"product": "P", "quantity": 2}, headers=wait)
    assert (held.status_code, held.json()["type"]) == (200, "held")
    assert held.headers["preference-applied"] == "wait=5"
    refused = client.post("/v1/cart/items", json={"product": SCARCE, "quantity": 2}, headers=wait)
    assert (refused.status_code, refused.json()["reason"]) == (200, "out_of_stock")
    line = client.put("/v1/cart/items/P", json={"quantity": 5}, headers=wait).json()
    assert (line["type"], line["line_quantity"]) == ("held", 5)
    assert client.put("/v1/cart/items/P", json={"quantity": 0}, headers=wait).json()["type"] == "removed"
    assert client.delete("/v1/cart/items/P", headers=wait).json()["product"] == "P"
    assert client.delete("/v1/cart", headers=wait).json()["type"] == "removed"


def test_an_outcome_that_does_not_come_in_time_is_pending(client: httpx.Client) -> None:
    body = {"product": SILENT, "quantity": 1}
    response = client.post("/v1/cart/items", json=body, headers={"Prefer": "respond-async, wait=1"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=1"
    assert client.get(response.headers["location"]).json()["status"] == "pending"
    problem(client.get("/v1/cart/requests/never-seen"), 404, "not-found")


def test_the_cart_has_an_etag(client: httpx.Client) -> None:
    client.post("/v1/cart/items", json={"product": "P", "quantity": 2}, headers={"Prefer": "wait=5"})
    response = client.get("/v1/cart")
    cart = response.json()
    assert (cart["version"], cart["total"]) == (1, {"amount": 590, "currency": "GBP"})
    assert cart["lines"][0]["product"] == "P"
    etag = response.headers["etag"]
    assert client.get("/v1/cart", headers={"If-None-Match": etag}).status_code == 304
    client.delete("/v1/cart", headers={"Prefer": "wait=5"})
    assert client.get("/v1/cart", headers={"If-None-Match": etag}).status_code == 200


def test_carts_that_are_away_are_unavailable_within_two_seconds(edge: Running, client: httpx.Client) -> None:
    edge.carts.silent.set()
    try:
        begun = time.monotonic()
        response = client.get("/v1/cart")
        assert time.monotonic() - begun < 2.5
    finally:
        edge.carts.silent.clear()
    problem(response, 503, "unavailable")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "quantity",
    ["0", "-1", "1000", "1.0", "1.5", "true", '"3"', '"\uff11"', "null", "[]", str(2**63), "1e308", "1e400", "NaN"],
)
def test_a_quantity_that_is_none(client: httpx.Client, quantity: str) -> None:
    body = f'{{"product":"P","quantity":{quantity}}}'.encode()
    response = client.post("/v1/cart/items", content=body, headers={"Content-Type": "application/json"})
    assert problem(response, 422, "invalid")["errors"][0]["pointer"] == "/quantity"


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"quantity": 1}, 422, "/product"),
        ({"product": "", "quantity": 1}, 422, "/product"),
        ({"product": "x" * 65, "quantity": 1}, 422, "/product"),
        ({"product": "a\nb", "quantity": 1}, 422, "/product"),
        ({"product": "P", "quantity": 1, "price": 0}, 422, "/price"),
        ({"product": "P", "quantity": 1, "user_id": "u2"}, 422, "/user_id"),
        ({"product": "P", "quantity": 1, "a/b~c": 1}, 422, "/a~1b~0c"),
        ([], 422, ""),
        ("P", 422, ""),
    ],
)
def test_a_body_that_is_not_allowed(client: httpx.Client, body: object, status: int, pointer: str) -> None:
    found = problem(client.post("/v1/cart/items", json=body), status, "invalid")
    assert found["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 20_000, b'{"product":}'])
def test_a_body_that_is_not_json(client: httpx.Client, body: bytes) -> None:
    problem(
        client.post("/v1/cart/items", content=body, headers={"Content-Type": "application/json"}), 400, "bad-request"
    )


def test_bodies_of_other_kinds_and_sizes(client: httpx.Client) -> None:
    problem(client.post("/v1/cart/items", data={"product": "P"}), 415, "unsupported-media-type")
    kind = {"Content-Type": "application/json"}
    problem(client.post("/v1/cart/items", content=b" " * 70_000, headers=kind), 413, "too-large")

    def chunks() -> Iterator[bytes]:
        for _ in range(70):
            yield b" " * 1024

    problem(client.post("/v1/cart/items", content=chunks(), headers=kind), 413, "too-large")


def test_unknown_resources_are_not_found(client: httpx.Client) -> None:
    problem(client.get("/v1/nothing"), 404, "not-found")
    response = client.patch("/v1/cart")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"]


# ---- idempotency keys -----------------------------------------------------------------------------------------------


def test_the_same_key_and_body_get_the_same_answer(edge: Running, client: httpx.Client) -> None:
    key, body = {"Idempotency-Key": secrets.token_hex(8)}, {"product": "P", "quantity": 2}
    first = client.post("/v1/cart/items", json=body, headers=key)
    second = client.post(
        "/v1/cart/items", content=json.dumps(body, indent=4), headers={**key, "Content-Type": "application/json"}
    )
    assert first.json() == second.json()
    assert (second.status_code, second.headers["location"]) == (202, first.headers["location"])
    assert first.json()["request_id"] == derive_id("POST", "/v1/cart/items", key["Idempotency-Key"])
    waiting = client.post("/v1/cart/items", json=body, headers={**key, "Prefer": "wait=5"})
    again = client.post("/v1/cart/items", json=body, headers={**key, "Prefer": "wait=5"})
    assert waiting.status_code == again.status_code == 200
    assert waiting.json() == again.json()
    assert waiting.headers["preference-applied"] == again.headers["preference-applied"] == "wait=5"
    unasked = client.post("/v1/cart/items", json=body, headers=key)
    assert (unasked.json(), "preference-applied" in unasked.headers) == (again.json(), False)
    assert client.get("/v1/cart").json()["lines"][0]["quantity"] == 2, "done once"


def test_a_key_used_for_something_else(edge: Running, client: httpx.Client) -> None:
    key = {"Idempotency-Key": "k1"}
    client.post("/v1/cart/items", json={"product": "P", "quantity": 2}, headers=key)
    found = problem(
        client.post("/v1/cart/items", json={"product": "P", "quantity": 3}, headers=key), 422, "idempotency-key-reused"
    )
    assert [error["pointer"] for error in found["errors"]] == ["/idempotency-key"]
    assert client.delete("/v1/cart", headers=key).status_code == 202, "another route is another scope"
    assert client.put("/v1/cart/items/P", json={"quantity": 1}, headers=key).status_code == 202
    problem(client.put("/v1/cart/items/Q", json={"quantity": 1}, headers=key), 422, "idempotency-key-reused")
    with edge.client(edge.guest()["token"]) as other:
        assert other.post("/v1/cart/items", json={"product": "P", "quantity": 3}, headers=key).status_code == 202


def test_a_key_that_is_none(client: httpx.Client) -> None:
    body = {"product": "P", "quantity": 2}
    problem(client.post("/v1/cart/items", json=body, headers={"Idempotency-Key": "x" * 256}), 400, "bad-request")


def test_a_request_whose_first_answer_is_open(edge: Running, client: httpx.Client) -> None:
    key, body = {"Idempotency-Key": "open"}, {"product": SILENT, "quantity": 1}
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/v1/cart/items", json=body, headers={**key, "Prefer": "wait=2"})
        _until(
            lambda: any(event.requestid == derive_id("POST", "/v1/cart/items", "open") for event in edge.carts.requests)
        )
        second = client.post("/v1/cart/items", json=body, headers=key)
        problem(second, 409, "request-in-progress")
        assert second.headers["retry-after"] == "1"
        assert first.result().status_code == 202


def test_a_repeat_waits_for_the_answer_of_the_first(edge: Running) -> None:
    guest = edge.guest()
    name = derive_id("POST", "/v1/cart/items", "twice")
    body, headers = {"product": SILENT, "quantity": 1}, {"Idempotency-Key": "twice", "Prefer": "wait=20"}

    def sent() -> int:
        return sum(event.requestid == name and event.subject == guest["user_id"] for event in edge.carts.requests)

    with edge.client(guest["token"]) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/v1/cart/items", json=body, headers=headers)
        _until(sent)
        repeats = [pool.submit(client.post, "/v1/cart/items", json=body, headers=headers) for _ in range(3)]
        other = client.post("/v1/cart/items", json={**body, "quantity": 2}, headers=headers)
        problem(other, 422, "idempotency-key-reused")
        problem(
            client.post("/v1/cart/items", json=body, headers={**headers, "Prefer": "wait=1"}),
            409,
            "request-in-progress",
        )
        assert not any(each.done() for each in (first, *repeats))
        held = {"user_id": guest["user_id"], "id": name, "product": SILENT, "quantity": 1, "line_quantity": 1}
        end = datetime.now(UTC) + timedelta(days=1)
        edge.carts.answer(guest["user_id"], name, "held", {**held, "expires_at": end.isoformat(), "version": 1})
        answers = [each.result() for each in (first, *repeats)]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert {answer.content for answer in answers} == {answers[0].content}
        assert "replayed" not in answers[0].json()
        assert sent() == 1


def test_an_unanswered_claim_is_taken_over_under_the_same_id(edge: Running) -> None:
    guest = edge.guest()
    name = derive_id("POST", "/v1/cart/items", "lost")
    row = (guest["user_id"], name, '{"product":"P","quantity":2,"type":"add"}')
    schema = edge.settings.schema_name("edge")
    insert = (
        f'INSERT INTO "{schema}".claim (user_id, id, fingerprint, claimed_at) VALUES (%s, %s, %s, now() - interval \''
    )
    body, key = {"product": "P", "quantity": 2}, {"Idempotency-Key": "lost", "Prefer": "wait=5"}
    with (
        psycopg.connect(edge.settings.postgres_url, autocommit=True) as database,
        edge.client(guest["token"]) as client,
    ):
        database.execute(f"{insert}8 seconds')".encode(), row)
        unasked = {"Idempotency-Key": "lost"}
        problem(client.post("/v1/cart/items", json=body, headers=unasked), 409, "request-in-progress")
        database.execute(f"UPDATE \"{schema}\".claim SET claimed_at = now() - interval '10 seconds'".encode())
        with ThreadPoolExecutor() as pool:
            answers = [pool.submit(client.post, "/v1/cart/items", json=body, headers=key) for _ in range(4)]
        done = [answer.result() for answer in answers]
        assert [answer.status_code for answer in done] == [200] * 4, "the others wait for the first one's answer"
        assert {answer.content for answer in done} == {done[0].content}
        assert done[0].json()["id"] == name
        assert client.get("/v1/cart").json()["lines"][0]["quantity"] == 2


def _until(true: Any) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


# ---- the catalogue --------------------------------------------------------------------------------------------------


def tell_product(edge: Running, code: str, **more: Any) -> None:
    product = {"code": code, "name": code, "price": {"amount": 100, "currency": "GBP"}, "version": 1, **more}
    edge.carts.publish(PRODUCTS, "/inventory", "holdfast.catalogue.product", code, product)


def tell_stock(edge: Running, code: str, available: int, version: int = 1) -> None:
    stock = {"product": code, "available": available, "received": 9, "held": 0, "sold": 0, "version": version}
    edge.carts.publish(STOCK, "/inventory", "holdfast.inventory.stock", code, stock)


@pytest.fixture(scope="module")
def shelf(edge: Running) -> str:
    """The category of 25 products in the read model, with stock 0…24, and prices that repeat."""
    category = f"c{secrets.token_hex(3)}"
    for number in range(25):
        code = f"{category}-{number:02}"
        if number % 2:
            tell_stock(edge, code, number)
        tell_product(
            edge,
            code,
            name=f"TEAPOT {number} d'été",
            category=category,
            price={"amount": number % 3, "currency": "GBP"},
        )
        if not number % 2:
            tell_stock(edge, code, number)
    with edge.client() as client:
        _until(lambda: _codes(client, category=category, limit=100, available_min=24))
    return category


def _codes(client: httpx.Client, **query: Any) -> list[str]:
    response = client.get("/v1/products", params=query)
    assert response.status_code == 200, response.text
    return [item["code"] for item in response.json()["items"]]


def test_a_product_and_its_stock_may_arrive_in_any_order(visitor: httpx.Client, shelf: str) -> None:
    for number in (6, 7):
        product = visitor.get(f"/v1/products/{shelf}-{number:02}").json()
        assert (product["available"], product["category"]) == (number, shelf)


@pytest.mark.parametrize("sort", ["code", "name", "-name", "price", "-price", "available", "-available"])
def test_pages_join_without_a_gap_or_a_double(visitor: httpx.Client, shelf: str, sort: str) -> None:
    query: dict[str, Any] = {"category": shelf, "sort": sort, "limit": 4}
    seen: list[dict[str, Any]] = []
    address = str(httpx.URL("/v1/products", params=query))
    while address:
        response = visitor.get(address)
        page = response.json()
        seen += page["items"]
        link = re.fullmatch(r'<(.+)>; rel="next"', response.headers.get("link", ""))
        assert (link is None) == (page["after"] is None)
        address = link[1] if link else ""
    whole = visitor.get("/v1/products", params={**query, "limit": 100}).json()["items"]
    assert seen == whole
    assert len({item["code"] for item in seen}) == 25
    if sort.endswith("available"):
        assert [item["available"] for item in seen] == sorted(range(25), reverse=sort.startswith("-"))


def test_filters(visitor: httpx.Client, shelf: str) -> None:
    assert len(_codes(visitor, category=shelf, available_min=5, available_max=7)) == 3
    assert _codes(visitor, q=f"{shelf}-03") == [f"{shelf}-03"]
    assert len(_codes(visitor, category=shelf, q="teap")) == 25, "words may be begun"
    assert _codes(visitor, category=shelf, q="TEAPOT ete") == []
    assert len(_codes(visitor, category=shelf, q="d'ét teapot")) == 25
    assert _codes(visitor, category=shelf, q="cup") == []
    assert _codes(visitor, q="'") == []


@pytest.mark.parametrize(
    "text",
    [
        "' OR 1=1 --",
        "%",
        "_",
        "a & | ! b",
        "<->",
        "a:*b",
        "\\",
        "💥",
        "x" * 200,
        "tea:pot",
        "((",
        ") OR true",
        "' ; DROP",
    ],
)
def test_searches_that_are_no_words_break_nothing(visitor: httpx.Client, text: str) -> None:
    _codes(visitor, q=text)
    _codes(visitor, category=text)


@pytest.mark.parametrize(
    ("query", "status", "slug"),
    [
        ("limit=0", 422, "invalid"),
        ("limit=101", 422, "invalid"),
        ("limit=1e9", 422, "invalid"),
        ("sort=password", 422, "invalid"),
        ("available_min=x", 422, "invalid"),
        (f"available_max={2**31}", 422, "invalid"),
        ("q=%00", 422, "invalid"),
        (f"q={'x' * 201}", 422, "invalid"),
        ("after=nonsense", 400, "bad-cursor"),
        ("after=WyJuYW1lIiwxLCJ4Il0", 400, "bad-cursor"),
        ("after=%F0", 400, "bad-cursor"),
        ("after=" + quote("WyJjb2RlIiwiXHUwMDAwIiwieCJd"), 400, "bad-cursor"),
    ],
)
def test_a_question_that_is_wrong(visitor: httpx.Client, query: str, status: int, slug: str) -> None:
    problem(visitor.get(f"/v1/products?{query}"), status, slug)


def test_a_products_etag_changes_with_it(edge: Running, visitor: httpx.Client) -> None:
    code = f"E{secrets.token_hex(3)}"
    tell_product(edge, code)
    _until(lambda: visitor.get(f"/v1/products/{code}").status_code == 200)
    etag = visitor.get(f"/v1/products/{code}").headers["etag"]
    same = {"If-None-Match": etag}
    assert visitor.get(f"/v1/products/{code}", headers=same).status_code == 304
    tell_stock(edge, code, 3)
    _until(lambda: visitor.get(f"/v1/products/{code}", headers=same).status_code == 200)
    tell_product(edge, code, name="OLDER", version=0)
    tell_product(edge, code, deleted=True, version=2)
    _until(lambda: visitor.get(f"/v1/products/{code}").status_code == 404)
    problem(visitor.get(f"/v1/products/{code}"), 404, "unknown-product")


def test_positions_are_kept_with_the_rows(edge: Running, shelf: str) -> None:
    with psycopg.connect(edge.settings.postgres_url) as database:
        schema = edge.settings.schema_name("edge")
        rows = database.execute(
            f'SELECT topic, sum(next_offset) FROM "{schema}".position GROUP BY 1'.encode()
        ).fetchall()
    assert {topic: count >= 25 for topic, count in rows} == {
        edge.settings.topic(PRODUCTS): True,
        edge.settings.topic(STOCK): True,
    }


# ---- pages, descriptions, probes ------------------------------------------------------------------------------------


def test_the_pages_ask_nothing_of_another_host(visitor: httpx.Client) -> None:
    page = visitor.get("/docs").text
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)
    assert "<script>" not in page
    for name in re.findall(r'(?:src|href)="(/docs/[^"]+)"', page):
        response = visitor.get(name)
        assert response.status_code == 200
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "http" not in visitor.get("/docs/start.js").text
    problem(visitor.get("/docs/..%2f..%2fapp.py"), 404, "not-found")
    problem(visitor.get("/static/..%2fapp.py"), 404, "not-found")


@pytest.mark.parametrize("name", ["swagger-ui-bundle.js", "swagger-ui.css"])
def test_the_viewers_long_files_are_stored_compressed_and_read_by_every_client(
    visitor: httpx.Client, name: str
) -> None:
    path = f"/docs/{name}"
    compressed = visitor.get(path, headers={"Accept-Encoding": "br, GZIP;q=0.5"})
    assert compressed.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in compressed.headers["vary"]
    for accepted in ("identity", "gzip;q=0, br", "", "*;q=0.000"):
        plain = visitor.get(path, headers={"Accept-Encoding": accepted})
        assert plain.status_code == 200
        assert "content-encoding" not in plain.headers
        assert int(plain.headers["content-length"]) == len(plain.content)
        assert plain.content == compressed.content
        assert plain.headers["content-type"] == compressed.headers["content-type"]
    assert compressed.headers["content-type"].startswith(("text/css", "text/javascript"))


def test_the_descriptions_are_served(visitor: httpx.Client) -> None:
    paths = visitor.get("/openapi.json").json()["paths"]
    assert {"/v1/guests", "/v1/ws-tickets", "/v1/cart", "/v1/cart/items", "/v1/products/{code}"} <= paths.keys()
    assert paths["/test"]["get"]["deprecated"]
    assert "422" not in paths["/v1/cart/items"]["post"]["responses"]
    assert visitor.get("/asyncapi.json").json()["asyncapi"] == "3.0.0"


def test_every_problem_has_a_page(visitor: httpx.Client) -> None:
    kind = visitor.get("/v1/cart").json()["type"]
    response = visitor.get(kind)
    assert response.headers["content-type"].startswith("text/html")
    assert "401" in response.text
    problem(visitor.get("/problems/nonsense"), 404, "not-found")


def test_probes_and_metrics(visitor: httpx.Client) -> None:
    assert visitor.get("/livez").status_code == visitor.get("/readyz").status_code == 200
    assert visitor.get("/livez", headers={"Host": "10.0.0.7:8080"}).status_code == 200
    assert "holdfast_edge_http_requests_total" in visitor.get("/metrics").text


def test_every_answer_has_its_headers(client: httpx.Client) -> None:
    response = client.get("/v1/cart", headers={"X-Request-ID": "my-own.id_1"})
    assert response.headers["x-request-id"] == "my-own.id_1"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["ratelimit-policy"] == '"default";q=600;w=60'
    assert response.headers["ratelimit"].startswith('"default";r=59')
    assert client.get("/v1/cart", headers={"X-Request-ID": "a b"}).headers["x-request-id"] != "a b"


def test_another_host_is_not_answered(visitor: httpx.Client) -> None:
    problem(visitor.get("/v1/products", headers={"Host": "evil.example"}), 400, "bad-request")


def test_a_hundred_changes_a_minute(client: httpx.Client) -> None:
    statuses: list[int] = []
    while len(statuses) < 400 and 429 not in statuses:
        response = client.delete("/v1/cart/items/P")
        statuses.append(response.status_code)
    assert len(statuses) > 100
    assert set(statuses[:-1]) == {202}
    problem(response, 429, "rate-limited")
    assert int(response.headers["retry-after"]) >= 1
    assert client.get("/v1/cart").status_code == 200, "reads have a limit of their own"


def test_a_cookie_that_does_not_count_is_no_obstacle_to_a_newcomer(edge: Running, visitor: httpx.Client) -> None:
    visitor.cookies.set("holdfast_session", "nonsense")
    assert visitor.post("/v1/guests").status_code == 201
    problem(visitor.post("/v1/guests", headers={"Origin": "http://evil.example"}), 403, "bad-origin")
    with edge.client("nonsense") as wrong:
        problem(wrong.post("/v1/guests"), 401, "unauthenticated")


def test_loopback_has_no_limit_by_address(visitor: httpx.Client) -> None:
    assert {visitor.get("/v1/products?limit=1").status_code for _ in range(305)} == {200}


# ---- raw requests ---------------------------------------------------------------------------------------------------


def raw(edge: Running, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", edge.port), timeout=15) as line:
        line.sendall(sent)
        found = b""
        while part := line.recv(65536):
            found += part
    return found


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", 400),
        (b"POST /v1/guests HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\nx", 400),
        (b"POST /v1/guests HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
        (
            (
                b"POST /v1/guests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (b"POST /v1/guests HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v1/guests HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v1/guests HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x1\r\n\r\nx", 400),
        (b"POST /v1/guests HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"GET /test HTTP/1.1\nHost: localhost\n\n", 400),
        (b"GET /test HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n", 400),
        (b"GET /test HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n", 400),
        (b"GET /test HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400),
        (b"GET /test HTTP/1.1\r\nHost: localhost\r\n\tX: a\r\n\r\n", 400),
        (b"GET /test HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET /test HTTP/1.1\r\nHost: localhost\r\n: empty\r\n\r\n", 400),
        (b"GET /te st HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        *(
            (
                (
                    b"POST /v1/cart/items HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n{}\r\n0\r\n\r\n"
                ),
                400,
            )
            for size in (b"", b"g", b"-2", b"+2", b"0x2", b"2 2", b"f" * 40)
        ),
    ],
)
def test_a_malformed_request_is_refused_and_its_connection_closed(edge: Running, head: bytes, status: int) -> None:
    answer = raw(edge, head + b"GET /test HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d" % status) or (status == 400 and answer.startswith(b"HTTP/1.1 501"))
    assert b"application/problem+json" in answer
    assert b"Everything is ok!" not in answer, "what follows is not read as a request"


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/readyz", "/v1/products", "/v1/products/none", "/v1/cart", "/v1/stream", "/test", "/none"]
)
def test_head_is_answered_as_get_without_the_body(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    varying = {"x-request-id", "date", "ratelimit"}
    # With `instance` in it, the body of a problem is as long as the id.
    kept = [{name: value for name, value in each.headers.items() if name not in varying} for each in (whole, head)]
    assert kept[0] == kept[1]


def test_head_asks_for_nothing_where_get_does_not(client: httpx.Client) -> None:
    response = client.head("/v1/guests")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert client.get("/livez").json() == {"status": "ok"}, "the line is still in step"


def test_a_client_that_sends_its_request_too_slowly_is_disconnected(edge: Running) -> None:
    whole = (
        f"POST /v1/cart/items HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {edge.guest()['token']}\r\n"
        "Content-Type: application/json\r\nContent-Length: 9\r\n\r\nx"
    )

    def answer(sent: str) -> bytes:
        try:
            return raw(edge, sent.encode())
        except ConnectionResetError:
            return b""  # cut off, too

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(answer, ["", "GET / HTTP/1.1\r\nHost: lo", whole])) == [b"", b"", b""]


# ---- routes of an earlier system ------------------------------------------------------------------------------------


def test_everything_is_ok(visitor: httpx.Client) -> None:
    assert visitor.get("/test").text == "Everything is ok!"


def test_only_an_administrator_migrates(edge: Running, client: httpx.Client, visitor: httpx.Client) -> None:
    problem(visitor.post("/migration"), 401, "unauthenticated")
    problem(client.post("/migration"), 403, "forbidden")


@pytest.mark.parametrize("by_header", [True, False])
def test_one_request_over_a_socket_of_its_own(edge: Running, by_header: bool) -> None:
    def ask(quantity: object) -> dict[str, Any]:
        asked = json.dumps({"product": {"product_name": "", "product_code": "P"}, "quantity": quantity})
        headers = {"User-ID": user, **({"payload": asked} if by_header else {})}
        url = f"{edge.url.replace('http', 'ws')}/cart/update-product"
        with connect(url, additional_headers=headers, proxy=None) as line:
            if not by_header:
                line.send(asked)
            answer: dict[str, Any] = json.loads(line.recv(timeout=20))
        assert answer.keys() == {"request_id", "status_code", "message", "cart"}
        return answer

    user = f"seed-{secrets.token_hex(4)}"
    assert ask(2)["cart"]["lines"][0]["quantity"] == 2
    assert ask(0)["message"] == "7 available"
    assert (ask("2")["status_code"], ask("2")["cart"]) == (400, None)
    gone = ask(-1)
    assert (gone["status_code"], gone["message"], gone["cart"]["lines"]) == (200, "removed", [])


def test_the_legacy_socket_is_not_an_http_page(visitor: httpx.Client) -> None:
    response = visitor.get("/cart/update-product", headers={"User-ID": "u"})
    problem(response, 426, "websocket-required")
    assert response.headers["upgrade"] == "websocket"


def test_requests_over_legacy_sockets_count_toward_the_users_limits(edge: Running) -> None:
    user = f"seed-{secrets.token_hex(4)}"
    token = issue(
        DEVELOPMENT_SECRET,
        user_id=user,
        roles=[],
        lifetime=timedelta(hours=1),
        now=datetime.now(UTC),
    )[0]
    asked = json.dumps({"product": {"product_code": "P"}, "quantity": -1})
    url = f"{edge.url.replace('http', 'ws')}/cart/update-product"
    with edge.client(token) as client:
        for _ in range(20):  # a slow machine refills the limit before the socket is open
            while client.delete("/v1/cart/items/P").status_code == 202:
                pass
            with connect(url, additional_headers={"User-ID": user, "payload": asked}, proxy=None) as line:
                answer = json.loads(line.recv(timeout=20))
            if answer["status_code"] == 429:
                break
    assert (answer["status_code"], answer["message"]) == (429, "more than 100 requests per minute")


# ---- profiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment", [{"HOLDFAST_LIMITS": "off", "HOLDFAST_SECRET": "s" * 40}, {}, {"HOLDFAST_LIMIT_CHANGES": "0"}]
)
def test_production_refuses_what_is_not_safe(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rest_api", "run"],
        env={"HOLDFAST_PROFILE": "production", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "HOLDFAST" in done.stderr or "limit_changes" in done.stderr
