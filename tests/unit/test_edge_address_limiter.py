"""The limits per address, and the exemption of loopback in the local profile."""

from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from infrastructure.process import clock
from rest_api.app import create_app
from rest_api.protocol.problems import Problem
from rest_api.security.address_limiter import MAX_ADDRESSES, AddressLimiter, client_network
from rest_api.settings import EdgeSettings
from tests.testkit.edge_session import make_app_state

FAR, ALSO_FAR = "203.0.113.9", "2001:db8::9"


def scope(address: str) -> dict[str, Any]:
    return {"type": "websocket", "client": (address, 40000), "state": {}, "headers": []}


def open_sockets(limiter: AddressLimiter, address: str, number: int, lines: ExitStack) -> list[bool]:
    return [lines.enter_context(limiter.count_socket(scope(address))) for _ in range(number)]


def test_an_address_may_open_200_sockets() -> None:
    limiter = AddressLimiter(EdgeSettings())
    with ExitStack() as lines:
        assert open_sockets(limiter, FAR, 201, lines) == [True] * 200 + [False]
        assert open_sockets(limiter, ALSO_FAR, 1, lines) == [True]
        assert open_sockets(limiter, "127.0.0.1", 500, lines) == [True] * 500
        assert open_sockets(limiter, "::1", 500, lines) == [True] * 500
    with ExitStack() as lines:
        assert open_sockets(limiter, FAR, 1, lines) == [True], "they were given back"
    assert not limiter._sockets


def test_disabled_limits_count_nothing() -> None:
    with ExitStack() as lines:
        assert all(open_sockets(AddressLimiter(EdgeSettings(limits="off")), FAR, 300, lines))


def test_the_number_of_tracked_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rest_api.security.address_limiter.MAX_ADDRESSES", 100)
    assert MAX_ADDRESSES == 50_000
    limiter = AddressLimiter(EdgeSettings())
    for number in range(1000):
        limiter.count_request(from_address(f"198.51.100.{number}"))
    assert len(limiter._addresses) == 100


def from_address(address: str) -> HTTPConnection:
    return HTTPConnection({"type": "http", "client": (address, 1), "state": {}})


async def test_an_address_without_a_user_may_send_300_requests_per_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    instant = clock.now()
    monkeypatch.setattr(clock, "now", lambda: instant)  # however busy the machine is
    app = create_app(make_app_state())

    def client(address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 40000))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost:8080")

    async with client(FAR) as far, client(ALSO_FAR) as other, client("127.0.0.1") as here:
        answers = []
        for _ in range(300):
            answers.append(await far.post("/v1/guests"))
            far.cookies.clear()  # with it, they would be requests of a user
        assert {answer.status_code for answer in answers} == {201}
        refused = await far.post("/v1/guests")
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["ratelimit-policy"] == '"default";q=300;w=60'
        assert refused.headers["ratelimit"].startswith('"default";r=0;')
        spoofed = await far.post("/v1/guests", headers={"X-Forwarded-For": "198.51.100.7", "X-Real-IP": "198.51.100.7"})
        assert spoofed.status_code == 429, "nobody gets another address by saying so"
        assert (await other.post("/v1/guests")).status_code == 201
        for _ in range(400):
            assert (await here.post("/v1/guests")).status_code == 201
            here.cookies.clear()
        bearer = {"Authorization": f"Bearer {answers[0].json()['token']}"}
        known = await far.post("/v1/guests", headers=bearer)
        assert known.status_code == 201, "who has a user is counted as that"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, network: str) -> None:
    assert client_network(address) == network


def test_fifty_addresses_of_one_ipv6_network_share_one_limit() -> None:
    limiter = AddressLimiter(EdgeSettings(limit_anonymous=1))
    limiter.count_request(from_address("2001:db8:1:2::1"))
    for number in range(2, 52):
        with pytest.raises(Problem, match="more than 1 requests"):
            limiter.count_request(from_address(f"2001:db8:1:2::{number:x}"))
    limiter.count_request(from_address("2001:db8:1:3::1"))
