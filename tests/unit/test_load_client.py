"""The shopper on a real socket: a small shop that drops connections, forgets requests and lets tokens expire."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSCloseCode, WSMsgType, web

from load.client import Shopper
from load.http_client import ConnectionRejectedError, Guest, ShopClient, ShopUnavailableError
from load.protocol import SUBPROTOCOL

Line = Callable[[web.WebSocketResponse, web.Request], Awaitable[None]]
GUEST = Guest("user-1", "first-token", "2026-11-21T03:24:41.118Z")


@asynccontextmanager
async def edge(*lines: Line) -> AsyncIterator[ShopClient]:
    """A shop whose first sockets go as `lines` say, and all others as the last of them."""
    calls = 0

    async def stream(request: web.Request) -> web.WebSocketResponse:
        nonlocal calls
        calls += 1
        socket = web.WebSocketResponse(protocols=[SUBPROTOCOL])
        await socket.prepare(request)
        await lines[min(calls, len(lines)) - 1](socket, request)
        return socket

    async def guests(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer first-token"
        return web.json_response({"user_id": "user-1", "token": "second-token", "expires_at": "later"}, status=201)

    app = web.Application()
    app.add_routes([web.get("/v1/stream", stream), web.post("/v1/guests", guests)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with ShopClient(f"http://127.0.0.1:{runner.addresses[0][1]}", chance=lambda: 0.0) as shop:
            yield shop
    finally:
        await runner.cleanup()


async def tell(socket: web.WebSocketResponse, *frames: dict[str, Any]) -> None:
    for frame in frames:
        await socket.send_str(json.dumps(frame))


def cart(version: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": "cart", "version": version, "expires_at": None, "lines": [], "pending": [], **more}


def held(id_: str, version: int) -> dict[str, Any]:
    return {"type": "held", "id": id_, "product": "A", "quantity": 1, "line_quantity": version, "version": version}


async def grant_everything(socket: web.WebSocketResponse, _: web.Request) -> None:
    await tell(socket, {"type": "welcome"}, cart())
    version = 0
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            break
        version += 1
        await tell(socket, held(json.loads(message.data)["id"], version))


async def test_an_add_is_answered() -> None:
    async with edge(grant_everything) as shop, Shopper(shop, GUEST) as shopper:
        answer = await shopper.request("add", product="A", quantity=1)
        assert answer["type"] == "held"
        assert (shopper.state.version, shopper.state.lines) == (1, {"A": 1})


async def test_the_credentials_and_the_subprotocol_are_sent() -> None:
    seen: dict[str, str | None] = {}

    async def look(socket: web.WebSocketResponse, request: web.Request) -> None:
        seen.update(token=request.headers["Authorization"], protocol=socket.ws_protocol)
        await grant_everything(socket, request)

    async with edge(look) as shop, Shopper(shop, GUEST):
        assert seen == {"token": "Bearer first-token", "protocol": SUBPROTOCOL}


async def test_after_a_disconnect_a_client_resumes_and_repeats_unknown_requests() -> None:
    resumed: list[dict[str, Any]] = []

    async def cut(socket: web.WebSocketResponse, _: web.Request) -> None:
        await tell(socket, {"type": "welcome"}, cart())
        first = json.loads((await socket.receive()).data)
        await socket.receive()
        await tell(socket, {"type": "pending", "id": first["id"]})
        await socket.close(code=WSCloseCode.SERVICE_RESTART)

    async def remember(socket: web.WebSocketResponse, _: web.Request) -> None:
        await tell(socket, {"type": "welcome"}, cart(1))
        resume = json.loads((await socket.receive()).data)
        resumed.append(resume)
        await tell(
            socket,
            cart(1, id=resume["id"], lines=[{"product": "A", "quantity": 1}]),
            {**held("a1", 1), "replayed": True},
            {"type": "resumed", "id": resume["id"], "pending": [], "unknown": ["b2"]},
        )
        again = json.loads((await socket.receive()).data)
        await tell(socket, held(again["id"], 2))
        await socket.receive()

    async with edge(cut, remember) as shop, Shopper(shop, GUEST, chance=lambda: 0.0) as shopper:
        answers = await asyncio.gather(
            shopper.request("add", id_="a1", product="A", quantity=1),
            shopper.request("add", id_="b2", product="A", quantity=1),
        )
        assert [(answer["id"], answer["version"]) for answer in answers] == [("a1", 1), ("b2", 2)]
        assert [(frame["type"], frame["unresolved"]) for frame in resumed] == [("resume", ["a1", "b2"])]


async def test_a_shop_that_hangs_up_on_the_resume_is_called_again() -> None:
    async def overloaded(socket: web.WebSocketResponse, _: web.Request) -> None:
        await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"retry_after=0")

    async def cut(socket: web.WebSocketResponse, _: web.Request) -> None:
        await tell(socket, {"type": "welcome"}, cart())
        await socket.receive()
        await socket.close(code=WSCloseCode.SERVICE_RESTART)

    async def answer_all(socket: web.WebSocketResponse, _: web.Request) -> None:
        await tell(socket, {"type": "welcome"}, cart())
        resume = json.loads((await socket.receive()).data)
        await tell(socket, {"type": "resumed", "id": resume["id"], "pending": [], "unknown": resume["unresolved"]})
        await tell(socket, held(json.loads((await socket.receive()).data)["id"], 1))
        await socket.receive()

    lines = [cut, *[overloaded] * 5, answer_all]
    async with edge(*lines) as shop, Shopper(shop, GUEST, chance=lambda: 0.0) as shopper:
        assert (await shopper.request("add", product="A", quantity=1))["type"] == "held"


async def test_an_expired_token_is_renewed_before_the_next_call() -> None:
    async def expire(socket: web.WebSocketResponse, _: web.Request) -> None:
        await socket.close(code=4401)

    seen: list[str] = []

    async def look(socket: web.WebSocketResponse, request: web.Request) -> None:
        seen.append(request.headers["Authorization"])
        await grant_everything(socket, request)

    async with edge(expire, look) as shop, Shopper(shop, GUEST, chance=lambda: 0.0):
        assert seen == ["Bearer second-token"]


async def test_a_permanently_closed_connection_ends_the_waiting_requests() -> None:
    async def forbid(socket: web.WebSocketResponse, _: web.Request) -> None:
        await tell(socket, {"type": "welcome"}, cart())
        await socket.receive()
        await socket.close(code=4403)

    async with edge(forbid) as shop, Shopper(shop, GUEST) as shopper:
        with pytest.raises(ConnectionRejectedError, match="4403"):
            await shopper.request("add", product="A", quantity=1)


async def test_no_shop_is_said_in_one_sentence() -> None:
    async with ShopClient("http://127.0.0.1:1") as shop:
        with pytest.raises(ShopUnavailableError, match=r"no shop answers at http://127\.0\.0\.1:1 "):
            await shop.create_guest()
