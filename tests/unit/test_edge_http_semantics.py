"""HTTP as clients send it, on every route of the edge: the routes are found by asking the application."""

import gzip
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import httpx
import pytest
from pydantic import BaseModel
from starlette.responses import Response

from contracts.ids import uuid7
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from infrastructure.security.tokens import issue
from rest_api.http.middleware.request_limits import MAX_BODY_BYTES
from rest_api.http.request_checks import CONDITIONAL_PATHS
from tests.testkit.odd_ids import RouteEntry, edge_app, edge_routes

APP = edge_app()
JSON = {"content-type": "application/json"}
ROUTES = [*edge_routes(APP)]
ROLES = ("admin", "service", "shopper", "support")
CHANGES = [entry for entry in ROUTES if entry.method != "GET"]
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
each_route = pytest.mark.parametrize("entry", ROUTES, ids=lambda entry: f"{entry.method} {entry.path}")


@APP.get("/dated")
async def dated() -> Response:
    return Response("as it is", headers={"ETag": '"1.1"', "Last-Modified": "Tue, 10 Nov 2026 08:00:00 GMT"})


@APP.get("/plain")
async def plain() -> Response:
    return Response("as it is")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=APP, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        yield client


async def send(client: httpx.AsyncClient, entry: RouteEntry, **options: Any) -> httpx.Response:
    return await client.request(entry.method, entry.url(), **options)


