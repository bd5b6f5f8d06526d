"""An edge with few descriptors: whatever a client does with a connection, the edge closes it and serves others."""

import asyncio
import contextlib
import resource
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import psutil
import pytest
from websockets.frames import Frame, Opcode

from tests.testkit.edge import Running, running_edge
from tests.testkit.processes import until
from tests.testkit.servers import Servers

DESCRIPTORS: Final = 128
AT_A_TIME: Final = 36
PATIENCE: Final = 60.0
"""Seconds after which a connection counts as left open; most are closed within three."""
SHORT: Final = {
    "HOLDFAST_REQUEST_SECONDS": "2",
    "HOLDFAST_UNREAD_SECONDS": "1",
    "HOLDFAST_KEEP_ALIVE_SECONDS": "0.8",
    "HOLDFAST_CLOSE_SECONDS": "0.5",
    "HOLDFAST_PING_SECONDS": "1",
}


@pytest.fixture(scope="module")
def edge(servers: Servers) -> Iterator[Running]:
    """An edge with short time limits."""
    with running_edge(servers, f"ec{secrets.token_hex(3)}.", DESCRIPTORS, **SHORT) as running:
        yield running


# ---- what a connection has sent -------------------------------------------------------------------------------------

HOST: Final = b"Host: localhost\r\n"
LIVEZ: Final = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
POST: Final = b"POST /v1/cart/items HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
BIG: Final = b"GET /docs/swagger-ui.css HTTP/1.1\r\n" + HOST + b"\r\n"
UPGRADE: Final = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
KEY: Final = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"


def upgrade(more: bytes = b"", path: bytes = b"/v1/stream") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + UPGRADE + KEY + more + b"\r\n"


def frame(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=True)


REQUESTS: Final = {
    "nothing": b"",
    "half a request line": b"GET /li",
    "half a head": LIVEZ[:-4],
    "a line break": b"\r\n",
    "half a body by length": POST + b"Content-Length: 9\r\n\r\n{",
    "half a body by chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{",
    "half a chunk line": POST + b"Transfer-Encoding: chunked\r\n\r\n2;x",
    "half a trailer": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n",
    "an expected continuation": POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    "a refused request without its body": POST + b"Content-Length: 99999\r\n\r\n{",
    "a whole request": LIVEZ,
    "two requests": LIVEZ * 2,
    "a request and half of another": LIVEZ + LIVEZ[:-2],
    "a large response": BIG,
    "many large responses": BIG * 5,
    "a large response, then half a body": BIG + POST + b"Content-Length: 9\r\n\r\n{",
    "a large response, then an end": BIG.replace(HOST, HOST + b"Connection: close\r\n"),
    "nonsense": b"nonsense\r\n\r\n",
    "nonsense, and more of it": b"nonsense\r\n\r\n" + b"x" * 100_000,
    "a head that is too large": LIVEZ[:-2] + b"X: " + b"x" * 20_000 + b"\r\n\r\n",
    "too many headers": LIVEZ[:-2] + b"a:b\r\n" * 200 + b"\r\n",
    "an upgrade with a body": upgrade(b"Content-Length: 5\r\n"),
    "an upgrade with chunks": upgrade(b"Transfer-Encoding: chunked\r\n"),
    "an upgrade with 129 headers": upgrade(b"a: b\r\n" * 129),
    "an upgrade with 99 headers": upgrade(b"a: b\r\n" * 93),
    "an upgrade with a long header": upgrade(b"X: " + b"x" * 9000 + b"\r\n"),
    "an upgrade with a long path": upgrade(path=b"/v1/stream?" + b"x" * 9000),
    "an upgrade without a key": b"GET /v1/stream HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n",
    "an upgrade without a token": upgrade(),
    "half an upgrade": upgrade()[:-2],
    "an upgrade by POST": b"POST /v1/stream HTTP/1.1\r\n" + HOST + UPGRADE + KEY + b"\r\n",
    "an upgrade of HTTP/1.0": upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an upgrade to h2c": LIVEZ[:-2] + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
}
"""Names of states, and the bytes that lead to them."""

UNREAD: Final = frame(Opcode.PING, b"x" * 125) * 1200
"""Pings whose pongs fill the kernel's buffers, and a part of the edge's."""

