"""Health endpoints for supervisors, orchestrators and Prometheus: `/livez`, `/readyz` and `/metrics`.

A small HTTP server of our own: a web framework would take ten megabytes per process for three paths.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from infrastructure.observability import metrics
from infrastructure.process.bounded_server import BoundedServer, ConnectionBounds
from infrastructure.process.loopback import refusal_of_request, resolves_to_loopback

ASK_SECONDS: Final = 5.0
"""Time that a client has to send its request."""
BOUNDS: Final = ConnectionBounds(connections=64, lifetime_seconds=15)
MAX_REQUEST_BYTES: Final = 8192
_REASONS: Final = {200: "OK", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}

HealthCheck = Callable[[], str | None]
"""Returns `None` if all is well, else a sentence about the problem."""


class ProgressWatch:
    """Watch that measures for how long waiting work has made no progress."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mark: object = None
        self._since: float | None = None

    def stalled_seconds(self, mark: object, *, waiting: bool) -> float:
        """Return for how many seconds work has been seen waiting with the same `mark`. Progress must change `mark`."""
        if mark != self._mark or not waiting:
            self._mark, self._since = mark, None
        if waiting and self._since is None:
            self._since = self._clock()
        return 0.0 if self._since is None else self._clock() - self._since


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An HTTP response."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class HealthServer:
    """HTTP server for health and metrics, on the event loop of the service: if the loop hangs, it cannot answer.

    On loopback it answers programs of this machine only, not the pages that a browser shows. `live` and `ready` decide
    `/livez` and `/readyz`. `pages` serves other paths, and returns `None` for unknown ones.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        live: HealthCheck,
        ready: HealthCheck,
        pages: Callable[[str], HttpResponse | None] | None = None,
        bounds: ConnectionBounds = BOUNDS,
    ) -> None:
        self.host = host
        self.port = port
        self.live = live
        self.ready = ready
        self.pages = pages
        self.bounds = bounds
        self._any_host = not resolves_to_loopback(host)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Start to listen. Afterwards `port` is the actual port, also if it was 0."""
        bounded = BoundedServer(self._protocol, self.bounds)
        self._server = await asyncio.get_running_loop().create_server(bounded, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening. Does nothing if `start` was not called."""
        if self._server is not None:
            self._server.close()

    def _protocol(self) -> asyncio.Protocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=MAX_REQUEST_BYTES), self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Clients that disconnect, are too slow or send too much get no response.
        with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    request = await reader.readuntil(b"\r\n\r\n")
                    page = self._respond(request)
                    method = request.partition(b" ")[0]
                    headers = {
                        "Content-Type": page.content_type,
                        "Content-Length": str(len(page.body)),
                        "Connection": "close",
                        **page.headers,
                    }
                    lines = [f"HTTP/1.1 {page.status} {_REASONS[page.status]}", *map(": ".join, headers.items())]
                    writer.write("\r\n".join([*lines, "", ""]).encode() + (page.body if method != b"HEAD" else b""))
                    await writer.drain()
            finally:
                writer.close()

    def _respond(self, request: bytes) -> HttpResponse:
        request_line, *lines = request.split(b"\r\n")
        method, target, *_ = [*request_line.split(b" "), b"", b""]
        hosts, origins = _values(lines, b"host"), _values(lines, b"origin")
        # Orchestrators know a process by any address; a page of another origin is refused everywhere.
        refusal = refusal_of_request(hosts, origins, any_host=self._any_host)
        if refusal is not None:
            return HttpResponse(403, "text/plain", f"{refusal}\n".encode())
        return self._page(method, target.partition(b"?")[0])

    def _page(self, method: bytes, path: bytes) -> HttpResponse:
        if method not in {b"GET", b"HEAD"}:
            return HttpResponse(405, "text/plain", b"GET\n", {"Allow": "GET, HEAD"})
        match path:
            case b"/livez":
                return _state(self.live())
            case b"/readyz":
                problem = self.ready()
                metrics.READY.set(problem is None)
                return _state(problem)
            case b"/metrics":
                return HttpResponse(200, CONTENT_TYPE_LATEST, generate_latest())
        page = self.pages(path.decode(errors="replace")) if self.pages else None
        return page or HttpResponse(404, "text/plain", b"/livez /readyz /metrics\n")


def _values(lines: Iterable[bytes], name: bytes) -> list[str]:
    """Return the values of all headers with this name."""
    fields = (line.partition(b":") for line in lines)
    return [value.strip().decode("latin-1") for found, _, value in fields if found.strip().lower() == name]


def _state(problem: str | None) -> HttpResponse:
    if problem is None:
        return HttpResponse(200, "application/json", b'{"status":"ok"}')
    return HttpResponse(503, "application/json", orjson.dumps({"status": "unavailable", "detail": problem}))
