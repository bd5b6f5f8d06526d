"""The edge against those who read nothing, say nothing or say too much: bounded, closed in time, others are served."""

import asyncio
import json
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import jwt
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from contracts.cart import RESPONSES
from contracts.inventory import STOCK
from tests.testkit.edge import SILENT, Running, running_edge
from tests.testkit.servers import Servers

MIB = 1024 * 1024
MORE = 10 * MIB
"""Bytes of memory that a flood may cost the edge, at its worst moment."""


@pytest.fixture(scope="module")
def edge(servers: Servers) -> Iterator[Running]:
    with running_edge(servers, f"ef{secrets.token_hex(3)}.") as running:
        asyncio.run(shop_a_little(running))
        yield running


@pytest.fixture(scope="module")
def impatient(servers: Servers) -> Iterator[Running]:
    """An edge that pings each second and waits a second for the pong."""
    with running_edge(servers, f"ep{secrets.token_hex(3)}.", HOLDFAST_PING_SECONDS="1") as running:
        yield running


# ---- what is seen of the edge ---------------------------------------------------------------------------------------


def metric(edge: Running, name: str) -> float:
    with edge.client() as client:
        lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(f"{name} ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def closes(edge: Running, code: int) -> float:
    return metric(edge, f'holdfast_edge_closes_total{{code="{code}"}}')


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@contextmanager
def bounded(edge: Running, more: int = MORE) -> Iterator[None]:
    """The edge's memory at no moment grows by more than this."""
    process = psutil.Process(edge.process.pid)
    before = highest = process.memory_info().rss
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.02):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    print(f"the edge grew by {(highest - before) / MIB:.1f} MiB")
    assert highest - before <= more, f"{(highest - before) / MIB:.1f} MiB"


# ---- shoppers, good and bad -----------------------------------------------------------------------------------------


@asynccontextmanager
async def shopper(edge: Running, token: str | None = None) -> AsyncIterator[ClientConnection]:
    token = token or (await asyncio.to_thread(edge.guest))["token"]
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{edge.url.replace('http', 'ws')}/v1/stream"
    async with connect(url, additional_headers=headers, proxy=None, ping_interval=None) as line:
        assert [(await receive(line))["type"] for _ in range(2)] == ["welcome", "cart"]
        yield line


