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
from pydantic_settings import SettingsError
from redis.asyncio import BlockingConnectionPool, Redis

from contracts import accounts, cart, deliveries, insights, inventory, orders, payments
from contracts import notifications as notices
from infrastructure.messaging.broker import ensure_topics
from infrastructure.observability import logs
from infrastructure.process.health import HealthServer
from infrastructure.process.settings import explain
from infrastructure.security.tokens import Identity
from infrastructure.storage.postgres import migrate
from infrastructure.storage.retention import RUN_SECONDS
from rest_api.app import create_app
from rest_api.http.commands.orders import orders_closed
from rest_api.http.dependencies import AppState
from rest_api.http.routers.notifications import resolve_preferences
from rest_api.http.routers.pages import unready_reason
from rest_api.kafka.gateway import KafkaGateway
from rest_api.protocol.effects import Close
from rest_api.read_models.accounts import AccountEvents
from rest_api.read_models.catalogue import CatalogueReadModel
from rest_api.read_models.claims import ClaimStore
from rest_api.read_models.insights import InsightReadModel
from rest_api.read_models.notices import NoticeReadModel
from rest_api.read_models.orders.projector import OrderProjector
from rest_api.read_models.orders.queries import OrderStore
from rest_api.read_models.payment_status import PaymentStatus
from rest_api.read_models.store import SERVICE, SQL_FOLDER, UNAVAILABLE_ERRORS, Store
from rest_api.security.account_client import AccountClient
from rest_api.security.account_keys import AccountKeys
from rest_api.security.account_sessions import AccountSessions
from rest_api.security.address_limiter import AddressLimiter
from rest_api.security.admission import Admission
from rest_api.security.authentication import Authenticator
from rest_api.security.guest_sessions import GuestSessions
from rest_api.server.listener import Server, bind
from rest_api.settings import EdgeSettings
from rest_api.websocket.connections import ConnectionManager
from rest_api.websocket.stock_broadcaster import StockBroadcaster
from rest_api.websocket.user_state import UserLimits

log = logging.getLogger("rest_api")

MIGRATIONS: Final = SQL_FOLDER / "migrations"
RESTART_DELAY_SECONDS: Final = 1.0
REDIS_CONNECTIONS: Final = 8
"""Most connections to Redis. Further requests with tickets wait for one, for at most a second."""
TOPICS: Final = (
    accounts.EVENTS,
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
    insights.RELATED,
    insights.FIGURES,
    notices.REQUESTS,
    notices.EVENTS,
)


def build_state(settings: EdgeSettings, port: int) -> tuple[AppState, Redis]:
    """Return the state of an edge that listens on `port`, not started, and the Redis client to close in the end."""
    store, stock_broadcaster = Store(settings), StockBroadcaster()
    order_store = OrderStore(store)
    catalogue = CatalogueReadModel(settings, store, stock_broadcaster)
    account_client, account_sessions = AccountClient(settings), AccountSessions()

    def close_of_ended(identity: Identity) -> Close | None:
        refusal = account_sessions.refusal(identity)
        return None if refusal is None else Close(refusal.close_code, refusal.detail)

    connections = ConnectionManager(
        KafkaGateway(settings),
        product_names=catalogue.product_names,
        currency=settings.currency,
        user_limits=_user_limits(settings),
        stock_broadcaster=stock_broadcaster,
        orders_closed=lambda order_id: orders_closed(edge, order_id),
        admission=Admission(settings.limit_under_way),
        close_of_ended=close_of_ended,
    )
    account_events = AccountEvents(settings, store, account_sessions, connections)
    redis = Redis.from_pool(
        BlockingConnectionPool.from_url(
            settings.redis_url, max_connections=REDIS_CONNECTIONS, timeout=1, socket_timeout=1, socket_connect_timeout=1
        )
    )
    edge = AppState(
        settings,
        connections,
        store,
        ClaimStore(settings),
        catalogue,
        order_store,
        OrderProjector(settings, store, order_store),
        PaymentStatus(settings, store, patience=timedelta(seconds=settings.provider_patience_seconds)),
        InsightReadModel(settings, store),
        NoticeReadModel(settings, store, lambda *preferences: resolve_preferences(edge, *preferences)),
        Authenticator(
            settings,
            redis,
            settings.accepted_origins(port),
            GuestSessions(store, overlap=settings.renewed_token_seconds, errors=UNAVAILABLE_ERRORS),
            AccountKeys(account_client.key_set),
            account_sessions,
            accounts_fault=lambda: account_events.fault,
        ),
        AddressLimiter(settings),
        account_client,
        account_events,
    )
    return edge, redis


