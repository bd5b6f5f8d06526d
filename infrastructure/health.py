"""`/livez`, `/readyz` and `/metrics` of a worker: what supervisors, orchestrators and Prometheus ask."""

import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from infrastructure import metrics

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


class HealthServer:
    """A small HTTP server beside the agents, on their own loop: when that hangs, it does not answer, as it should."""

    def __init__(self, host: str, port: int, *, live: Check, ready: Check) -> None:
        self.host = host
        self.port = port
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", _answer(live)),
                web.get("/readyz", _answer(ready, gauge=True)),
                web.get("/metrics", _metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)

    async def start(self) -> None:
        """Listen; `port` 0 becomes the one that the system chose."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()


def _answer(check: Check, *, gauge: bool = False) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        problem = check()
        if gauge:
            metrics.UP.set(problem is None)
        return web.json_response(
            {"status": "ok"} if problem is None else {"status": "unavailable", "detail": problem},
            status=200 if problem is None else 503,
        )

    return answer


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
