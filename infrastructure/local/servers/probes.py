"""Probes of servers and services, each in its own protocol over a plain socket.

No client library is used: a probe runs every second and from the first millisecond of a start. It must be cheap and
must never hang on a frozen server.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import ssl
import struct
from enum import Enum
from urllib.parse import urlsplit

import psutil

LOOPBACK = "127.0.0.1"
TIMEOUT_SECONDS = 1.0
"""Seconds to wait for a connection and for each answer."""


class Health(Enum):
    """Result of a probe."""

    NO_ANSWER = "silent"
    """No answer: the program is not started yet, frozen or gone."""
    UNHEALTHY = "sick"
    """The program reports that it is not live."""
    LIVE = "live"
    """The program is live but cannot serve yet, or cannot serve at the moment."""
    READY = "ready"
    """The program serves requests."""


def _exchange(host: str, port: int, request: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send a request and return the first bytes of the answer; empty if none comes in time."""
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection((host, port), TIMEOUT_SECONDS))
            connection.settimeout(TIMEOUT_SECONDS)
            if tls is not None:
                connection = stack.enter_context(tls.wrap_socket(connection, server_hostname=host))
            connection.sendall(request)
            return connection.recv(512)
    except OSError:
        return b""


def kafka_answers(host: str, port: int, tls: ssl.SSLContext | None = None) -> bool:
    """Return whether a broker answers ApiVersions v0 (correlation id 7, no client id) with id 7 and error 0."""
    answer = _exchange(host, port, struct.pack("!ihhih", 10, 18, 0, 7, -1), tls)
    return answer[4:10] == struct.pack("!ih", 7, 0)


def postgres_answers(host: str, port: int) -> bool:
    """Return whether a server answers a startup packet with `R`, a request to authenticate: it accepts connections."""
    body = struct.pack("!i", 196608) + b"user\0holdfast\0database\0holdfast\0\0"
    return _exchange(host, port, struct.pack("!i", len(body) + 4) + body)[:1] == b"R"


def redis_answers(host: str, port: int, password: str) -> bool:
    """Return whether a server answers AUTH and PING, sent in one write; PONG may arrive in a later packet."""
    try:
        with socket.create_connection((host, port), TIMEOUT_SECONDS) as connection:
            connection.settimeout(TIMEOUT_SECONDS)
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while b"+PONG\r\n" not in answer:
                if not (more := connection.recv(512)):
                    return False
                answer += more
            return True
    except OSError:
        return False


def service_health(port: int) -> Health:
    """Return the health that a service's `/livez` and `/readyz` report."""
    live = _status(port, "/livez")
    if live != http.client.OK:
        return Health.UNHEALTHY if live else Health.NO_ANSWER
    return Health.READY if _status(port, "/readyz") == http.client.OK else Health.LIVE


def _status(port: int, path: str) -> int:
    """Return the status of a page; 0 if there is no answer in time. An HTTP client would take far more CPU time."""
    request = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\n\r\n"
    version, _, rest = _exchange(LOOPBACK, port, request.encode()).partition(b" ")
    return int(rest[:3]) if version.startswith(b"HTTP/") and rest[:3].isdigit() else 0


def http_get(url: str) -> tuple[int, str]:
    """GET a page such as `/readyz` and return its status and text; 0 and the error if there is no answer in time."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or LOOPBACK, parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, f"no answer: {type(error).__name__}"
    finally:
        connection.close()


def get_page(url: str) -> str | None:
    """GET a page such as `/metrics` and return its text; `None` unless the answer is 200 and in time."""
    status, text = http_get(url)
    return text if status == http.client.OK else None


_returned: set[int] = set()


def free_port() -> int:
    """Return a free port of the loopback address, a different one on each call.

    The port is below the range that the system gives to clients (from 32768 on), so that a restarted server finds its
    port free. The choice is random, so that two shops that start together rarely choose the same port.
    """
    while (port := random.randint(20000, 32000)) in _returned or is_port_in_use(port):  # noqa: S311 - no secret
        pass
    _returned.add(port)
    return port


def is_port_in_use(port: int) -> bool:
    """Return whether a program listens on the port (closing connections do not count)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def port_owner(port: int) -> str:
    """Return the program that listens on the port, as `name (pid 12)`; a general phrase if it cannot be determined."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another program, or by another shop that is starting"
