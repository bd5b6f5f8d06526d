"""`/livez`, `/readyz` and `/metrics` of a worker: what supervisors, orchestrators and Prometheus ask.

Three paths, answered and hung up on: that takes a page of code, where a web framework takes ten megabytes a process.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from infrastructure import metrics

ASK_SECONDS: Final = 5.0
"""How long somebody may take to say what they want to know."""
MAX_REQUEST_BYTES: Final = 8192
_REASONS: Final = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}

Check = Callable[[], str | None]
"""None when all is well, else a sentence that says what is not."""


class Stall:
    """How long nothing has moved although something waits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mark: object = None
        self._since: float | None = None

    def seconds(self, mark: object, *, waiting: bool) -> float:
        """Seconds since something was first seen waiting with `mark`, which any progress changes, as it still is."""
        if mark != self._mark or not waiting:
            self._mark, self._since = mark, None
        if waiting and self._since is None:
            self._since = self._clock()
        return 0.0 if self._since is None else self._clock() - self._since


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    kind: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class HealthServer:
    """A small HTTP server beside the agents, on their own loop: when that hangs, it does not answer, as it should.

    `pages`, when given, answers what other paths ask for; none for those that it does not know.
    """

    def __init__(
        self, host: str, port: int, *, live: Check, ready: Check, pages: Callable[[str], Page | None] | None = None
    ) -> None:
        self.host = host
        self.port = port
        self.live = live
        self.ready = ready
        self.pages = pages
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; `port` 0 becomes the one that the system chose."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=MAX_REQUEST_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, if it was begun."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever hangs up, dawdles or talks too much is not answered.
        with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    request = await reader.readuntil(b"\r\n\r\n")
                    method, target, *_ = [*request.partition(b"\r\n")[0].split(b" "), b"", b""]
                    page = self._answer(method, target.partition(b"?")[0])
                    headers = {
                        "Content-Type": page.kind,
                        "Content-Length": str(len(page.body)),
                        "Connection": "close",
                        **page.headers,
                    }
                    lines = [f"HTTP/1.1 {page.status} {_REASONS[page.status]}", *map(": ".join, headers.items())]
                    writer.write("\r\n".join([*lines, "", ""]).encode() + (page.body if method != b"HEAD" else b""))
                    await writer.drain()
            finally:
                writer.close()

    def _answer(self, method: bytes, path: bytes) -> Page:
        if method not in {b"GET", b"HEAD"}:
            return Page(405, "text/plain", b"GET\n", {"Allow": "GET, HEAD"})
        match path:
            case b"/livez":
                return _state(self.live())
            case b"/readyz":
                problem = self.ready()
                metrics.UP.set(problem is None)
                return _state(problem)
            case b"/metrics":
                return Page(200, CONTENT_TYPE_LATEST, generate_latest())
        page = self.pages(path.decode(errors="replace")) if self.pages else None
        return page or Page(404, "text/plain", b"/livez /readyz /metrics\n")


def _state(problem: str | None) -> Page:
    if problem is None:
        return Page(200, "application/json", b'{"status":"ok"}')
    return Page(503, "application/json", orjson.dumps({"status": "unavailable", "detail": problem}))
