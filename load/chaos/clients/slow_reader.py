"""Clients that send many requests and read nothing: hand-written WebSockets, since every library reads."""

import asyncio
import base64
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

ROUNDS: Final = 20
FRAMES_PER_ROUND: Final = 5
PAUSE_SECONDS: Final = 0.2


async def send_without_reading(clients: Sequence[tuple[str, str]]) -> None:
    """Connect each of `clients` (the shop's URL, a token), request carts for some seconds, and read nothing."""
    sockets = [await asyncio.to_thread(_open_socket, url, token) for url, token in clients]
    try:
        for _round in range(ROUNDS):
            for sock in sockets:
                with suppress(OSError):  # the buffer is full, or the shop closed the socket, as it may
                    for number in range(FRAMES_PER_ROUND):
                        sock.send(_masked(f'{{"id":"d{number}","type":"cart"}}'))
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        for sock in sockets:
            sock.close()


def _open_socket(url: str, token: str) -> socket.socket:
    """Open a WebSocket that watches all stock, with the smallest receive buffer that the system permits."""
    where = urlsplit(url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    sock.settimeout(5)
    sock.connect((where.hostname or "127.0.0.1", where.port or 80))
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET /v1/stream HTTP/1.1\r\nHost: {where.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )
    sock.recv(64)
    sock.sendall(_masked('{"id":"w","type":"watch"}'))
    sock.setblocking(False)
    return sock


def _masked(text: str) -> bytes:
    """Return a client's text frame; a mask of zeros is valid."""
    body = text.encode()
    return bytes([0x81, 0x80 | len(body), 0, 0, 0, 0]) + body