def slug(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert "accept" in response.headers["vary"].lower()
    return str(response.json()["type"]).removeprefix("/problems/")


BODIES: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("gzip", gzip.compress(b"{}"), {**JSON, "content-encoding": "gzip"}, 415, "unsupported-media-type"),
    ("br", b"{}", {**JSON, "content-encoding": "br"}, 415, "unsupported-media-type"),
    ("two codings", b"{}", {**JSON, "content-encoding": "identity, GZIP"}, 415, "unsupported-media-type"),
    ("no type", b"{}", {}, 415, "unsupported-media-type"),
    ("form", b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported-media-type"),
    ("text", b"{}", {"content-type": "text/plain"}, 415, "unsupported-media-type"),
    ("json by suffix", b"{}", {"content-type": "application/ld+json"}, 415, "unsupported-media-type"),
    ("latin-1", b"{}", {"content-type": "application/json; charset=iso-8859-1"}, 415, "unsupported-media-type"),
    ("utf-16", b"{}", {"content-type": 'application/json;charset="utf-16"'}, 415, "unsupported-media-type"),
    ("a part", b"{}", {**JSON, "content-range": "bytes 0-1/5"}, 400, "bad-request"),
    ("not utf-8", b'{"a":"\xff"}', JSON, 400, "bad-request"),
    ("utf-16 without saying so", '{"a":1}'.encode("utf-16"), JSON, 400, "bad-request"),
    ("not json", b"{", JSON, 400, "bad-request"),
    ("nan", b'{"a":NaN}', JSON, 422, "invalid"),
    ("a large number", b'{"a":1e999}', JSON, 422, "invalid"),
    ("a name twice", b'{"quantity":1,"quantity":2}', JSON, 400, "bad-request"),
    ("deep", b"[" * 1000 + b"]" * 1000, JSON, 400, "bad-request"),
    ("nul", b'{"a":"\\u0000"}', JSON, 422, "invalid"),
    ("half a pair", b'{"a":["\\ud800"]}', JSON, 422, "invalid"),
    ("an unknown field", b'{"surplus":1}', JSON, 422, "invalid"),
    ("a list", b'[{"surplus":1}]', JSON, 422, "invalid"),
    ("an expectation", b"{}", {**JSON, "expect": "200-ok"}, 417, "expectation-failed"),
    ("too large", b" " * (MAX_BODY_BYTES + 1), JSON, 413, "too-large"),
]


@each_route
async def test_every_route_refuses_bodies_that_are_not_plain_json(client: httpx.AsyncClient, entry: RouteEntry) -> None:
    signed = entry.path == "/v1/webhooks/payments"  # it takes fields that it does not know, after the signature
    lifetime = timedelta(minutes=5)
    token, _ = issue(DEVELOPMENT_SECRET, user_id=uuid7(), roles=ROLES, lifetime=lifetime, now=datetime.now(UTC))
    credentials = {"authorization": f"Bearer {token}"}
    for name, body, headers, status, kind in BODIES:
        if signed and name in {"an unknown field", "a list"}:
            status, kind = 401, "bad-signature"  # noqa: PLW2901 - the exception of this route
        response = await send(client, entry, content=body, headers={**headers, **credentials})
        assert (response.status_code, slug(response)) == (status, kind), name
        if status == 415:
            expected = (
                ("accept-encoding", "identity") if "content-encoding" in headers else ("accept", JSON["content-type"])
            )
            assert response.headers[expected[0]] == expected[1]
        if name == "nul":
            assert response.json()["errors"][0]["pointer"] == "/a"


@each_route
async def test_every_route_reads_json_however_it_is_announced(client: httpx.AsyncClient, entry: RouteEntry) -> None:
    outcomes = set()
    for body, headers in (
        (b"{}", JSON),
        (b"\xef\xbb\xbf{}", JSON),
        (b"{}", {"content-type": 'Application/JSON ; Charset="UTF-8"'}),
        (b"{}", {**JSON, "content-encoding": "identity", "te": "trailers", "expect": "100-Continue"}),
        (b"{}", {**JSON, "accept": "image/png", "accept-encoding": "identity;q=0, br", "range": "bytes=0-0"}),
    ):
        response = await send(client, entry, content=body, headers=headers)
        assert response.status_code not in {400, 406, 413, 415, 417, 206, 416, 500}, (body, headers, response.text)
        assert "content-encoding" not in response.headers
        outcomes.add(response.status_code)
    assert len(outcomes) == 1


@each_route
async def test_an_empty_body_needs_no_type(client: httpx.AsyncClient, entry: RouteEntry) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    for options in ({}, {"headers": {"content-type": "text/plain"}}, {"content": nothing()}):
        assert (await send(client, entry, **options)).status_code not in {400, 415, 500}


async def test_a_field_with_one_value_is_sent_once(client: httpx.AsyncClient) -> None:
    for name in ("authorization", "content-type", "idempotency-key", "holdfast-signature", "if-modified-since"):
        response = await client.get("/livez", headers=[(name, "a"), (name, "b")])
        assert (response.status_code, slug(response)) == (400, "bad-request")
        assert name in response.json()["detail"]


def test_every_body_is_closed() -> None:
    """Unknown fields are errors in every model of every request, the inner ones included."""
    opened, seen = set(), set()

    def visit(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind in seen:
                return
            seen.add(kind)
            if kind.model_config.get("extra") != "forbid":
                opened.add(f"{kind.__module__}.{kind.__qualname__}")
            for field in kind.model_fields.values():
                visit(field.annotation)
        for each in get_args(kind):
            visit(each)

    for entry in ROUTES:
        if entry.route.body_field is not None:
            visit(entry.route.body_field.field_info.annotation)
    assert len(seen) > 10
    assert opened == set()


def _may_be(pattern: str, path: str) -> bool:
    """Return whether a path without parameters also matches a route with one in its place."""
    return "{" not in path and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path) is not None


@each_route
async def test_every_route_answers_every_method(client: httpx.AsyncClient, entry: RouteEntry) -> None:
    allowed = {each.method for each in ROUTES if each.path == entry.path or _may_be(each.path, entry.path)}
    if "GET" in allowed:
        allowed.add("HEAD")
    options = await client.options(entry.url())
    assert options.status_code == 204
    assert set(options.headers["allow"].split(", ")) == allowed
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - allowed:
        response = await client.request(method, entry.url())
        assert (response.status_code, response.headers["allow"]) == (405, options.headers["allow"]), method
        assert method == "HEAD" or slug(response) == "method-not-allowed"


async def test_options_of_the_server_and_of_unknown_paths(client: httpx.AsyncClient) -> None:
    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "OPTIONS", "path": "*", "raw_path": b"*", "query_string": b""}
    await APP({**scope, "headers": [(b"host", b"127.0.0.1:8080")]}, keep, keep)  # type: ignore[arg-type]  # no body is read
    assert sent[0]["status"] == 204
    assert dict(sent[0]["headers"])[b"allow"] == b"GET, HEAD, POST, PUT, PATCH, DELETE"
    assert (await client.options("/nowhere")).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200),
        ([("if-none-match", '"1.1"')], 304),
        ([("if-none-match", 'W/"1.1"')], 304),
        ([("if-none-match", '"0", W/"1.1", "2"')], 304),
        ([("if-none-match", '"0"'), ("if-none-match", '"1.1"')], 304),
        ([("if-none-match", "*")], 304),
        ([("if-none-match", '"0"')], 200),
        ([("if-none-match", "1.1")], 200),
        ([("if-none-match", "")], 200),
        ([("if-match", '"1.1"')], 200),
        ([("if-match", "*")], 200),
        ([("if-match", '"0"'), ("if-match", '"1.1"')], 200),
        ([("if-match", 'W/"1.1"')], 412),
        ([("if-match", '"0"')], 412),
        ([("if-match", '"1.1"'), ("if-none-match", '"1.1"')], 304),
        ([("if-match", '"0"'), ("if-none-match", '"1.1"')], 412),
        ([("if-modified-since", "Tue, 10 Nov 2026 08:00:00 GMT")], 304),
        ([("if-modified-since", "Tue, 10 Nov 2026 07:59:59 GMT")], 200),
        ([("if-modified-since", "yesterday")], 200),
        ([("if-modified-since", "Tue, 10 Nov 2026 08:00:00 GMT"), ("if-none-match", '"0"')], 200),
        ([("if-unmodified-since", "Tue, 10 Nov 2026 08:00:00 GMT")], 200),
        ([("if-unmodified-since", "Tue, 10 Nov 2026 07:59:59 GMT")], 412),
        ([("if-unmodified-since", "Tue, 10 Nov 2026 07:59:59 GMT"), ("if-match", '"1.1"')], 200),
        ([("range", "bytes=0-1")], 200),
        ([("range", "bytes=0-1"), ("if-range", '"1.1"')], 200),
    ],
)
async def test_conditions_of_a_read(client: httpx.AsyncClient, headers: list[tuple[str, str]], status: int) -> None:
    for method in ("GET", "HEAD"):
        response = await client.request(method, "/dated", headers=headers)
        assert response.status_code == status
        assert response.headers.get("etag", '"1.1"') == '"1.1"'
        if status == 304:
            assert response.content == b""
            assert not [name for name in response.headers if name.startswith("content-") and "security" not in name]
            assert response.headers["etag"] == '"1.1"'
        if status == 412 and method == "GET":
            assert slug(response) == "precondition-failed"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/plain", {"if-none-match": "*"}, 304),
        ("/plain", {"if-none-match": '"1"'}, 200),
        ("/plain", {"if-match": "*"}, 200),
        ("/plain", {"if-match": '"1"'}, 412),
        ("/plain", {"if-modified-since": "Tue, 10 Nov 2026 08:00:00 GMT"}, 200),
        ("/nowhere", {"if-none-match": "*"}, 404),
        ("/nowhere", {"if-match": '"1"'}, 404),
        ("/v1/cart", {"if-match": '"1"'}, 401),
    ],
)
async def test_conditions_where_there_is_no_tag_or_no_resource(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], status: int
) -> None:
    assert (await client.get(path, headers=headers)).status_code == status


