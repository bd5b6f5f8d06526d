"""The cart service as a process: `python -m cart_service run | migrate | audit [--json]`."""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from cart_service.agents import CartAgents
from cart_service.audit import audit, audit_partition
from cart_service.store import CartStore
from contracts import cart, inventory, orders
from infrastructure.audit.topic_auditor import TopicAuditor, print_report
from infrastructure.messaging.batch_processor import Handler
from infrastructure.messaging.broker import BrokerUnavailableError, ensure_topics
from infrastructure.process import cli
from infrastructure.process.settings import Settings

if TYPE_CHECKING:
    from infrastructure.messaging.worker import Worker

TOPICS = (cart.REQUESTS, cart.RESPONSES, inventory.REQUESTS, inventory.RESPONSES, orders.REQUESTS)


def build(settings: Settings) -> Worker:
    """Build a cart worker."""
    from infrastructure.messaging.worker import Worker

    worker = Worker(settings, "cart", topics=TOPICS)
    carts = CartStore(worker.create_table("carts"))
    agents = CartAgents(carts, worker.publish, generation=worker.generation)
    worker.add_table_writer(carts.flush)
    worker.add_agent(Handler(cart.REQUESTS, cart.REQUEST_REGISTRY, agents.on_requests, agents.on_permanent_failure))
    worker.add_agent(
        Handler(
            inventory.RESPONSES, inventory.RESPONSE_REGISTRY, agents.on_inventory_responses, agents.on_permanent_failure
        )
    )
    worker.add_background_loop("retries", agents.run_retries)
    if settings.audit_seconds:
        auditor = TopicAuditor(
            partial(worker.assigned_partitions, cart.REQUESTS),
            partial(audit_partition, settings),
            settings.audit_seconds,
            service="cart",
            grace=timedelta(seconds=settings.audit_grace_seconds),
            retention=cart.REQUESTS.retention or timedelta.max,
        )
        worker.add_background_loop("auditor", auditor.run)
    return worker


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Run the worker until it is stopped."""
    from infrastructure.messaging.worker import ReplicaInUseError

    try:
        return await build(settings).run()
    except ReplicaInUseError as error:
        print(f"cart_service: {error}", file=sys.stderr)
        return 1


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Create the topics; safe to repeat at any time."""
    await ensure_topics(settings, build(settings).topics)
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print an audit of the topics; return 1 if it found a violation."""
    report = await audit(settings, timedelta(seconds=settings.audit_grace_seconds))
    return print_report(report, as_json=arguments.json)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command and its options; exits with status 2 if they are invalid."""
    parser = cli.choices(
        "cart_service",
        __doc__,
        {"run": run, "migrate": migrate, "audit": check},
        text="run the worker, only create the topics, or audit them",
    )
    parser.add_argument("--json", action="store_true", help="print the audit as JSON")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the command and return its exit status."""
    try:
        return cli.execute(parse(), service="cart", settings=Settings)
    except BrokerUnavailableError as error:
        print(f"cart_service: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
