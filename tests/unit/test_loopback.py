"""The loopback interface: hosts that are on it, and requests that the helpers of a local shop answer."""

import asyncio
import socket
from typing import Any

import pytest

from infrastructure.process import loopback
from infrastructure.process.health import HealthServer
from infrastructure.process.settings import Settings
from notification_service.settings import Settings as NoticeSettings
from order_service.payment.provider.settings import Settings as ProviderSettings
from rest_api.settings import EdgeSettings

LOOPBACK = ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
ELSEWHERE = [
    "0.0.0.0",
    "::",
    "",
    "0",
    "192.168.1.20",
    "10.0.0.1",
    "::ffff:10.0.0.1",
    "fe80::1%lo",
    "no.such.invalid",
    "a b",
]
KINDS: list[type[Settings]] = [EdgeSettings, NoticeSettings, ProviderSettings]
HOSTS = [(kind, name) for kind in KINDS for name in kind.model_fields if name.endswith("_host")]
SAFE = {"secret": "s" * 32, "webhook_secret": "w" * 32, "provider_key": "k" * 32}


def test_every_address_to_listen_on_is_known_here() -> None:
    assert {name for _, name in HOSTS} == {"http_host", "health_host", "provider_host"}


@pytest.mark.parametrize(("kind", "name"), HOSTS, ids=str)
@pytest.mark.parametrize("host", LOOPBACK)
def test_the_local_profile_listens_on_loopback(kind: type[Settings], name: str, host: str) -> None:
    assert getattr(kind(**{name: host}), name) == host  # type: ignore[arg-type]  # a table


@pytest.mark.parametrize(("kind", "name"), HOSTS, ids=str)
@pytest.mark.parametrize("host", ELSEWHERE)
def test_the_local_profile_listens_nowhere_else(kind: type[Settings], name: str, host: str) -> None:
    with pytest.raises(ValueError, match=f"HOLDFAST_{name.upper()} is .*HOLDFAST_PROFILE=production"):
        kind(**{name: host})  # type: ignore[arg-type]  # a table


def test_production_listens_where_it_is_told_to() -> None:
    assert EdgeSettings(profile="production", http_host="0.0.0.0", **SAFE).http_host == "0.0.0.0"  # type: ignore[arg-type]


def test_a_name_counts_by_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*addresses: str) -> Any:
        return lambda *_, **__: [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve("127.0.0.1", "::1"))
    assert loopback.resolves_to_loopback("shop.test")
    monkeypatch.setattr(socket, "getaddrinfo", resolve("127.0.0.1", "10.0.0.1"))
    assert not loopback.resolves_to_loopback("shop.test")


@pytest.mark.parametrize(
    ("hosts", "origins", "answered"),
    [
        (["127.0.0.1:8080"], [], True),
        (["localhost"], [], True),
        (["LocalHost:1"], [], True),
        (["[::1]:9"], [], True),
        (["[::1]"], [], True),
        (["localhost:80"], ["http://localhost:80"], True),
        ([], [], False),
        (["localhost", "localhost"], [], False),
        (["evil.example"], [], False),
        (["evil.example:8080"], [], False),
        (["localhost.evil.example"], [], False),
        (["127.0.0.1.evil.example"], [], False),
        (["127.0.0.1@evil.example"], [], False),
        (["localhost:80@evil.example"], [], False),
        (["192.168.1.20:8080"], [], False),
        (["0.0.0.0:8080"], [], False),
        ([""], [], False),
        (["localhost."], [], False),
        (["localhost:80"], ["http://evil.example"], False),
        (["localhost:80"], ["http://localhost:81"], False),
        (["localhost:80"], ["null"], False),
        (["localhost:80"], ["http://localhost:80", "http://evil.example"], False),
    ],
)
def test_only_programs_of_this_machine_and_own_pages_are_answered(
    hosts: list[str], origins: list[str], answered: bool
) -> None:
    assert (loopback.refusal_of_request(hosts, origins) is None) is answered


def test_a_server_for_orchestrators_is_found_by_any_name_but_not_by_pages() -> None:
    assert loopback.refusal_of_request(["10.2.3.4:9000"], [], any_host=True) is None
    assert loopback.refusal_of_request(["10.2.3.4:9000"], ["http://evil.example"], any_host=True) is not None


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("http://127.0.0.1:8080/v1/webhooks/payments", True),
        ("http://[::1]:1/", True),
        ("https://localhost/x", True),
        ("http://evil.example/", False),
        ("http://127.0.0.1@evil.example/", False),
        ("http://localhost@127.0.0.1/", False),
        ("http://169.254.169.254/latest", False),
        ("http://0.0.0.0:1/", False),
        ("http://2130706433/", False),
        ("http://[::1/", False),
        ("http:///x", False),
    ],
)
def test_a_url_on_this_machine(url: str, inside: bool) -> None:
    assert loopback.is_loopback_url(url) is inside


async def ask(port: int, *headers: str, path: str = "/metrics") -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([f"GET {path} HTTP/1.1", *headers, "", ""]).encode())
    status = (await reader.readline()).split()[1]
    writer.close()
    return int(status)


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/"])
async def test_a_health_server_answers_no_page(path: str) -> None:
    server = HealthServer("127.0.0.1", 0, live=lambda: None, ready=lambda: None, pages=lambda _: None)
    await server.start()
    try:
        known = 404 if path == "/" else 200
        assert await ask(server.port, f"Host: 127.0.0.1:{server.port}", path=path) == known
        assert await ask(server.port, "host:localhost", path=path) == known
        for headers in (["Host: evil.example"], [], ["Host: localhost", "Host: evil.example"]):
            assert await ask(server.port, *headers, path=path) == 403
        assert await ask(server.port, "Host: localhost", "Origin: http://evil.example", path=path) == 403
    finally:
        await server.stop()