@pytest.mark.parametrize("path", ["/", "/static/shop.js", "/static/icon.svg", "/analytics", "/docs", "/docs/start.js"])
async def test_files_are_sent_again_only_when_they_changed(client: httpx.AsyncClient, path: str) -> None:
    first = await client.get(path)
    assert (first.status_code, first.headers["accept-ranges"]) == (200, "none")
    for name, value in (
        ("if-none-match", first.headers["etag"]),
        ("if-modified-since", first.headers["last-modified"]),
    ):
        again = await client.get(path, headers={name: value})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    part = await client.get(path, headers={"range": "bytes=0-0"})
    assert (part.status_code, part.content) == (200, first.content)


@pytest.mark.parametrize("entry", CHANGES, ids=lambda entry: f"{entry.method} {entry.path}")
async def test_no_change_is_made_under_a_condition_that_is_not_checked(
    client: httpx.AsyncClient, entry: RouteEntry
) -> None:
    readable = any(each.method == "GET" and each.path == entry.path for each in ROUTES)
    for headers in ({"if-match": '"1"'}, {"if-match": "*"}):
        response = await send(client, entry, headers=headers)
        if entry.path in CONDITIONAL_PATHS:  # checked by the account service
            assert slug(response) == "unauthenticated"
            continue
        assert (response.status_code, slug(response)) == (412, "precondition-failed")
    for value in ("*", '"1"'):
        response = await send(client, entry, headers={"if-none-match": value})
        assert (response.status_code == 412) is readable


