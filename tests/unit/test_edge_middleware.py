"""The middlewares around every request, in the order in which the application nests them."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from rest_api.__main__ import build_state
from rest_api.app import create_app
from rest_api.http.middleware.request_limits import MAX_BODY_BYTES, MAX_HEAD_BYTES
from rest_api.protocol.problems import Problem
from rest_api.settings import EdgeSettings

JSON = {"content-type": "application/json"}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(build_state(EdgeSettings(), 8080)[0])

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError("nobody thought of this")

    @app.get("/refused")
    async def refused() -> None:
        raise Problem("not-found")

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "slug"),
    [
        ("GET", "/livez", {}, 200, None),
        ("GET", "/livez", {"headers": {"host": "elsewhere"}}, 200, None),
        ("GET", "/metrics", {}, 200, None),
        ("GET", "/metrics", {"headers": {"host": "elsewhere"}}, 400, "bad-request"),
        ("GET", "/metrics", {"headers": {"origin": "http://elsewhere"}}, 403, "forbidden"),
        ("GET", "/v1/products", {"headers": {"host": "elsewhere"}}, 400, "bad-request"),
        ("GET", "/v1/cart", {"headers": {"x": "x" * MAX_HEAD_BYTES}}, 431, "headers-too-large"),
        ("POST", "/v1/guests", {"content": b"x" * (MAX_BODY_BYTES + 1), "headers": JSON}, 413, "too-large"),
        ("POST", "/v1/guests", {"content": b"x"}, 415, "unsupported-media-type"),
        ("GET", "/refused", {}, 404, "not-found"),
        ("GET", "/broken", {}, 500, "internal"),
        ("GET", "/nowhere", {}, 404, "not-found"),
    ],
)
async def test_every_response_has_its_headers_and_every_error_is_a_problem(
    client: httpx.AsyncClient, method: str, path: str, options: dict[str, Any], status: int, slug: str | None
) -> None:
    options["headers"] = {**options.get("headers", {}), "x-request-id": "mine"}
    response = await client.request(method, path, **options)
    assert response.status_code == status
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    if slug is not None:
        problem = response.json()
        assert (problem["type"], problem["instance"]) == (f"/problems/{slug}", "mine")


async def test_an_invalid_request_id_is_replaced(client: httpx.AsyncClient) -> None:
    response = await client.get("/livez", headers={"x-request-id": "not an id"})
    assert len(response.headers["x-request-id"]) == 36


async def test_head_is_answered_as_get(client: httpx.AsyncClient) -> None:
    assert (await client.head("/livez")).status_code == 200


async def test_a_body_of_unknown_length_is_bounded(client: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * (MAX_BODY_BYTES // 2)

    response = await client.post("/v1/webhooks/payments", content=body(), headers=JSON)
    assert (response.status_code, response.json()["type"]) == (413, "/problems/too-large")


@pytest.mark.parametrize(
    ("path", "status"), [("/livez", 200), ("/readyz", 503), ("/v1/products", 400), ("/metrics", 400)]
)
async def test_orchestrators_know_a_production_edge_by_any_name(path: str, status: int) -> None:
    settings = EdgeSettings.model_validate({"profile": "production", "secret": "s" * 32, "webhook_secret": "w" * 32})
    transport = httpx.ASGITransport(app=create_app(build_state(settings, 8080)[0]), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        assert (await client.get(path, headers={"host": "10.1.2.3:8080"})).status_code == status