SOCKETS: Final = {
    "silence": b"",
    "half a frame": frame(Opcode.TEXT, b"x" * 100)[:50],
    "half a message": frame(Opcode.TEXT, b"x", fin=False),
    "many fragments": frame(Opcode.TEXT, b"x", fin=False) + frame(Opcode.CONT, b"x", fin=False) * 100,
    "a broken frame": b"\xff\xff\xff",
    "an unmasked frame": Frame(Opcode.TEXT, b"{}").serialize(mask=False),
    "not UTF-8": frame(Opcode.TEXT, b"\xff"),
    "not JSON": frame(Opcode.TEXT, b"x"),
    "a binary message": frame(Opcode.BINARY, b"x"),
    "too large a frame": frame(Opcode.TEXT, b"x" * 17_000),
    "a close": frame(Opcode.CLOSE, struct.pack("!H", 1000)),
    "a close with one byte": frame(Opcode.CLOSE, b"x"),
    "unread pongs": UNREAD,
    "unread pongs and a close": UNREAD + frame(Opcode.CLOSE, struct.pack("!H", 1000)),
    "unread pongs and a broken frame": UNREAD + b"\xff\xff\xff",
    "unread pongs and an unmasked frame": UNREAD + Frame(Opcode.TEXT, b"{}").serialize(mask=False),
    "unread pongs and no JSON": UNREAD + frame(Opcode.TEXT, b"x"),
    "unread pongs and half a frame": UNREAD + frame(Opcode.TEXT, b"x" * 100)[:50],
}
"""Names of states of an open WebSocket, and the bytes that lead to them."""


@dataclass(frozen=True)
class State:
    """A state of a connection, by the bytes that lead to it."""

    name: str
    sent: bytes
    then: bytes = b""
    """Bytes that are sent once the WebSocket is open."""


def states(tokens: Iterator[str], *, pipelined: bool) -> Iterator[State]:
    """Yield the states of connections; pipelined ones arise in one packet, and behind another request."""
    before = LIVEZ if pipelined else b""
    for name, sent in REQUESTS.items():
        yield State(name, before + sent)
    for name, sent in SOCKETS.items():
        shake = upgrade(b"Authorization: Bearer " + next(tokens).encode() + b"\r\n")
        yield State(f"open, {name}", before + shake + sent) if pipelined else State(f"open, {name}", shake, sent)


# ---- what the client does next --------------------------------------------------------------------------------------


class Client:
    """A client of one connection; its receive buffer is small if it is not going to read."""

    def __init__(self, state: State, *, reads: bool) -> None:
        self.state = state
        self.reads = reads
        self.port = 0
        self.received = b""

    async def begin(self, edge: Running) -> None:
        """Bring the connection into its state. The edge may close it at any time."""
        loop = asyncio.get_running_loop()
        self.socket = socket.socket()
        if not self.reads:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self.socket.setblocking(False)
        await loop.sock_connect(self.socket, ("127.0.0.1", edge.port))
        self.port = self.socket.getsockname()[1]
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(3):
                await loop.sock_sendall(self.socket, self.state.sent)
                if self.state.then:
                    while b"HTTP/1.1 101" not in self.received and await self.read():
                        pass
                    await loop.sock_sendall(self.socket, self.state.then)

    async def read(self) -> bool:
        """Read some bytes; return whether there may be more."""
        part = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
        self.received += part
        return bool(part)

    async def read_to_the_end(self) -> None:
        with contextlib.suppress(OSError):
            while await self.read():
                pass

    # A client may do each of these in any state:

    async def stay_silent(self) -> None:
        await self.read_to_the_end()

    async def trickle(self) -> None:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self.read_to_the_end())
            with contextlib.suppress(OSError):
                while not reading.done():
                    with contextlib.suppress(BlockingIOError):
                        self.socket.send(b"x")
                    await asyncio.wait([reading], timeout=0.1)

    async def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        await self.read_to_the_end()

    async def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def stop_reading(self) -> None:
        pass


BEHAVIOURS: Final[dict[str, Callable[[Client], Awaitable[None]]]] = {
    "stays silent": Client.stay_silent,
    "trickles": Client.trickle,
    "half-closes": Client.half_close,
    "resets": Client.reset,
    "stops reading": Client.stop_reading,
}


def held_by(edge: Running) -> set[int]:
    """Return the ports of the clients whose connections the edge has not closed."""
    found = psutil.Process(edge.process.pid).net_connections(kind="tcp")
    return {each.raddr.port for each in found if each.raddr and each.laddr.port == edge.port}


