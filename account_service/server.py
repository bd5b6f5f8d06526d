"""The HTTP server of the account service, for the edge: `POST /commands/NAME`, and the published keys.

A command's answer is 200 with its result, or 422 with `{"problem","detail","errors","retry_after"}`. Every other status
means that no command was executed. On loopback it answers programs of this machine only.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
from aiohttp import web

from account_service.commands import CommandError, Commands
from account_service.keys import KeyRing
from infrastructure.process.bounded_server import BoundedServer, ConnectionBounds
from infrastructure.process.loopback import refusal_of_request, resolves_to_loopback

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 128 * 1024
HEAD_SECONDS: Final = 30.0
"""Time limit for the head of a request, which is also the time that an idle connection stays open."""
BODY_SECONDS: Final = 5.0
SHUTDOWN_SECONDS: Final = 2.0
BOUNDS: Final = ConnectionBounds(connections=256)
REFUSED: Final = 422


class AccountServer:
    """The application. `host` is the address on which it listens."""

    def __init__(self, commands: Commands, keys: KeyRing, *, host: str) -> None:
        self._commands = commands
        self._keys = keys
        self._any_host = not resolves_to_loopback(host)

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._refuse_foreign_pages])
        app.router.add_post("/commands/{name}", self._execute)
        app.router.add_get("/.well-known/jwks.json", self._key_set)
        return app

    @web.middleware
    async def _refuse_foreign_pages(self, request: web.Request, handler: Any) -> web.StreamResponse:
        hosts, origins = request.headers.getall("Host", []), request.headers.getall("Origin", [])
        refusal = refusal_of_request(hosts, origins, any_host=self._any_host)
        if refusal is not None:
            return web.Response(status=403, text=refusal)
        response: web.StreamResponse = await handler(request)
        return response

    async def _execute(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return web.Response(status=415, text="the body is application/json")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = orjson.loads(await request.read())
        except (orjson.JSONDecodeError, TimeoutError):
            return web.Response(status=400, text="the body is not JSON")
        name = request.match_info["name"]
        try:
            result, status = await self._commands.execute(name, body), 200
        except CommandError as refused:
            result, status = refused.body(), REFUSED
        except Exception:
            log.exception("a command failed")
            return web.Response(status=500, text="the command failed")
        return web.Response(status=status, body=orjson.dumps(result), content_type="application/json")

    async def _key_set(self, _: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self._keys.key_set()), content_type="application/json")


@asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve `app` inside the context; yield the port, which was chosen by the system if `port` is 0."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, keepalive_timeout=HEAD_SECONDS)
    await runner.setup()
    assert runner.server is not None
    listening = await asyncio.get_running_loop().create_server(BoundedServer(runner.server, BOUNDS), host, port)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await runner.cleanup()