async def receive(line: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        found: dict[str, Any] = json.loads(await line.recv())
    return found


async def shop_a_little(edge: Running) -> None:
    """Shop like an honest client, with every request answered."""
    async with shopper(edge) as line:
        for number in range(5):
            await line.send(json.dumps({"id": f"a{number}", "type": "add", "product": "P", "quantity": 1}))
            assert [(await receive(line))["type"] for _ in range(2)] == ["pending", "held"]


def handshake(edge: Running, token: str | None) -> bytes:
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:{edge.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n{bearer}\r\n"
    ).encode()


def plain(edge: Running) -> socket.socket:
    """A connection with as small a buffer as can be."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    line.settimeout(30)
    line.connect(("127.0.0.1", edge.port))
    return line


def deaf(edge: Running, token: str) -> socket.socket:
    """A socket that is open, of which nothing more will be read."""
    line = plain(edge)
    line.sendall(handshake(edge, token))
    assert line.recv(12) == b"HTTP/1.1 101"
    return line


def ended(line: socket.socket) -> bytes:
    """Return all bytes until the edge closes the connection."""
    found = b""
    try:
        while part := line.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def close_frame(code: int, reason: str) -> bytes:
    return Frame(Opcode.CLOSE, struct.pack("!H", code) + reason.encode()).serialize(mask=False)


# ---- who reads nothing ----------------------------------------------------------------------------------------------


def whole_cart(user_id: str) -> dict[str, Any]:
    price = {"amount": 1, "currency": "GBP"}
    lines = [{"product": f"P{number}", "quantity": 1, "price": price} for number in range(100)]
    return {"user_id": user_id, "cart": {"version": 1, "lines": lines}}


def test_200_sockets_that_read_nothing(edge: Running) -> None:
    tokens = [edge.guest()["token"] for _ in range(40)]
    users = [str(jwt.decode(token, options={"verify_signature": False})["sub"]) for token in tokens]

    def flood(users: list[str]) -> None:
        for user in users:
            edge.carts.publish(RESPONSES, "/cart", "holdfast.cart.snapshot", user, whole_cart(user))

    with ExitStack() as lines:
        for token in tokens:
            for _ in range(5):
                lines.enter_context(deaf(edge, token))
        assert metric(edge, "holdfast_edge_sockets") == 200
        before = closes(edge, 4410)
        with bounded(edge):
            for _ in range(40):
                flood(users)
                asyncio.run(shop_a_little(edge))
                if closes(edge, 4410) - before == 200:
                    break
            assert closes(edge, 4410) - before == 200
        until(lambda: metric(edge, "holdfast_edge_sockets") == 0)


def test_a_flood_of_pings_with_unread_pongs(edge: Running) -> None:
    ping = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * 100
    with deaf(edge, edge.guest()["token"]) as line, bounded(edge):
        assert _is_cut_off(line, ping), "reset, or nothing is taken any more"
        asyncio.run(shop_a_little(edge))


def _is_cut_off(line: socket.socket, flood: bytes) -> bool:
    try:
        for _ in range(2000):
            line.sendall(flood)
    except OSError:
        return True
    return False


def test_an_unread_answer_waits_in_the_file_not_in_memory(edge: Running) -> None:
    ask = f"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: 127.0.0.1:{edge.port}\r\n\r\n".encode()
    with ExitStack() as lines, bounded(edge):
        for _ in range(50):
            lines.enter_context(plain(edge)).sendall(ask)
        asyncio.run(shop_a_little(edge))


# ---- who says nothing -----------------------------------------------------------------------------------------------

STOPPED = """
import sys
from websockets.sync.client import connect
lines = [connect(sys.argv[1], additional_headers={"Authorization": "Bearer " + token}, proxy=None)
         for token in sys.argv[2:]]
for line in lines:
    assert '"welcome"' in line.recv()
print("here", flush=True)
sys.stdin.read()
"""


def test_a_client_that_is_stopped_is_closed_for_want_of_a_pong_and_its_memory_comes_back(impatient: Running) -> None:
    process = psutil.Process(impatient.process.pid)
    url = f"{impatient.url.replace('http', 'ws')}/v1/stream"
    tokens = [impatient.guest()["token"] for _ in range(20)]
    sizes = []
    for attempt in (1, 2):
        descriptors = process.num_fds()
        with subprocess.Popen(
            [sys.executable, "-c", STOPPED, url, *(tokens * 3)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        ) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"here\n"
            client.send_signal(signal.SIGSTOP)
            until(partial(_all_closed, impatient, 60 * attempt))
            until(partial(_has_at_most, process, descriptors))
            client.kill()
        sizes.append(process.memory_info().rss)
    assert sizes[1] - sizes[0] < 4 * MIB, "the second sixty live where the first did"
    asyncio.run(shop_a_little(impatient))


def _all_closed(edge: Running, closes_: int) -> bool:
    return closes(edge, 4408) == closes_ and metric(edge, "holdfast_edge_sockets") == 0


def _has_at_most(process: psutil.Process, descriptors: int) -> bool:
    return bool(process.num_fds() <= descriptors)


def test_a_client_that_answers_no_ping_is_closed_with_4408(impatient: Running) -> None:
    assert b'"ping":1' in ended_after_close(impatient)

    async def stays() -> None:
        async with shopper(impatient) as line:
            await asyncio.sleep(3)
            await line.send(json.dumps({"id": "c", "type": "cart"}))
            assert (await receive(line))["id"] == "c"

    asyncio.run(stays())


def ended_after_close(edge: Running) -> bytes:
    with deaf(edge, edge.guest()["token"]) as line:
        found = ended(line)
    assert found.endswith(close_frame(4408, "no pong"))
    return found


def test_floods_of_connections_are_closed_at_their_deadlines(edge: Running) -> None:
    process = psutil.Process(edge.process.pid)
    descriptors = process.num_fds()
    head = f"GET /v1/products HTTP/1.1\r\nHost: 127.0.0.1:{edge.port}\r\nX: ".encode()

    async def trickle(name: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(head)
        try:
            for _ in range(60):
                writer.write(b"%d" % (name % 10))
                await writer.drain()
                await asyncio.wait([asyncio.ensure_future(asyncio.sleep(1))])
                if reader.at_eof():
                    break
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def idle() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def everything() -> None:
        flood = [asyncio.create_task(idle()) for _ in range(500)]
        flood += [asyncio.create_task(trickle(number)) for number in range(50)]
        await asyncio.sleep(1)
        for _ in range(3):
            await shop_a_little(edge)
        async with asyncio.timeout(30):
            assert set(await asyncio.gather(*flood)) == {b""}

    with bounded(edge):
        asyncio.run(everything())
    until(lambda: process.num_fds() <= descriptors + 5)


# ---- who may not in, and who says too much --------------------------------------------------------------------------


def test_a_thousand_handshakes_without_a_token(edge: Running) -> None:
    async def knock() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(handshake(edge, None))
        try:
            return await reader.read()
        finally:
            writer.close()

    async def everything() -> None:
        door = asyncio.Semaphore(100)

        async def one() -> bytes:
            async with door:
                return await knock()

        flood = [asyncio.create_task(one()) for _ in range(1000)]
        await shop_a_little(edge)
        answers = await asyncio.gather(*flood)
        assert all(answer.startswith(b"HTTP/1.1 401 ") and b"/problems/unauthenticated" in answer for answer in answers)

    with bounded(edge):
        asyncio.run(everything())


def test_a_flood_of_tiny_frames_costs_little_and_ends_the_socket(edge: Running) -> None:
    tiny = Frame(Opcode.TEXT, b"").serialize(mask=True) * 20_000

    def flood() -> None:
        with deaf(edge, edge.guest()["token"]) as line:
            try:
                line.sendall(tiny)
            except ConnectionError:
                return
            assert close_frame(4400, "bad_json") in ended(line)

    with bounded(edge):
        threads = [threading.Thread(target=flood) for _ in range(10)]
        for thread in threads:
            thread.start()
        asyncio.run(shop_a_little(edge))
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("size", [0, 1000])
async def test_a_message_of_a_thousand_fragments(edge: Running, size: int) -> None:
    part = Frame(Opcode.CONT, b"x" * size, fin=False).serialize(mask=True)
    async with shopper(edge) as line:
        line.transport.write(Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True) + part * 1000)
        assert await closed(line) == 1009
    await shop_a_little(edge)


async def closed(line: ClientConnection, heard: Counter[str] | None = None) -> int:
    try:
        while True:
            frame = await receive(line)
            if heard is not None:
                heard[frame.get("code", frame["type"])] += 1
    except ConnectionClosed:
        assert line.close_code is not None
        return line.close_code


async def test_more_reads_than_the_limit_are_refused_and_past_its_double_the_socket_is_closed(edge: Running) -> None:
    heard: Counter[str] = Counter()
    async with shopper(edge) as line:
        ending = asyncio.create_task(closed(line, heard))
        try:
            for number in range(1300):
                await line.send(json.dumps({"id": f"c{number}", "type": "cart"}))
                if number % 20 == 0:
                    await asyncio.sleep(0.01)
        except ConnectionClosed:
            pass
        assert await ending == 4429
    assert heard["rate_limited"] >= 600
    assert heard["cart"] > 0


async def test_a_user_at_the_limit_of_unanswered_requests_can_reconnect(edge: Running) -> None:
    token = (await asyncio.to_thread(edge.guest))["token"]
    ids = [f"s{number}" for number in range(64)]
    async with shopper(edge, token) as line:
        for name in ids:
            await line.send(json.dumps({"id": name, "type": "add", "product": SILENT, "quantity": 1}))
        assert [(await receive(line))["type"] for _ in ids] == ["pending"] * 64
        await line.send(json.dumps({"id": "more", "type": "clear"}))
        assert (await receive(line))["code"] == "too_many"
    async with shopper(edge, token) as line:
        await line.send(json.dumps({"id": "r1", "type": "resume", "version": 0, "unresolved": ids}))
        assert (await receive(line))["id"] == "r1"
        assert (await receive(line)) == {"type": "resumed", "id": "r1", "pending": ids, "unknown": []}
    with edge.client(token) as client:
        refused = client.post("/v1/cart/items", json={"product": "P", "quantity": 1})
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
        assert int(refused.headers["retry-after"]) >= 1


async def test_opening_sockets_is_counted_before_they_are_accepted(edge: Running) -> None:
    guest = await asyncio.to_thread(edge.guest)
    headers = {"Authorization": f"Bearer {guest['token']}"}
    url = f"{edge.url.replace('http', 'ws')}/v1/stream"
    opened, response = 0, None
    while response is None:
        assert opened < 2000, "many more than the limit and what a slow machine refills of it"
        try:
            async with connect(url, additional_headers=headers, proxy=None):
                opened += 1
        except InvalidStatus as refused:
            response = refused.response
    assert opened >= 60
    assert (response.status_code, json.loads(response.body or b"")["type"]) == (429, "/problems/rate-limited")
    assert int(response.headers["retry-after"]) >= 1
    with edge.client(guest["token"]) as client:
        read = client.get("/v1/cart")
        assert read.status_code in {200, 429}
    reads = [each for each in edge.carts.requests if each.subject == guest["user_id"]]
    print(f"{opened} sockets made {len(reads)} requests to the carts")
    assert len(reads) < opened / 2, "a socket that is gone at once leaves no record"
    await shop_a_little(edge)


async def test_the_whole_stock_is_sent_a_few_times_however_often_it_is_asked_for(edge: Running) -> None:
    products = 200
    for number in range(products):
        stock = {"product": f"WHOLE{number}", "available": 5, "received": 5, "held": 0, "sold": 0, "version": 1}
        await asyncio.to_thread(
            edge.carts.publish, STOCK, "/inventory", "holdfast.inventory.stock", f"WHOLE{number}", stock
        )
    heard: Counter[str] = Counter()
    async with shopper(edge) as line:
        ending = asyncio.create_task(closed(line, heard))
        for number in range(380):
            await line.send(json.dumps({"id": f"w{number}", "type": "watch"}))
            await line.send(json.dumps({"id": f"u{number}", "type": "unwatch"}))
        await line.send(json.dumps({"id": "bad", "type": "check", "product": ""}))
        async with asyncio.timeout(30):
            while not heard["bad_field"] + heard["rate_limited"]:
                await asyncio.sleep(0.05)
        await line.close()
        await ending
    print(heard)
    assert heard["rate_limited"] > 300
    assert heard["stock"] <= 12 * products


def test_bad_tokens_leave_few_lines_in_the_log(edge: Running) -> None:
    before = sum("token rejected" in line for line in edge.log)
    with edge.client("nonsense") as client:
        began = time.monotonic()
        for _ in range(500):
            assert client.get("/v1/cart").status_code == 401
        took = time.monotonic() - began
    lines = sum("token rejected" in line for line in edge.log) - before
    assert 1 <= lines <= took + 2


def test_a_flood_over_rest(edge: Running) -> None:
    with edge.client(edge.guest()["token"]) as client:
        answers = [client.get("/v1/products?limit=1") for _ in range(600)]
        assert {answer.status_code for answer in answers} == {200}
        refused = next(answer for _ in range(2000) if (answer := client.get("/v1/products")).status_code != 200)
    assert refused.status_code == 429
    assert refused.json()["type"] == "/problems/rate-limited"
    assert int(refused.headers["retry-after"]) >= 1
    asyncio.run(shop_a_little(edge))