@asynccontextmanager
async def stranger_is_served(edge: Running) -> AsyncIterator[None]:
    """Ask for `/livez` on new connections inside the context; each must be answered with 200."""
    answers = []
    done = asyncio.Event()

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        try:
            writer.write(LIVEZ.replace(HOST, HOST + b"Connection: close\r\n"))
            return await reader.read()
        finally:
            writer.close()

    async def keep_asking() -> None:
        while not done.is_set():
            async with asyncio.timeout(60):
                answers.append((await ask())[:12])
            await asyncio.sleep(0.1)

    asking = asyncio.create_task(keep_asking())
    try:
        yield
    finally:
        done.set()
        await asking
    assert set(answers) == {b"HTTP/1.1 200"}


class Table:
    """All combinations, some of which run at a time, and those that have not ended in time."""

    def __init__(self, edge: Running) -> None:
        self.edge = edge
        self.left: list[str] = []
        self.unopened: list[str] = []
        self._slots = asyncio.Semaphore(AT_A_TIME)
        self._held: set[int] = set()
        self._polls = 0

    async def run(self) -> None:
        tokens = [(await asyncio.to_thread(self.edge.guest))["token"] for _ in range(AT_A_TIME)]
        polling = asyncio.create_task(self._poll())
        async with asyncio.TaskGroup() as group:
            for pipelined in (False, True):
                for state in states(cycle(tokens), pipelined=pipelined):
                    for name, behave in BEHAVIOURS.items():
                        label = f"{state.name}, {name}{', pipelined' if pipelined else ''}"
                        client = Client(state, reads=behave not in {Client.reset, Client.stop_reading})
                        group.create_task(self._run(label, client, behave))
        polling.cancel()

    async def _run(self, label: str, client: Client, behave: Callable[[Client], Awaitable[None]]) -> None:
        async with self._slots:
            try:
                await client.begin(self.edge)
                async with asyncio.timeout(PATIENCE):
                    await behave(client)
                    await self._closed(client.port)
            except TimeoutError:
                self.left.append(label)
            finally:
                client.socket.close()
            is_complete = behave in {Client.stay_silent, Client.trickle}
            if is_complete and client.state.name.startswith("open") and b"HTTP/1.1 101" not in client.received:
                self.unopened.append(label)

    async def _closed(self, port: int) -> None:
        """Return when the edge has been seen without a connection of this client, twice or more after this call."""
        since = self._polls
        while self._polls < since + 2 or port in self._held:
            await asyncio.sleep(0.05)

    async def _poll(self) -> None:
        while True:
            self._held = await asyncio.to_thread(held_by, self.edge)
            self._polls += 1
            await asyncio.sleep(0.5)


@pytest.mark.timeout(300)
async def test_every_connection_is_closed_whatever_its_client_does(edge: Running) -> None:
    table = Table(edge)
    async with stranger_is_served(edge):
        await table.run()
    assert (table.left, table.unopened) == ([], [])
    assert held_by(edge) == set()


