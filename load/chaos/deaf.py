"""Clients that ask for much and read nothing: WebSockets by hand, since every library reads."""

import asyncio
import base64
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

ROUNDS: Final = 20
ASKED_AT_ONCE: Final = 5
PAUSE_SECONDS: Final = 0.2


async def ask_without_reading(clients: Sequence[tuple[str, str]]) -> None:
    """Open a line for each of `clients` (the shop's URL, a token), ask for carts for some seconds, read none."""
    lines = [await asyncio.to_thread(_line, url, token) for url, token in clients]
    try:
        for _round in range(ROUNDS):
            for line in lines:
                with suppress(OSError):  # full, or closed by the shop, as it may
                    for number in range(ASKED_AT_ONCE):
                        line.send(_masked(f'{{"id":"d{number}","type":"cart"}}'))
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        for line in lines:
            line.close()


def _line(url: str, token: str) -> socket.socket:
    """An open WebSocket that watches all stock, with as small a receive buffer as the system gives."""
    where = urlsplit(url)
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    line.settimeout(5)
    line.connect((where.hostname or "127.0.0.1", where.port or 80))
    key = base64.b64encode(os.urandom(16)).decode()
    line.sendall(
        f"GET /v1/stream HTTP/1.1\r\nHost: {where.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )
    line.recv(64)
    line.sendall(_masked('{"id":"w","type":"watch"}'))
    line.setblocking(False)
    return line


def _masked(text: str) -> bytes:
    """A text frame of a client; a mask of zeros is a mask."""
    body = text.encode()
    return bytes([0x81, 0x80 | len(body), 0, 0, 0, 0]) + body
