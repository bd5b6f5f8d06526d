"""The worker process: `python -m notification_service run | migrate | audit [--json]`."""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import notification_service
from contracts import cart, inventory, orders
from contracts.notifications import EVENTS, REQUEST_REGISTRY, REQUESTS
from infrastructure.audit.topic_auditor import print_report
from infrastructure.messaging.batch_processor import Handler
from infrastructure.messaging.broker import BrokerUnavailableError
from infrastructure.process import cli
from infrastructure.process.service import lower_priority
from infrastructure.storage import job_queue, postgres
from infrastructure.storage.job_queue import Job, JobWorker, PostgresJobRows
from notification_service.agents import NotificationAgents
from notification_service.audit import audit
from notification_service.model import may_change_cart
from notification_service.retention import RetentionJob
from notification_service.settings import Settings
from notification_service.store import MIGRATIONS, SERVICE, STORE_OPTIONS, SharedConnection, Store

if TYPE_CHECKING:
    from infrastructure.messaging.worker import Worker

PLACE_TYPE: Final = f'"{orders.Place.TYPE}"'.encode()
_AT_ONCE: Final[dict[str, Any]] = {"concurrency": 50, "deadline": 3.0, "pauses": (0.2, 5.0)}
"""Both jobs only write to Kafka, which is either fast or down."""
FETCH_INTERVAL: Final = 0.2
"""Seconds between two fetches: the busiest topic has the changes of carts, of which few are worth a notice."""
MAX_CARTS: Final = 500
"""Responses of carts in one transaction. They are frequent, and only the last one per shopper counts."""


def build(settings: Settings) -> Worker:
    """Build a worker."""
    from infrastructure.messaging.worker import (
        Worker,  # imported here because only `run` needs Faust, which is slow to import
    )

    worker = Worker(settings, SERVICE, topics=[REQUESTS, EVENTS], fetch_interval=FETCH_INTERVAL)
    store = Store(partial(postgres.connect, settings, SERVICE, options=STORE_OPTIONS))
    notices = NotificationAgents(store, worker.publish, settings.topic)
    handler = partial(
        Handler, on_permanent_failure=notices.on_permanent_failure, transient_errors=postgres.TRANSIENT_ERRORS
    )
    worker.add_agent(handler(REQUESTS, REQUEST_REGISTRY, notices.on_requests))
    worker.add_agent(
        handler(
            orders.REQUESTS,
            orders.REQUEST_REGISTRY,
            notices.on_order_requests,
            prefilter=lambda value: PLACE_TYPE in value,
        )
    )
    worker.add_agent(handler(orders.EVENTS, orders.EVENT_REGISTRY, notices.on_order_events))
    worker.add_agent(
        handler(
            cart.RESPONSES,
            cart.RESPONSE_REGISTRY,
            notices.on_cart_responses,
            max_batch_size=MAX_CARTS,
            prefilter=may_change_cart,
        )
    )
    worker.add_agent(handler(inventory.PRODUCTS, inventory.PRODUCT_REGISTRY, notices.on_products))
    connection = SharedConnection(partial(postgres.connect, settings, SERVICE, options=job_queue.JOB_QUEUE_OPTIONS))
    workers = (
        JobWorker(
            PostgresJobRows(connection, Job("cart", key="user_id")),
            notices.request_expiry_warning,
            name="warnings",
            **_AT_ONCE,
        ),
        JobWorker(
            PostgresJobRows(connection, Job("notice", key="notice_id", name="told")),
            notices.publish_outcome,
            name="outcomes",
            **_AT_ONCE,
        ),
    )
    for each in workers:
        worker.add_background_loop(each.name, each.run)
        worker.add_closer(each.close)
    retention = RetentionJob(connection, contact_days=settings.contact_days, notice_days=settings.notice_days)
    worker.add_background_loop("retention", retention.run)
    worker.add_closer(store.close)
    worker.add_closer(connection.close)
    return worker


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema, then run the worker until it is stopped."""
    lower_priority()
    await migrate(settings, _)
    return await build(settings).run()


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema to the latest version; safe to repeat at any time."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print an audit of topics and tables; return 1 if it found a violation."""
    report = await audit(settings, timedelta(seconds=settings.audit_grace_seconds))
    return print_report(report, as_json=arguments.json)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command and its options; exits with status 2 if they are invalid."""
    parser = cli.choices(
        "python -m notification_service",
        notification_service.__doc__,
        {"run": run, "migrate": migrate, "audit": check},
        text="run the worker, only migrate the schema, or audit topics and tables",
        epilog="example: python -m notification_service audit --json",
    )
    parser.add_argument("--json", action="store_true", help="print the audit as JSON")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the command and return its exit status."""
    try:
        return cli.execute(parse(), service=SERVICE, settings=Settings)
    except BrokerUnavailableError as error:
        print(f"notification_service: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