# ---- answers to unreadable upgrades ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("an upgrade with a body", 400),
        ("an upgrade with chunks", 400),
        ("an upgrade with 129 headers", 431),
        ("an upgrade with a long header", 431),
        ("an upgrade with a long path", 431),
        ("an upgrade without a key", 400),
        ("an upgrade by POST", 405),
        ("an upgrade of HTTP/1.0", 426),
        ("an upgrade without a token", 401),
        ("an upgrade with 99 headers", 401),
    ],
)
def test_an_upgrade_is_refused_with_a_problem_document(edge: Running, name: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", edge.port), timeout=60) as line:
        line.sendall(REQUESTS[name])
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := line.recv(65536):
                found += part
    assert found.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in found
    assert b'{"type":"/problems/' in found


def test_an_upgrade_in_absolute_form_is_accepted(edge: Running) -> None:
    shake = upgrade(b"Authorization: Bearer " + edge.guest()["token"].encode() + b"\r\n")
    origin = f"http://127.0.0.1:{edge.port}".encode()
    with socket.create_connection(("127.0.0.1", edge.port), timeout=60) as line:
        line.sendall(
            shake.replace(b" /v1", b" " + origin + b"/v1").replace(b"\r\n", b"\r\nOrigin: " + origin + b"\r\n", 1)
        )
        assert line.recv(12) == b"HTTP/1.1 101"


def test_the_whole_server_is_asked_for_its_options(edge: Running) -> None:
    for target in (b"*", f"http://127.0.0.1:{edge.port}".encode()):
        with socket.create_connection(("127.0.0.1", edge.port), timeout=60) as line:
            line.sendall(b"OPTIONS " + target + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            found = line.recv(65536)
        assert found.startswith(b"HTTP/1.1 204 ")
        assert b"\r\nallow: GET" in found
        assert b"\r\nx-request-id: " in found


# ---- more connections than there is room for ------------------------------------------------------------------------


def hold(edge: Running, count: int, sent: bytes, stack: ExitStack, source: str = "127.0.0.1") -> list[socket.socket]:
    """Open connections from an address, and send these bytes on each."""
    found = []
    for _ in range(count):
        line = stack.enter_context(socket.create_connection(("127.0.0.1", edge.port), 60, source_address=(source, 0)))
        with contextlib.suppress(ConnectionError):
            line.sendall(sent)
        found.append(line)
    return found


def ask(edge: Running, path: str, source: str = "127.0.0.1", *, closes: bool = True) -> bytes:
    """Return all that the edge sends on a new connection with one request, which `closes` the connection or not."""
    end = "Connection: close\r\n" if closes else ""
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{end}\r\n".encode()
    found = b""
    with socket.create_connection(("127.0.0.1", edge.port), 60, source_address=(source, 0)) as line:
        line.sendall(head)
        while part := line.recv(65536):
            found += part
    return found


@pytest.fixture(scope="module")
def patient(servers: Servers) -> Iterator[Running]:
    """An edge with few descriptors, in production, with the usual time limits but for requests."""
    more = {
        "HOLDFAST_PROFILE": "production",
        "HOLDFAST_SECRET": "a secret of this test, long enough",
        "HOLDFAST_WEBHOOK_SECRET": "a secret of the provider, long enough",
        "HOLDFAST_REQUEST_SECONDS": "60",
        "HOLDFAST_LIMIT_ADDRESS_CONNECTIONS": "20",
    }
    with running_edge(servers, f"ec{secrets.token_hex(3)}.", DESCRIPTORS, **more) as running:
        yield running


def test_connections_are_counted_by_address_whatever_they_are_used_for(patient: Running) -> None:
    token = patient.guest()["token"].encode()
    shake = upgrade(b"Authorization: Bearer " + token + b"\r\n")
    with ExitStack() as stack:
        for sent in (b"", LIVEZ, LIVEZ[:-2], shake):
            hold(patient, 5, sent, stack, "127.0.0.3")
        refused = ask(patient, "/v1/products", "127.0.0.3", closes=False)
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"/problems/rate-limited" in refused
        assert b"\r\nretry-after: " in refused
        assert b"\r\nconnection: close" in refused.lower()
        assert ask(patient, "/livez", "127.0.0.3").startswith(b"HTTP/1.1 200 "), "probes are answered"
        assert ask(patient, "/v1/products", "127.0.0.4").startswith(b"HTTP/1.1 200 ")
    until(lambda: ask(patient, "/v1/products", "127.0.0.3").startswith(b"HTTP/1.1 200 "))


def test_a_full_edge_refuses_politely_answers_probes_and_recovers(patient: Running) -> None:
    process = psutil.Process(patient.process.pid)
    with ExitStack() as stack:
        for host in range(10, 30):
            hold(patient, 20, LIVEZ[:-2], stack, f"127.0.0.{host}")
        for _ in range(5):
            assert ask(patient, "/livez").startswith(b"HTTP/1.1 200 ")
            refused = ask(patient, "/v1/products", closes=False)
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"/problems/overloaded" in refused
            assert b"\r\nretry-after: " in refused
            assert b"\r\nconnection: close" in refused.lower()
        assert process.num_fds() < DESCRIPTORS
    until(lambda: ask(patient, "/v1/products").startswith(b"HTTP/1.1 200 "))
    logged = [each for each in patient.replica.messages() if "connections are refused" in each]
    assert len(logged) == 1


@pytest.mark.parametrize("sent", [b"", LIVEZ], ids=["silent", "after a response"])
def test_an_idle_connection_is_closed_to_make_room(patient: Running, sent: bytes) -> None:
    with ExitStack() as stack:
        held = [line for host in range(10, 20) for line in hold(patient, 10, sent, stack, f"127.0.0.{host}")]
        assert ask(patient, "/v1/products").startswith(b"HTTP/1.1 200 ")
        for line in held[:40]:
            while line.recv(65536):
                pass


def test_no_free_descriptor_at_all_costs_connections_but_not_the_edge(patient: Running) -> None:
    pid = patient.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    until(lambda: not held_by(patient))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (psutil.Process(pid).num_fds(), before[1]))
    try:
        for _ in range(20):
            with contextlib.suppress(ConnectionError):
                assert ask(patient, "/livez") == b""
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert ask(patient, "/livez").startswith(b"HTTP/1.1 200 ")
