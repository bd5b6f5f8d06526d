"""Does it answer? Each server asked in its own protocol, with nothing but a socket.

No client library: a probe runs every second and from the first millisecond of a start, so it has to be
cheap, and it must never hang on a frozen server.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
from enum import Enum
from urllib.parse import urlsplit

import psutil

LOOPBACK = "127.0.0.1"
PATIENCE = 1.0
"""Seconds that one answer may take."""


class Health(Enum):
    """What a probe found."""

    SILENT = "silent"
    """No answer: not started yet, frozen or gone."""
    SICK = "sick"
    """It answers that it is not well."""
    LIVE = "live"
    """It lives but cannot serve yet (or just now)."""
    READY = "ready"


def _ask(host: str, port: int, question: bytes) -> bytes:
    """One question and the first bytes of its answer; empty when nobody answers in time."""
    try:
        with socket.create_connection((host, port), PATIENCE) as link:
            link.settimeout(PATIENCE)
            link.sendall(question)
            return link.recv(512)
    except OSError:
        return b""


def kafka(host: str, port: int) -> bool:
    """ApiVersions v0 with correlation id 7 and no client id; the answer repeats 7 with error 0."""
    answer = _ask(host, port, struct.pack("!ihhih", 10, 18, 0, 7, -1))
    return answer[4:10] == struct.pack("!ih", 7, 0)


def postgres(host: str, port: int) -> bool:
    """A startup packet; `R` (a request to authenticate) means that it takes connections."""
    body = struct.pack("!i", 196608) + b"user\0holdfast\0database\0holdfast\0\0"
    return _ask(host, port, struct.pack("!i", len(body) + 4) + body)[:1] == b"R"


def redis(host: str, port: int, password: str) -> bool:
    """AUTH and PING in one write; PONG may come in the same packet or the next."""
    try:
        with socket.create_connection((host, port), PATIENCE) as link:
            link.settimeout(PATIENCE)
            link.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while b"+PONG\r\n" not in answer:
                if not (more := link.recv(512)):
                    return False
                answer += more
            return True
    except OSError:
        return False


def service(port: int) -> Health:
    """What `/livez` and `/readyz` say."""
    live = _status(port, "/livez")
    if live != http.client.OK:
        return Health.SICK if live else Health.SILENT
    return Health.READY if _status(port, "/readyz") == http.client.OK else Health.LIVE


def _status(port: int, path: str) -> int:
    return ask(f"http://{LOOPBACK}:{port}{path}")[0]


def ask(url: str) -> tuple[int, str]:
    """The status and the text of what a service answers, as on `/readyz`; 0 when it does not answer in time."""
    place = urlsplit(url)
    link = http.client.HTTPConnection(place.hostname or LOOPBACK, place.port, timeout=PATIENCE)
    try:
        link.request("GET", place.path)
        answer = link.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, f"it does not answer: {type(error).__name__}"
    finally:
        link.close()


def page(url: str) -> str | None:
    """The text of a page, as of a service's `/metrics`; None when it is not given in time."""
    status, text = ask(url)
    return text if status == http.client.OK else None


_given: set[int] = set()


def free_port() -> int:
    """A port of the loopback address that nobody uses now, another one each time.

    Not one of those that the system hands out to clients (from 32768 on): a server that is started
    again must find its port free. At random, so that two shops that start together do not meet.
    """
    while (port := random.randint(20000, 32000)) in _given or taken(port):  # noqa: S311 - no secret
        pass
    _given.add(port)
    return port


def taken(port: int) -> bool:
    """Whether somebody listens there (connections that are only closing do not count)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def holder(port: int) -> str:
    """Who listens there, as `name (pid 12)`; less when this user may not know."""
    with contextlib.suppress(psutil.Error, OSError):
        for link in psutil.net_connections("tcp"):
            if link.status == psutil.CONN_LISTEN and link.laddr and link.laddr[1] == port and link.pid:
                return f"{psutil.Process(link.pid).name()} (pid {link.pid})"
    return "another program, or chosen by another shop that is starting"
