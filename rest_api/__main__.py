"""The composition root of the edge: `python -m rest_api run|migrate`."""

import argparse
import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

import uvloop
from fastapi import FastAPI
from pydantic import ValidationError
from redis.asyncio import Redis

from cart_service import messages as cart
from infrastructure import logs
from infrastructure.broker import ensure_topics
from infrastructure.health import HealthServer
from infrastructure.postgres import migrate
from inventory_service import messages as inventory
from notification_service import messages as notices
from order_service import messages as orders
from order_service.delivery import messages as deliveries
from order_service.insights import messages as learnt
from order_service.payment import messages as payments
from rest_api.admission import Admission
from rest_api.app import create_app
from rest_api.edge import Edge
from rest_api.gateway import Gateway
from rest_api.hub import Hub
from rest_api.identity import Identities
from rest_api.insights import Insights
from rest_api.limiter import Limiter
from rest_api.notices import Notices
from rest_api.order_projection import OrderProjection
from rest_api.order_requests import refuses_orders
from rest_api.order_store import OrderStore
from rest_api.projection import Projection
from rest_api.provider_watch import ProviderWatch
from rest_api.routes_notifications import tell_preferences
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
TOPICS: Final = (
    cart.REQUESTS,
    cart.RESPONSES,
    inventory.REQUESTS,
    inventory.PRODUCTS,
    inventory.STOCK,
    orders.REQUESTS,
    orders.EVENTS,
    payments.REQUESTS,
    payments.EVENTS,
    payments.STATE,
    deliveries.EVENTS,
    learnt.RELATED,
    learnt.FIGURES,
    notices.REQUESTS,
    notices.EVENTS,
)


def assemble(settings: EdgeSettings, port: int) -> tuple[Edge, Redis]:
    """Return the state of an edge that listens on `port`, not started, and the Redis client to close in the end."""
    store, ticker = Store(settings), Ticker()
    order_store = OrderStore(store)
    projection = Projection(settings, store, ticker)
    hub = Hub(
        Gateway(settings),
        names=projection.names,
        currency=settings.currency,
        rules=_user_limits(settings),
        ticker=ticker,
        refuses=lambda order_id: refuses_orders(edge, order_id),
        admission=Admission(settings.limit_under_way),
    )
    redis = Redis.from_url(settings.redis_url, socket_timeout=1, socket_connect_timeout=1)
    edge = Edge(
        settings,
        hub,
        store,
        projection,
        order_store,
        OrderProjection(settings, store, order_store),
        ProviderWatch(settings, store, patience=timedelta(seconds=settings.provider_patience_seconds)),
        Insights(settings, store),
        Notices(settings, store, lambda *told: tell_preferences(edge, *told)),
        Identities(settings, redis, settings.origins(port)),
        Limiter(settings),
    )
    return edge, redis


def build(settings: EdgeSettings, port: int) -> FastAPI:
    """Return the application of an edge that listens on `port`; it starts the parts and is ready once they are."""
    edge, redis = assemble(settings, port)
    store, hub, gateway = edge.store, edge.hub, edge.hub.gateway

    async def start_parts() -> None:
        """Wait for Kafka and Postgres, then read responses and feed the read models."""
        await ensure_topics(settings, TOPICS)
        await gateway.start(hub.handle)
        await migrate(settings, SERVICE, MIGRATIONS)
        await store.open()
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as loops:
            loops.create_task(_run_forever("the read model of the catalogue", edge.projection.run))
            loops.create_task(_run_forever("the read model of orders", edge.order_projection.run))
            loops.create_task(_run_forever("the read model of payment availability", edge.providers.run))
            loops.create_task(_run_forever("the read model of insights", edge.insights.run))
            loops.create_task(_run_forever("the read model of notices", edge.notices.run))
            loops.create_task(_run_forever("the sweep", hub.sweep))
            loops.create_task(_run_forever("the stock broadcaster", hub.ticker.run))
            loops.create_task(_run_forever("the retention of idempotency keys", lambda: _run_retention(store)))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        health = HealthServer(settings.health_host, settings.health_port, live=lambda: None, ready=lambda: fault(edge))
        if settings.profile == "production":
            await health.start()
        work = asyncio.create_task(_run_forever("starting", start_parts))
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
    app.router.lifespan_context = lifespan
    return app


def _user_limits(settings: EdgeSettings) -> Rules:
    if settings.limits == "off":
        return Rules(None, None, None, None, settings.tokens())
    limits = (settings.limit_changes, settings.limit_others, settings.limit_unanswered, settings.limit_sockets)
    return Rules(*limits, settings.tokens())


async def _run_forever(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop indefinitely; log what it raises, and restart it a second later."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("%s failed and is restarted", name)
        await asyncio.sleep(RETRY_SECONDS)


async def _run_retention(store: Store) -> None:
    while True:
        with contextlib.suppress(*AWAY):
            await store.trim_claims()
        await asyncio.sleep(TRIM_SECONDS)


def run(settings: EdgeSettings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    listening = bind(settings)
    port = listening.getsockname()[1]
    log.info("serving http://%s:%s", settings.http_host, port)
    server = Server(build(settings, port), settings)
    server.run(sockets=[listening])
    return 0 if server.started else 1


def main() -> int:
    """Parse the command line, and run or migrate."""
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
