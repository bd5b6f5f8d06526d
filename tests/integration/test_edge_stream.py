"""`GET /v1/stream` over real servers: who may in, what comes and goes, how it ends."""

import asyncio
import contextlib
import json
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from contracts.cart import RESPONSES
from contracts.inventory import PRODUCTS, STOCK
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from infrastructure.security.tokens import issue
from rest_api.protocol.server_frames import Server
from tests.testkit.edge import SILENT, Running, frame
from tests.testkit.fake_orders import SCARCE

SERVER = TypeAdapter[Any](Server)


@asynccontextmanager
async def stream(edge: Running, token: str | None = None, **more: Any) -> AsyncIterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= more.pop("headers", {})
    url = f"{edge.url.replace('http', 'ws')}/v1/stream"
    async with connect(url, additional_headers=headers, proxy=None, **more) as line:
        yield line


@asynccontextmanager
async def shopper(edge: Running, token: str | None = None) -> AsyncIterator[ClientConnection]:
    """A socket past its welcome and its cart."""
    async with stream(edge, token or edge.guest()["token"]) as line:
        assert (await receive(line))["type"] == "welcome"
        assert (await receive(line))["type"] == "cart"
        yield line


async def receive(line: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        text = await line.recv()
    SERVER.validate_json(text, strict=True)
    return frame(text)


async def send(line: ClientConnection, **sent: Any) -> None:
    await line.send(json.dumps(sent))


async def closed(line: ClientConnection) -> tuple[int, str]:
    """The code and the reason the server closes with, after whatever it still says."""
    try:
        async with asyncio.timeout(20):
            while True:
                await line.recv()
    except ConnectionClosed:
        assert line.close_code is not None
        return line.close_code, line.close_reason or ""


async def refused(edge: Running, **more: Any) -> tuple[int, str]:
    """The status and the problem of an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with stream(edge, **more):
            pass
    response = caught.value.response
    body = frame(bytes(response.body or b"{}"))
    assert response.headers["content-type"] == "application/problem+json"
    assert body["instance"] == response.headers["x-request-id"]
    return response.status_code, body["type"].removeprefix("/problems/")


def signed(edge: Running, *, ago: timedelta = timedelta(0), secret: str | None = None) -> str:
    """A token that was issued some time ago for an hour."""
    key = secret or DEVELOPMENT_SECRET
    return issue(key, user_id="u1", roles=[], lifetime=timedelta(hours=1), now=datetime.now(UTC) - ago)[0]


# ---- who may in -----------------------------------------------------------------------------------------------------


async def test_a_bearer_needs_no_origin_and_is_served_its_protocol(edge: Running) -> None:
    async with stream(edge, edge.guest()["token"], subprotocols=["holdfast.v1"]) as line:
        assert line.subprotocol == "holdfast.v1"


async def test_without_a_subprotocol_it_is_served_the_same(edge: Running) -> None:
    async with stream(edge, edge.guest()["token"]) as line:
        assert line.subprotocol is None
        assert (await receive(line))["type"] == "welcome"


async def test_an_unknown_protocol_beside_the_known_one_does_no_harm(edge: Running) -> None:
    async with stream(edge, edge.guest()["token"], subprotocols=["other.v9", "holdfast.v1"]) as line:
        assert line.subprotocol == "holdfast.v1"


async def test_only_unknown_protocols_are_refused(edge: Running) -> None:
    assert await refused(edge, token=edge.guest()["token"], subprotocols=["other.v9"]) == (400, "bad-request")


async def test_the_negotiation_offers_no_compression(edge: Running) -> None:
    async with stream(edge, edge.guest()["token"], compression="deflate") as line:
        assert not line.protocol.extensions


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_the_cookie_with_the_shops_own_origin(edge: Running, name: str) -> None:
    headers = {"Cookie": f"holdfast_session={edge.guest()['token']}"}
    async with stream(edge, headers=headers, origin=f"http://{name}:{edge.port}") as line:
        assert (await receive(line))["type"] == "welcome"


@pytest.mark.parametrize(
    "origin",
    [None, "null", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://localhost"],
)
async def test_the_cookie_with_no_origin_or_anothers(edge: Running, origin: str | None) -> None:
    headers = {"Cookie": f"holdfast_session={edge.guest()['token']}"}
    said = origin and origin.format(port=edge.port)
    assert await refused(edge, headers=headers, origin=said) == (403, "bad-origin")


async def test_an_origin_that_is_sent_must_be_allowed_whatever_the_credentials(edge: Running) -> None:
    token = edge.guest()["token"]
    assert await refused(edge, token=token, origin="http://evil.example") == (403, "bad-origin")
    ticket = ticket_of(edge)
    offered = ["holdfast.v1", f"ticket.{ticket}"]
    assert await refused(edge, subprotocols=offered, origin="http://evil.example") == (403, "bad-origin")
    async with stream(edge, subprotocols=offered) as line:
        assert line.subprotocol == "holdfast.v1", "a refused origin uses no ticket up"


def ticket_of(edge: Running) -> str:
    with edge.client(edge.guest()["token"]) as client:
        return str(client.post("/v1/ws-tickets").json()["ticket"])


async def test_a_ticket_opens_one_socket(edge: Running) -> None:
    offered = ["holdfast.v1", f"ticket.{ticket_of(edge)}"]
    async with stream(edge, subprotocols=offered) as line:
        assert (await receive(line))["type"] == "welcome"
    assert await refused(edge, subprotocols=offered) == (401, "token-expired")


@pytest.mark.parametrize("ticket", ["short", "x" * 44, "!" * 43])
async def test_an_invalid_ticket_is_refused(edge: Running, ticket: str) -> None:
    assert await refused(edge, subprotocols=["holdfast.v1", f"ticket.{ticket}"]) == (401, "unauthenticated")


async def test_two_tickets_are_one_too_many(edge: Running) -> None:
    offered = [f"ticket.{ticket_of(edge)}", f"ticket.{ticket_of(edge)}"]
    assert await refused(edge, subprotocols=offered) == (401, "unauthenticated")


async def test_missing_expired_and_forged_tokens_are_refused(edge: Running) -> None:
    assert await refused(edge) == (401, "unauthenticated")
    assert await refused(edge, token=signed(edge, ago=timedelta(hours=2))) == (401, "token-expired")
    assert await refused(edge, token=signed(edge, secret="x" * 40)) == (401, "unauthenticated")
    assert await refused(edge, headers={"Authorization": "Basic dTpw"}) == (401, "unauthenticated")


async def test_a_token_in_the_query_is_not_read_nor_logged(edge: Running) -> None:
    token = edge.guest()["token"]
    url = f"{edge.url.replace('http', 'ws')}/v1/stream?token={token}"
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url, proxy=None):
            pass
    assert caught.value.response.status_code == 401
    assert not any(token in line for line in edge.log)


def test_a_request_without_an_upgrade_gets_an_explanation(edge: Running) -> None:
    with edge.client() as client:
        response = client.get("/v1/stream")
    assert (response.status_code, response.json()["type"]) == (426, "/problems/websocket-required")


async def test_a_sixth_socket_of_a_user_is_turned_away(edge: Running) -> None:
    token = edge.guest()["token"]
    lines = [
        connect(
            f"{edge.url.replace('http', 'ws')}/v1/stream",
            additional_headers={"Authorization": f"Bearer {token}"},
            proxy=None,
        )
        for _ in range(5)
    ]
    opened = [await line for line in lines]
    for line in opened:
        assert (await receive(line))["type"] == "welcome"
    async with stream(edge, token) as sixth:
        code, reason = await closed(sixth)
        assert (code, reason) == (1013, "retry_after=5")
    for line in opened:
        await line.close()


# ---- frames ---------------------------------------------------------------------------------------------------------


async def test_add_is_pending_then_held(edge: Running) -> None:
    async with shopper(edge) as line:
        await send(line, id="a1", type="add", product="P", quantity=2, traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
        assert await receive(line) == {"type": "pending", "id": "a1"}
        held = await receive(line)
        assert (held["type"], held["id"], held["quantity"], held["version"]) == ("held", "a1", 2, 1)
    request = next(
        event for event in edge.carts.requests if event.requestid == "a1" and event.data.get("product") == "P"
    )
    assert request.id == f"{request.subject}/a1/add"
    assert (request.traceparent or "").startswith(f"00-{'ab' * 16}-")
    assert request.source == "/edge"


async def test_every_change_and_every_read(edge: Running) -> None:
    async with shopper(edge) as line:

        async def ask(**sent: Any) -> list[dict[str, Any]]:
            await send(line, **sent)
            answers = [await receive(line)]
            while answers[-1]["type"] == "pending" or (sent["type"] == "resume" and answers[-1]["type"] != "resumed"):
                answers.append(await receive(line))
            return answers

        kinds = [
            [answer["type"] for answer in await ask(**sent)]
            for sent in (
                {"id": "1", "type": "set", "product": "P", "quantity": 3},
                {"id": "2", "type": "add", "product": SCARCE, "quantity": 1},
                {"id": "3", "type": "set", "product": "P", "quantity": 0},
                {"id": "4", "type": "remove", "product": "P"},
                {"id": "5", "type": "clear"},
                {"id": "6", "type": "check", "product": "P"},
                {"id": "7", "type": "cart"},
                {"id": "8", "type": "resume", "version": 1, "unresolved": ["2", "nobody"]},
            )
        ]
        assert kinds == [
            ["pending", "held"],
            ["pending", "refused"],
            ["pending", "removed"],
            ["pending", "removed"],
            ["pending", "removed"],
            ["availability"],
            ["cart"],
            ["cart", "refused", "resumed"],
        ]


async def test_after_a_disconnect_resume_returns_every_outcome(edge: Running) -> None:
    guest = edge.guest()
    async with shopper(edge, guest["token"]) as line:
        await send(line, id="a1", type="add", product="P", quantity=2)
        await send(line, id="a2", type="add", product=SILENT, quantity=2)
        for _ in range(3):
            await receive(line)
    async with shopper(edge, guest["token"]) as line:
        await send(line, id="r1", type="resume", version=0, unresolved=["a1", "a2", "b2"])
        shown, held, end = [await receive(line) for _ in range(3)]
    assert (shown["type"], shown["id"], shown["version"]) == ("cart", "r1", 1)
    assert (held["type"], held["id"], held["replayed"]) == ("held", "a1", True)
    assert end == {"type": "resumed", "id": "r1", "pending": ["a2"], "unknown": ["b2"]}


async def test_a_response_that_is_published_again_is_sent_with_the_replay_mark(edge: Running) -> None:
    guest = edge.guest()
    async with shopper(edge, guest["token"]) as line:
        await send(line, id="a1", type="add", product="P", quantity=2)
        assert (await receive(line))["type"] == "pending"
        held = await receive(line)
        data = {name: value for name, value in held.items() if name != "type"} | {"user_id": guest["user_id"]}
        await asyncio.to_thread(edge.carts.publish, RESPONSES, "/cart", "holdfast.cart.held", guest["user_id"], data)
        assert await receive(line) == {**held, "replayed": True}


async def test_an_id_used_for_something_else(edge: Running) -> None:
    async with shopper(edge) as line:
        await send(line, id="a1", type="add", product="P", quantity=2)
        await receive(line)
        await receive(line)
        await send(line, id="a1", type="add", product="P", quantity=3)
        assert (await receive(line))["type"] == "pending"
        error = await receive(line)
    assert (error["type"], error["id"], error["code"]) == ("error", "a1", "id_reused")


async def test_an_outcome_reaches_every_socket_of_the_shopper_and_no_other(edge: Running) -> None:
    token = edge.guest()["token"]
    async with shopper(edge, token) as asking, shopper(edge, token) as looking, shopper(edge) as stranger:
        await send(asking, id="a1", type="add", product="P", quantity=2)
        assert (await receive(looking))["type"] == "held"
        await send(stranger, id="c", type="cart")
        assert (await receive(stranger))["id"] == "c", "nothing came before it"


async def test_64_unanswered_and_not_one_more(edge: Running) -> None:
    async with shopper(edge) as line:
        for number in range(64):
            await send(line, id=f"s{number}", type="add", product=SILENT, quantity=1)
        for _ in range(64):
            assert (await receive(line))["type"] == "pending"
        await send(line, id="one", type="add", product="P", quantity=1)
        error = await receive(line)
        assert (error["id"], error["code"]) == ("one", "too_many")


async def test_a_hundred_changes_a_minute_then_refused_then_closed(edge: Running) -> None:
    async with shopper(edge) as line:
        with contextlib.suppress(ConnectionClosed):
            for number in range(1000):  # many more than the limit and what a slow machine refills of it
                await send(line, id=f"a{number}", type="remove", product="P")
        code, reason = await closed(line)
    assert code == 4429
    assert reason.startswith("retry_after=")


# ---- stock ----------------------------------------------------------------------------------------------------------


async def test_watch_sends_stock_at_once_and_on_changes(edge: Running) -> None:
    code = f"W{secrets.token_hex(4)}"

    def put(available: int, version: int) -> None:
        stock = {"product": code, "available": available, "received": 9, "held": 0, "sold": 0, "version": version}
        edge.carts.publish(STOCK, "/inventory", "holdfast.inventory.stock", code, stock)

    async with shopper(edge) as line, shopper(edge) as everything:
        await send(line, id="w", type="watch", products=[code])
        await send(everything, id="w", type="watch")
        await asyncio.to_thread(put, 9, 1)
        assert await receive(line) == {"type": "stock", "product": code, "available": 9, "version": 1}
        await asyncio.to_thread(put, 8, 2)
        assert await receive(line) == {"type": "stock", "product": code, "available": 8, "version": 2}
        await asyncio.to_thread(put, 1, 1)
        await asyncio.to_thread(put, 7, 3)
        assert (await receive(line))["available"] == 7, "an older version is not told"
        seen = [await receive(everything) for _ in range(1)]
        assert {told["type"] for told in seen} == {"stock"}
    async with shopper(edge) as late:
        await send(late, id="w", type="watch", products=[code])
        assert (await receive(late))["available"] == 7, "at once, from what is known"


async def test_the_name_in_a_cart_is_the_catalogues(edge: Running) -> None:
    code = f"N{secrets.token_hex(4)}"
    product = {"code": code, "name": "TEAPOT", "price": {"amount": 1, "currency": "GBP"}, "version": 1}
    await asyncio.to_thread(edge.carts.publish, PRODUCTS, "/inventory", "holdfast.catalogue.product", code, product)
    with edge.client() as client:
        while client.get(f"/v1/products/{code}").status_code != 200:
            await asyncio.sleep(0.05)
    async with shopper(edge) as line:
        await send(line, id="a", type="add", product=code, quantity=1)
        await receive(line)
        await receive(line)
        await send(line, id="c", type="cart")
        assert (await receive(line))["lines"][0]["name"] == "TEAPOT"


# ---- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{", "[" * 10_000, "NaN"])
async def test_bad_json_is_an_error_then_a_close(edge: Running, text: str) -> None:
    async with shopper(edge) as line:
        await line.send(text)
        assert (await receive(line))["code"] == "bad_json"
        assert await closed(line) == (4400, "bad_json")


async def test_binary_frames_are_not_taken(edge: Running) -> None:
    async with shopper(edge) as line:
        await line.send(b"{}")
        assert (await closed(line))[0] == 1003


async def test_a_frame_over_16_kib(edge: Running) -> None:
    async with shopper(edge) as line:
        await send(line, id="c", type="cart", padding="x" * 16_000)
        assert (await receive(line))["type"] == "cart"
        await line.send("x" * (16 * 1024 + 1))
        assert (await closed(line))[0] == 1009


async def test_text_that_is_not_utf_8(edge: Running) -> None:
    async with shopper(edge) as line:
        line.transport.write(Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=True))
        assert (await closed(line))[0] == 1007


async def test_a_flood_of_fragments(edge: Running) -> None:
    async with shopper(edge) as line:
        line.transport.write(Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True))
        line.transport.write(Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 1000)
        assert (await closed(line))[0] == 1009


async def test_a_client_that_reads_nothing_is_closed_and_others_are_served(edge: Running) -> None:
    token = edge.guest()["token"]
    deaf = socket.create_connection(("127.0.0.1", edge.port))
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = (
        f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:{edge.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    )
    await asyncio.to_thread(deaf.sendall, head.encode())
    assert (await asyncio.to_thread(deaf.recv, 12)).startswith(b"HTTP/1.1 101")
    snapshot = {
        "user_id": edge_user(token),
        "cart": {
            "version": 1,
            "lines": [
                {"product": f"P{number}", "quantity": 1, "price": {"amount": 1, "currency": "GBP"}}
                for number in range(100)
            ],
        },
    }
    for _ in range(400):
        await asyncio.to_thread(
            edge.carts.publish, RESPONSES, "/cart", "holdfast.cart.snapshot", edge_user(token), snapshot
        )
        if await asyncio.to_thread(closes_of, edge, "4410"):
            break
    assert await asyncio.to_thread(closes_of, edge, "4410") == 1.0
    deaf.close()
    async with shopper(edge):
        pass


def edge_user(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["sub"])


def closes_of(edge: Running, code: str) -> float:
    with edge.client() as client:
        text = client.get("/metrics").text
    found = [line for line in text.splitlines() if line.startswith(f'holdfast_edge_closes_total{{code="{code}"}}')]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


async def test_a_token_that_ends_while_the_socket_is_open(edge: Running) -> None:
    nearly = signed(edge, ago=timedelta(hours=1, seconds=28))
    async with stream(edge, nearly) as line:
        assert await closed(line) == (4401, "the token has expired")
