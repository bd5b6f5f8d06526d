"""The simple servers of the shop (health, provider, SMTP) close every connection, whatever its client does."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import uvloop
from aiohttp import web

from infrastructure.process import health
from infrastructure.process.bounded_server import BoundedServer, ConnectionBounds
from infrastructure.process.health import HealthServer, HttpResponse
from notification_service.catcher import __main__ as catcher
from notification_service.catcher.mailbox import Mailbox
from order_service.payment.provider import listener
from order_service.payment.provider import server as provider
from order_service.payment.provider.database import ProviderDatabase
from order_service.payment.provider.webhooks import WebhookSender

BIG = b"x" * 8_000_000
SHORT = ConnectionBounds(connections=8, lifetime_seconds=2, unread_seconds=0.3)
GET = b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n"
Serving = Callable[[], AbstractAsyncContextManager[int]]


@asynccontextmanager
async def health_server() -> AsyncIterator[int]:
    def pages(path: str) -> HttpResponse | None:
        return HttpResponse(200, "text/plain", BIG) if path == "/big" else None

    server = HealthServer("127.0.0.1", 0, live=lambda: None, ready=lambda: None, pages=pages, bounds=SHORT)
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop()


@asynccontextmanager
async def payment_provider() -> AsyncIterator[int]:
    async def big(_: web.Request) -> web.Response:
        return web.Response(body=BIG)

    simulated = provider.ProviderServer(ProviderDatabase(":memory:"), WebhookSender("s" * 32), "key", late=1)
    app = simulated.app()
    app.router.add_get("/livez/big", big)
    app.middlewares.pop()  # the API key
    bounds = ConnectionBounds(connections=8, unread_seconds=0.3)
    async with listener.serve(app, "127.0.0.1", 0, head_seconds=0.3, bounds=bounds) as address:
        yield address[1]


@asynccontextmanager
async def smtp_server(folder: Path) -> AsyncIterator[int]:
    mailbox = Mailbox(folder / "mails.sqlite")
    protocol = partial(catcher.smtp_protocol, mailbox, timeout=0.3)
    listening = await asyncio.get_running_loop().create_server(BoundedServer(protocol, SHORT), "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        mailbox.close()


@pytest.fixture(params=["health", "provider", "smtp"])
def serving(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Serving]:
    monkeypatch.setattr(health, "ASK_SECONDS", 0.3)
    monkeypatch.setattr(provider, "BODY_SECONDS", 0.3)
    servers: dict[str, Serving] = {
        "health": health_server,
        "provider": payment_provider,
        "smtp": partial(smtp_server, tmp_path),
    }
    return request.param, servers[request.param]


POST = b"POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
STATES = {
    "health": [b"", b"GET /livez", GET, GET * 2, POST, b"nonsense\r\n\r\n", b"x" * 20_000],
    "provider": [
        b"",
        b"GET /livez",
        GET.replace(b"/big", b"/livez/big"),
        GET.replace(b"/big", b"/livez/big") * 2,
        GET.replace(b"/big", b"/livez") + b"GET /livez",
        POST,
        POST.replace(b"/livez", b"/v1/charges"),
        POST.replace(b"Content-Length: 9\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{"),
        b"nonsense\r\n\r\n",
    ],
    "smtp": [
        b"",
        b"EH",
        b"EHLO me\r\n",
        b"NOOP\r\n" * 300_000,
        b"EHLO me\r\nMAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\nx",
    ],
}


class Client:
    """A client that does not read."""

    def __init__(self, port: int) -> None:
        self.line = socket.socket()
        self.line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self.line.setblocking(False)
        self.port = port

    async def send(self, sent: bytes) -> None:
        """Connect and send; the server may close the connection meanwhile."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.line, ("127.0.0.1", self.port))
        try:
            async with asyncio.timeout(3):
                await loop.sock_sendall(self.line, sent)
        except (OSError, TimeoutError):
            pass

    def trickle(self) -> None:
        with suppress(OSError):
            self.line.send(b"x")


def open_connections(port: int) -> int:
    """Return how many connections a server in this process has open."""
    import psutil  # only here: the test process has many other connections

    found = psutil.Process().net_connections(kind="tcp")
    return sum(1 for each in found if each.laddr.port == port and each.raddr)


@pytest.mark.parametrize("trickles", [False, True], ids=["silence", "trickle"])
async def test_every_connection_is_closed(serving: tuple[str, Serving], trickles: bool) -> None:
    name, server = serving
    async with server() as port:
        with ExitStack() as stack:
            clients = [Client(port) for _ in STATES[name]]
            for client in clients:
                stack.callback(client.line.close)
            await asyncio.gather(*(client.send(sent) for client, sent in zip(clients, STATES[name], strict=True)))
            async with asyncio.timeout(60):
                while open_connections(port):
                    if trickles:
                        for client in clients:
                            client.trickle()
                    await asyncio.sleep(0.1)


def test_the_health_server_answers_on_the_loop_of_the_edge() -> None:
    async def ask() -> bytes:
        async with health_server() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            found = await reader.read()
            writer.close()
            return found

    assert uvloop.run(ask()).startswith(b"HTTP/1.1 200 OK")


async def test_one_connection_more_than_the_limit_ends_the_oldest(serving: tuple[str, Serving]) -> None:
    _, server = serving
    async with server() as port:
        first = await asyncio.open_connection("127.0.0.1", port)
        others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        async with asyncio.timeout(60):
            with suppress(ConnectionResetError):
                await first[0].read()
        for _, writer in (first, *others):
            writer.close()
