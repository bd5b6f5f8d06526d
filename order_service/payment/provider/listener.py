"""The provider's listening socket: aiohttp's server, with bounds on connections that aiohttp lacks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from infrastructure.process.bounded_server import BoundedServer, ConnectionBounds

HEAD_SECONDS: Final = 15.0
"""Time limit for the head of a request, which is also the time that an idle connection stays open."""
SHUTDOWN_SECONDS: Final = 1.0
BOUNDS: Final = ConnectionBounds(connections=256)


@asynccontextmanager
async def serve(
    app: web.Application,
    host: str,
    port: int,
    *,
    head_seconds: float = HEAD_SECONDS,
    bounds: ConnectionBounds = BOUNDS,
) -> AsyncIterator[Any]:
    """Serve `app` inside the context; yield the address, whose port was chosen by the system if `port` is 0."""
    # The handler of a client that disconnects, for example after a timeout, is cancelled.
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=SHUTDOWN_SECONDS,
        handler_cancellation=True,
        keepalive_timeout=head_seconds,
    )
    await runner.setup()
    assert runner.server is not None
    listening = await asyncio.get_running_loop().create_server(BoundedServer(runner.server, bounds), host, port)
    try:
        yield listening.sockets[0].getsockname()
    finally:
        listening.close()
        await runner.cleanup()
