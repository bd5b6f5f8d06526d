"""The HTTP side of the driver: each frame is one request, and each response is the frame's outcome."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httptools
import pytest

from load.driver import ShopperPool, run_closed_loop, run_open_loop
from load.schedule import RequestMix


class SmallShop(asyncio.Protocol):
    """Answers each request in two parts, by its path; `seen` has path, key and body of all."""

    def __init__(self, seen: list[tuple[str, str, dict[str, object]]]) -> None:
        self.seen = seen
        self.parser = httptools.HttpRequestParser(self)
        self.path, self.key, self.body = "", "", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path, self.body = url.decode(), b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"idempotency-key":
            self.key = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        frame = json.loads(self.body)
        self.seen.append((self.path, self.key, frame))
        if frame["product"] == "BROKEN":
            self.transport.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\noops")
            return
        if frame["product"] == "NONSENSE":
            self.transport.write(b"this is not HTTP\r\n\r\n")
            return
        body = json.dumps({"type": "held", "id": "another"}).encode()
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body[:5]))
        self.transport.write(body[5:])


@asynccontextmanager
async def pool_at(seen: list[tuple[str, str, dict[str, object]]], number: int) -> AsyncIterator[ShopperPool]:
    server = await asyncio.get_running_loop().create_server(lambda: SmallShop(seen), "127.0.0.1", 0)
    pool = ShopperPool()
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/cart"
    await pool.connect(url, [{"Authorization": f"shopper-{n}"} for n in range(number)])
    yield pool
    pool.close()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.05)  # the transports' own ends


def adds(product: str, number: int = 2) -> RequestMix:
    return RequestMix(number, [product], mixed=False, choose=lambda _: 0)


async def test_each_frame_is_one_request_of_its_shopper_and_is_answered_by_its_id() -> None:
    seen: list[tuple[str, str, dict[str, object]]] = []
    async with pool_at(seen, 2) as pool:
        measured = await run_open_loop(pool, adds("A"), [0, 0, 0, 0, 0.01], rate=100, seconds=0.05)
    assert (measured.outcomes, measured.lost) == ({"held": 5}, 0)
    assert sorted(path for path, _, _ in seen) == ["/cart/shopper-0/add"] * 3 + ["/cart/shopper-1/add"] * 2
    assert all(key == frame["id"] for _, key, frame in seen)
    assert len({key for _, key, _ in seen}) == 5


async def test_a_closed_loop_over_http() -> None:
    seen: list[tuple[str, str, dict[str, object]]] = []
    async with pool_at(seen, 2) as pool:
        measured = await run_closed_loop(pool, adds("A"), in_flight=3, seconds=0.1)
    assert measured.sent == measured.outcomes["held"] == len(seen) > 3


async def test_an_error_status_is_an_error_and_no_goodput() -> None:
    async with pool_at([], 1) as pool:
        measured = await run_open_loop(pool, adds("BROKEN", 1), [0, 0.01], rate=100, seconds=0.05)
    assert (measured.outcomes, measured.answered_in_time) == ({"error 503": 2}, 0)


async def test_a_response_that_is_not_http_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("load.driver.ANSWER_TIMEOUT_SECONDS", 0.2)
    async with pool_at([], 1) as pool:
        measured = await run_open_loop(pool, adds("NONSENSE", 1), [0, 0.05], rate=100, seconds=0.1)
    assert (measured.lost, measured.lost_connections) == (2, 1)
