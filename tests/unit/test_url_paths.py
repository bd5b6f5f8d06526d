"""Ids in paths: encoded in one place, and decoded exactly once whatever characters they have."""

import random
import string

import httpx
import pytest
from fastapi import Request

from contracts.url_paths import canonical_path, decode_segment, encode_segment
from rest_api.http.path_parameters import SegmentConvertor
from rest_api.http.request_checks import check_request
from rest_api.protocol.problems import Problem
from tests.testkit.odd_ids import ODD_IDS, RouteEntry, edge_app, edge_routes

APP = edge_app()
ROUTES = [*edge_routes(APP)]
RECORDING = edge_app()
RECEIVED: list[tuple[str, dict[str, str]]] = []


async def record_parameters(request: Request) -> None:
    RECEIVED.append((request.scope["route"].path_format, dict(request.path_params)))
    raise Problem("local-only")


RECORDING.dependency_overrides[check_request] = record_parameters
WITH_PARAMETERS = [entry for entry in ROUTES if "{" in entry.path]


@pytest.mark.parametrize("value", ODD_IDS)
def test_a_segment_is_decoded_to_what_was_encoded(value: str) -> None:
    segment = encode_segment(value)
    assert decode_segment(segment) == value
    assert canonical_path(f"/{segment}/related") == f"/{segment}/related"
    assert not set(segment) & set('/?#;&+ "<>')
    assert segment not in {".", ".."}


def test_any_text_survives_the_way_into_a_path_and_back() -> None:
    chance = random.Random(17)
    for _ in range(2000):
        text = "".join(chance.choices(string.printable[:95] + "éßж漢🙂\u200d", k=chance.randint(1, 64)))
        assert decode_segment(encode_segment(text)) == text


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/v1/products/KDP%2f601", "/v1/products/KDP%2F601"),
        ("/v1/%70roducts/%41", "/v1/products/A"),
        ("/a+b/c;d/e:f@g", "/a%2Bb/c%3Bd/e%3Af%40g"),
        ("/../x/./%2e%2E/", "/%2E%2E/x/%2E/%2E%2E/"),
        ("/%25", "/%25"),
        ("//", "//"),
    ],
)
def test_equal_paths_have_one_canonical_form(path: str, canonical: str) -> None:
    assert canonical_path(path) == canonical


@pytest.mark.parametrize("path", ["/%", "/a%2", "/%zz", "/%G0", "/%FF", "/%C0%AF", "/%ED%A0%80", "/é"])
def test_a_malformed_path_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        canonical_path(path)


def test_every_parameter_of_every_path_is_a_segment() -> None:
    others = {
        entry.path
        for entry in WITH_PARAMETERS
        if not all(isinstance(each, SegmentConvertor) for each in entry.route.param_convertors.values())
    }
    assert len(WITH_PARAMETERS) > 15
    assert others == set()


@pytest.mark.parametrize("entry", WITH_PARAMETERS, ids=lambda entry: f"{entry.method} {entry.path}")
async def test_every_route_gets_the_id_as_it_was(entry: RouteEntry) -> None:
    transport = httpx.ASGITransport(app=RECORDING, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        for value in ODD_IDS:
            values = dict.fromkeys(entry.route.param_convertors, value)
            response = await client.request(entry.method, entry.url(**values))
            assert response.status_code == 403, (value, response.text)
            assert RECEIVED.pop() == (entry.path, values)


@pytest.mark.parametrize(
    ("target", "status", "slug"),
    [
        ("/v1/products/%FF", 400, "bad-request"),
        ("/v1/products/%zz", 400, "bad-request"),
        ("/v1/products/%", 400, "bad-request"),
        ("/%E9", 400, "bad-request"),
        ("/v1/products/%00", 422, "invalid"),
        ("/v1/products/%0A", 422, "invalid"),
        ("/v1/products/caf%C3%A9", 422, "invalid"),
        ("/v1/products/%F0%9F%99%82", 422, "invalid"),
        ("/v1/products/" + "x" * 65, 422, "invalid"),
        ("/v1/products//", 404, "not-found"),
        ("//v1/products", 404, "not-found"),
        ("/v1/products?q=%FF", 400, "bad-request"),
        ("/v1/products?q=%ED%A0%80", 400, "bad-request"),
        ("/v1/products?after=%FF", 400, "bad-cursor"),
        ("/v1/products?q=a%00b", 422, "invalid"),
        ("/v1/products?category=%00", 422, "invalid"),
        ("/v1/products?unknown=%00", 422, "invalid"),
        ("/v1/products?" + "&".join(f"a{number}=1" for number in range(101)), 400, "bad-request"),
    ],
)
async def test_a_malformed_target_is_refused_with_a_reason(target: str, status: int, slug: str) -> None:
    transport = httpx.ASGITransport(app=APP, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        url = httpx.URL("http://127.0.0.1:8080").copy_with(raw_path=target.encode())
        response = await client.get(url)
    assert (response.status_code, response.json()["type"]) == (status, f"/problems/{slug}")
    assert response.json().get("detail") or response.json().get("errors") or status == 404
