"""The server process: its listening socket, and uvicorn's server with the protocols of this package."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from functools import partial
from typing import Final

import uvicorn
from fastapi import FastAPI

from rest_api.http.middleware.request_limits import MAX_HEAD_BYTES
from rest_api.protocol.client_frames import MAX_FRAME_BYTES
from rest_api.server.connection_pool import ConnectionPool
from rest_api.server.deadline import TimeLimits
from rest_api.server.http_protocol import HttpProtocol
from rest_api.server.websocket_protocol import WebSocketProtocol
from rest_api.settings import EdgeSettings

log = logging.getLogger(__name__)

SOCKET_BUFFER_BYTES: Final = 64 * 1024
"""Kernel buffer per connection and direction. Small, so that a slow reader fills our bounded queue, not megabytes."""


class Server(uvicorn.Server):
    """uvicorn on a socket that is already bound, so that the port is known before the application is built."""

    def __init__(self, app: FastAPI, settings: EdgeSettings) -> None:
        limits = TimeLimits(
            request=settings.request_seconds,
            unread=settings.unread_seconds,
            keep_alive=settings.keep_alive_seconds,
            close=settings.close_seconds,
        )
        pool = ConnectionPool(settings, limits)
        log.info("room for %d connections", pool.capacity)
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(HttpProtocol, pool=pool),  # type: ignore[arg-type]  # uvicorn only calls it
                ws=WebSocketProtocol,
                loop="uvloop",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies()),
                forwarded_allow_ips=list(settings.trusted_proxies()),
                ws_max_size=MAX_FRAME_BYTES,
                ws_ping_interval=settings.ping_seconds,
                ws_ping_timeout=settings.ping_seconds,
                ws_per_message_deflate=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]  # a delay of the event loop
                timeout_graceful_shutdown=5,
                backlog=2048,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT without raising the signal again, so that the process exits with status 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def bind(settings: EdgeSettings) -> socket.socket:
    """Bind and return the server's socket; for port 0 the system chooses a free port."""
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        bound.setsockopt(socket.SOL_SOCKET, buffer, SOCKET_BUFFER_BYTES)
    bound.bind((settings.http_host, settings.http_port))
    bound.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return bound


for _name in ("uvicorn.error", "uvicorn.access", "websockets.server"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # at INFO they log URLs with query strings
