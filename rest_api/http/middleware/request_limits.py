"""Middleware that refuses foreign hosts, and large heads and bodies."""

import re
from collections.abc import Collection, Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rest_api.protocol.problems import Problem

MAX_BODY_BYTES: Final = 64 * 1024
MAX_HEAD_BYTES: Final = 16 * 1024
PROBES: Final = frozenset({"/livez", "/readyz"})
"""Paths that orchestrators request by whatever address they know, in production."""
_PORT: Final = re.compile(r":\d*$")


class LimitsMiddleware:
    """Middleware that refuses invalid hosts, heads and bodies before the application sees them.

    It counts a body while it arrives, whether or not its length was announced.
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], any_host_paths: Collection[str] = ()) -> None:
        """`hosts` are the names that a `Host` header may have, in lower case and without a port.

        `any_host_paths` are answered under any name.
        """
        self.app = app
        self.any_host_paths = frozenset(any_host_paths)
        self.hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope, Headers(scope=scope))
        app = self.app if refusal is None else refusal.response(scope["state"]["request_id"])
        if scope["type"] == "websocket":
            if refusal is not None:
                await receive()
            await app(scope, receive, send)
        else:
            await app(scope, _bounded(receive), send)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        host = _PORT.sub("", headers.get("host", ""))
        if host.lower() not in self.hosts and scope["path"] not in self.any_host_paths:
            return Problem("bad-request", "this shop does not go by that Host", headers={"Connection": "close"})
        head = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if head + sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            return Problem("headers-too-large", f"{MAX_HEAD_BYTES} bytes at most", headers={"Connection": "close"})
        if "transfer-encoding" in headers and "content-length" in headers:
            return Problem("bad-request", "a body has one length", headers={"Connection": "close"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return _too_large()
        return None


def _too_large() -> Problem:
    return Problem("too-large", f"a body has {MAX_BODY_BYTES} bytes at most", headers={"Connection": "close"})


def _bounded(receive: Receive) -> Receive:
    """Return a `receive` that raises once the body is too large, however it was announced."""
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise _too_large()
        return message

    return bounded