@each_route
async def test_errors_are_pages_for_browsers_and_documents_for_programs(
    client: httpx.AsyncClient, entry: RouteEntry
) -> None:
    method = "BREW"  # which no route has
    for headers, is_page in (
        (BROWSER, True),
        ({"accept": "text/html"}, True),
        ([("accept", "text/html;q=0.9"), ("accept", "*/*;q=0.1")], True),
        ({"accept": "*/*"}, False),
        ({"accept": "application/json"}, False),
        ({"accept": "text/html;q=0.5, application/problem+json"}, False),
        ({}, False),
    ):
        response = await client.request(method, entry.url(), headers=headers)
        assert response.status_code == 405
        assert response.headers["vary"].lower().split(", ").count("accept") == 1
        assert response.headers["content-length"] == str(len(response.content))
        if is_page:
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            assert '<a href="/">To the shop</a>' in response.text
            assert "405 Method not allowed" in response.text
            assert response.headers["x-request-id"] in response.text
        else:
            assert slug(response) == "method-not-allowed"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "text"),
    [
        ("GET", "/wrong", {}, 404, "The resource does not exist"),
        ("GET", "/wrong/%3Cscript%3E?q=<script>", {}, 404, "The resource does not exist"),
        ("GET", "/%zz", {}, 400, "must be followed by two hexadecimal digits"),
        ("GET", "/", {"host": "elsewhere"}, 400, "does not go by that Host"),
        ("GET", "/v1/orders", {}, 401, "Get a token from POST /v1/guests"),
        ("GET", "/v1/products?limit=0", {}, 422, "<code>/limit</code>"),
        ("GET", "/v1/products?after=x", {}, 400, "Take <code>after</code> from the previous page"),
        ("GET", "/problems/none", {}, 404, "/problems/ lists them"),
        ("GET", "/v1/stream", {}, 426, "Connect with a WebSocket client"),
        ("GET", "/static/none.js", {}, 404, "Check the address"),
        ("GET", "/x", {"x": "y" * 20_000}, 431, "Send fewer or smaller headers"),
    ],
)
async def test_the_page_of_an_error_says_what_happened_and_what_to_do(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], status: int, text: str
) -> None:
    response = await client.request(method, path, headers={**BROWSER, **headers})
    assert response.status_code == status
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert text in response.text
    assert "What to do" in response.text
    assert not re.search(r"<script|\{[a-z]", response.text)
