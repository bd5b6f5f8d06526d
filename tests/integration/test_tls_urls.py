"""TLS to PostgreSQL and Redis by their URLs: the real servers behind a proxy that speaks TLS, as a managed one does."""

import contextlib
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import trustme
from redis.asyncio import Redis
from redis.exceptions import RedisError

from infrastructure.process.settings import Settings
from infrastructure.storage import postgres
from tests.testkit.servers import Servers

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@contextmanager
def tls_proxy(url: str, authority: trustme.CA, *, is_postgres: bool) -> Iterator[str]:
    """Yield the URL of a proxy to the server of `url`, with the login of that URL; it works in threads."""
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if is_postgres:
                assert self.request.recv(8, socket.MSG_WAITALL) == SSL_REQUEST
                self.request.sendall(b"S")
            with contextlib.suppress(OSError), ExitStack() as stack:  # a client that does not trust us hangs up
                client = stack.enter_context(context.wrap_socket(self.request, server_side=True))
                server = stack.enter_context(socket.create_connection((parts.hostname, parts.port)))
                back = threading.Thread(target=_copy, args=(server, client))
                back.start()
                _copy(client, server)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,)).start()
        login = parts.netloc.rpartition("@")[0]
        yield f"{'postgresql' if is_postgres else 'rediss'}://{login}@localhost:{proxy.server_address[1]}{parts.path}"
        proxy.shutdown()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    return made


@pytest.mark.parametrize(
    ("host", "ca", "connects"), [("localhost", "ca", True), ("localhost", "other", False), ("127.0.0.1", "ca", False)]
)
async def test_postgres_by_tls_with_a_verified_name(
    servers: Servers, authority: trustme.CA, tmp_path: Path, host: str, ca: str, connects: bool
) -> None:
    with tls_proxy(servers.postgres_url, authority, is_postgres=True) as through:
        url = through.replace("@localhost", f"@{host}") + f"?sslmode=verify-full&sslrootcert={tmp_path / ca}.pem"
        settings = Settings(profile="production", postgres_url=url)
        if not connects:
            with pytest.raises(psycopg.OperationalError, match="certificate"):
                await postgres.connect(settings, "orders")
            return
        async with await postgres.connect(settings, "orders") as connection:
            assert connection.pgconn.ssl_in_use
            assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


@pytest.mark.parametrize(
    ("host", "ca", "connects"), [("localhost", "ca", True), ("localhost", "other", False), ("127.0.0.1", "ca", False)]
)
async def test_redis_by_tls_with_a_verified_name(
    servers: Servers, authority: trustme.CA, tmp_path: Path, host: str, ca: str, connects: bool
) -> None:
    with tls_proxy(servers.redis_url, authority, is_postgres=False) as through:
        url = through.replace("@localhost", f"@{host}") + f"?ssl_ca_certs={tmp_path / ca}.pem"
        client = Redis.from_url(Settings(profile="production", redis_url=url).redis_url, socket_timeout=5)
        try:
            if connects:
                assert await client.ping()
            else:
                with pytest.raises(RedisError, match="certificate"):
                    await client.ping()
        finally:
            await client.aclose()
