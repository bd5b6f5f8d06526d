"""The outermost layer of every HTTP request: its id, its bounds, the headers of every answer, and the last `except`.

A pure ASGI middleware, so that a body is counted while it comes in, whether or not it says how long it will be.
"""

import logging
import re
import time
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infrastructure import metrics
from infrastructure.ids import uuid7
from infrastructure.trace import child, trace_id
from rest_api.limits import WINDOW
from rest_api.problems import Problem

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 64 * 1024
MAX_HEAD_BYTES: Final = 16 * 1024
PROBES: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked by orchestrators, by whatever address they know."""
_PORT: Final = re.compile(r":\d*$")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": _CSP,
}


class Shield:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str]) -> None:
        self.app = app
        self.hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give a request its id, refuse what is out of bounds, and answer whatever breaks with a problem document."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        scope.setdefault("state", {})["request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid7()
        refusal = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await receive()
                await refusal.response(scope["state"]["request_id"])(scope, receive, send)
            return
        await self._http(scope, receive, send, refusal)

    async def _http(self, scope: Scope, receive: Receive, send: Send, refusal: Problem | None) -> None:
        since = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _dress(scope, MutableHeaders(scope=message))
            await send(message)

        # HEAD is answered as GET; the server, which keeps the method, leaves the body out.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            app = self.app if refusal is None else refusal.response(scope["state"]["request_id"])
            await app(asked, _bounded(receive), answer)
        except Problem as problem:
            if status:
                raise
            await problem.response(scope["state"]["request_id"])(scope, receive, answer)
        except Exception:
            trace = trace_id(child(HTTPConnection(scope).headers.get("traceparent")))
            log.exception(
                "a request could not be answered", extra={"trace": trace, "requestid": scope["state"]["request_id"]}
            )
            if status:
                raise
            await Problem("internal", trace_id=trace).response(scope["state"]["request_id"])(scope, receive, answer)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics.EDGE_REQUESTS.labels(method, str(status)).inc()
            metrics.EDGE_REQUEST_SECONDS.labels(method).observe(time.perf_counter() - since)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        host = _PORT.sub("", headers.get("host", ""))
        if host.lower() not in self.hosts and scope["path"] not in PROBES:
            return Problem("bad-request", "this shop does not go by that Host", headers={"Connection": "close"})
        head = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if head + sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            return Problem("headers-too-large", f"{MAX_HEAD_BYTES} bytes at most", headers={"Connection": "close"})
        if "transfer-encoding" in headers and "content-length" in headers:
            return Problem("bad-request", "a body has one length", headers={"Connection": "close"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            return _too_large()
        has_body = length != "0" or "transfer-encoding" in headers
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["type"] == "http" and has_body and media_type != "application/json":
            accepted = {"Accept": "application/json"}
            return Problem("unsupported-media-type", "bodies are application/json", headers=accepted)
        return None


_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


def _too_large() -> Problem:
    detail = f"a body has {MAX_BODY_BYTES} bytes at most"
    return Problem("too-large", detail, headers={"Connection": "close"})


def _bounded(receive: Receive) -> Receive:
    """`receive`, but a body that grows too large raises, however it was announced."""
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                # Of this class, because the framework makes a 400 of everything else that a body raises.
                raise HTTPException(413)
        return message

    return bounded


def _dress(scope: Scope, headers: MutableHeaders) -> None:
    headers["X-Request-ID"] = scope["state"]["request_id"]
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    if not scope["path"].startswith(("/static", "/docs/")):
        headers.setdefault("Cache-Control", "no-store")
    taken = scope["state"].get("ratelimit")
    if taken is not None:
        size, remaining, wait = taken
        headers["RateLimit-Policy"] = f'"default";q={size};w={int(WINDOW)}'
        headers["RateLimit"] = f'"default";r={remaining};t={wait}'