def build_app(settings: EdgeSettings, port: int) -> FastAPI:
    """Return the application of an edge that listens on `port`; it starts the parts and is ready once they are."""
    edge, redis = build_state(settings, port)
    store, connections, gateway = edge.store, edge.connections, edge.connections.gateway

    async def start_components() -> None:
        """Wait for Kafka and Postgres, then read responses and feed the read models."""
        await ensure_topics(settings, TOPICS)
        await gateway.start(connections.dispatch_responses)
        await migrate(settings, SERVICE, MIGRATIONS)
        await store.open()
        await edge.claims.open()
        await edge.account_client.open()
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as loops:
            loops.create_task(_run_forever("the read model of the catalogue", edge.catalogue.run))
            loops.create_task(_run_forever("the read model of orders", edge.order_projector.run))
            loops.create_task(_run_forever("the read model of payment availability", edge.payment_status.run))
            loops.create_task(_run_forever("the read model of insights", edge.insights.run))
            loops.create_task(_run_forever("the read model of notices", edge.notices.run))
            loops.create_task(_run_forever("the retention of notices", lambda: _run_notice_retention(edge)))
            loops.create_task(_run_forever("the sweep", connections.run_sweeps))
            loops.create_task(_run_forever("the sessions of guests", edge.authenticator.guest_sessions.run))
            loops.create_task(_run_forever("the events of accounts", edge.account_events.run))
            loops.create_task(_run_forever("the keys of accounts", edge.authenticator.account_keys.run))
            loops.create_task(_run_forever("the stock broadcaster", connections.stock_broadcaster.run))
            loops.create_task(
                _run_forever(
                    "the retention of idempotency keys, refused orders and sessions", lambda: _run_retention(store)
                )
            )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        health = HealthServer(
            settings.health_host, settings.health_port, live=lambda: None, ready=lambda: unready_reason(edge)
        )
        if settings.profile == "production":
            await health.start()
        work = asyncio.create_task(_run_forever("starting", start_components))
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await gateway.stop()
            await edge.claims.close()
            await store.close()
            await redis.aclose()
            await edge.account_client.close()
            await health.stop()

    app = create_app(edge)
    app.router.lifespan_context = lifespan
    return app


def _user_limits(settings: EdgeSettings) -> UserLimits:
    if settings.limits == "off":
        return UserLimits(None, None, None, None, settings.accepted_payment_tokens())
    limits = (settings.limit_changes, settings.limit_others, settings.limit_unanswered, settings.limit_sockets)
    return UserLimits(*limits, settings.accepted_payment_tokens())


async def _run_forever(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop indefinitely; log what it raises, and restart it a second later."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("%s failed and is restarted", name)
        await asyncio.sleep(RESTART_DELAY_SECONDS)


async def _run_retention(store: Store) -> None:
    while True:
        with contextlib.suppress(*UNAVAILABLE_ERRORS):
            await store.delete_old_rows()
        await asyncio.sleep(RUN_SECONDS)


async def _run_notice_retention(edge: AppState) -> None:
    while True:
        with contextlib.suppress(*UNAVAILABLE_ERRORS):
            await edge.notices.delete_old(edge.settings.notice_days)
        await asyncio.sleep(RUN_SECONDS)


def run(settings: EdgeSettings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    listening = bind(settings)
    port = listening.getsockname()[1]
    log.info("serving http://%s:%s", settings.http_host, port)
    server = Server(build_app(settings, port), settings)
    server.run(sockets=[listening])
    return 0 if server.started else 1


def main() -> int:
    """Parse the command line, and run or migrate."""
    parser = argparse.ArgumentParser(prog="python -m rest_api", description="The edge: HTTP and WebSocket.")
    parser.add_argument("command", choices=("run", "migrate"))
    command = parser.parse_args().command
    try:
        settings = EdgeSettings()
    except (ValidationError, SettingsError) as error:
        print(explain(error), file=sys.stderr)
        return 2
    logs.configure("edge", settings)
    if command == "migrate":
        uvloop.run(migrate(settings, SERVICE, MIGRATIONS))
        return 0
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
