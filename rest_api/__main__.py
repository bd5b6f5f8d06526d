"""The composition root of the edge: `python -m rest_api run|migrate`."""

import argparse
import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import uvloop
from fastapi import FastAPI
from pydantic import ValidationError
from redis.asyncio import Redis

from cart_service.messages import REQUESTS, RESPONSES
from infrastructure import logs
from infrastructure.broker import ensure_topics
from infrastructure.health import HealthServer
from infrastructure.postgres import migrate
from inventory_service.messages import PRODUCTS, STOCK
from rest_api.app import create_app
from rest_api.edge import Edge
from rest_api.gateway import Gateway
from rest_api.hub import Hub
from rest_api.identity import Identities
from rest_api.limiter import Limiter
from rest_api.projection import Projection
from rest_api.routes_pages import fault
from rest_api.server import Server, bind
from rest_api.settings import EdgeSettings
from rest_api.shopper import Rules
from rest_api.store import AWAY, HERE, SERVICE, Store
from rest_api.ticker import Ticker

log = logging.getLogger("rest_api")

MIGRATIONS: Final = HERE / "migrations"
TRIM_SECONDS: Final = 600
RETRY_SECONDS: Final = 1.0


def build(settings: EdgeSettings, port: int) -> FastAPI:
    """The application of an edge that listens on `port`; its parts start with it, and it accepts when they are."""
    limited = settings.limits == "on"
    rules = (
        Rules(settings.limit_changes, settings.limit_others, settings.limit_unanswered, settings.limit_sockets)
        if limited
        else Rules(None, None, None, None)
    )
    store, ticker, gateway = Store(settings), Ticker(), Gateway(settings)
    projection = Projection(settings, store, ticker)
    hub = Hub(gateway, names=projection.names, currency=settings.currency, rules=rules, ticker=ticker)
    redis = Redis.from_url(settings.redis_url, socket_timeout=1, socket_connect_timeout=1)
    identities = Identities(settings, redis, settings.origins(port))
    edge = Edge(settings, hub, store, projection, identities, Limiter(settings))

    async def begin() -> None:
        """Wait for Kafka and Postgres, then read: responses first, the catalogue beside them."""
        await ensure_topics(settings, (REQUESTS, RESPONSES, PRODUCTS, STOCK))
        await gateway.start(hub.handle)
        await migrate(settings, SERVICE, MIGRATIONS)
        await store.open()
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as loops:
            loops.create_task(_again("the read model", projection.run))
            loops.create_task(_again("the sweep", hub.sweep))
            loops.create_task(_again("the ticker", ticker.run))
            loops.create_task(_again("the trimming of claims", lambda: _trim(store)))

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        health = HealthServer(settings.health_host, settings.health_port, live=lambda: None, ready=lambda: fault(edge))
        if settings.profile == "production":
            await health.start()
        work = asyncio.create_task(_again("starting", begin))
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await gateway.stop()
            await store.close()
            await redis.aclose()
            await health.stop()

    app = create_app(edge)
    app.router.lifespan_context = life
    return app


async def _again(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for ever; what it raises is logged, and it begins again a second later."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("%s failed and begins again", name)
        await asyncio.sleep(RETRY_SECONDS)


async def _trim(store: Store) -> None:
    while True:
        with contextlib.suppress(*AWAY):
            await store.trim_claims()
        await asyncio.sleep(TRIM_SECONDS)


def run(settings: EdgeSettings) -> int:
    """Serve until told to stop."""
    listening = bind(settings)
    port = listening.getsockname()[1]
    log.info("serving http://%s:%s", settings.http_host, port)
    server = Server(build(settings, port), settings)
    server.run(sockets=[listening])
    return 0 if server.started else 1


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m rest_api", description="The edge: HTTP and WebSocket.")
    parser.add_argument("command", choices=("run", "migrate"))
    command = parser.parse_args().command
    try:
        settings = EdgeSettings()
    except ValidationError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure("edge", settings)
    if command == "migrate":
        uvloop.run(migrate(settings, SERVICE, MIGRATIONS))
        return 0
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
