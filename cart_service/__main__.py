"""The cart service as a process: `python -m cart_service run | migrate | audit [--json]`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from cart_service import messages as cart
from cart_service.agents import CartAgents
from cart_service.audit import audit, look
from cart_service.store import Carts
from infrastructure import logs
from infrastructure.audit_topics import TopicAuditor, show
from infrastructure.broker import BrokerAwayError, ensure_topics
from infrastructure.guard import Handler
from infrastructure.ids import uuid7
from infrastructure.settings import Settings
from inventory_service import messages as inventory
from order_service import messages as orders

if TYPE_CHECKING:
    from infrastructure.worker import Worker

TOPICS = (cart.REQUESTS, cart.RESPONSES, inventory.REQUESTS, inventory.RESPONSES, orders.REQUESTS)


def build(settings: Settings) -> Worker:
    """One cart worker, its parts joined."""
    from infrastructure.worker import Worker  # Faust takes its time, which an audit need not

    worker = Worker(settings, "cart", topics=TOPICS)
    process = uuid7()
    carts = Carts(worker.table("carts"))
    agents = CartAgents(carts, worker.publish, generation=lambda: f"{process}/{worker.generation}")
    worker.writing(carts.write)
    worker.agent(Handler(cart.REQUESTS, cart.REQUEST_VOCABULARY, agents.on_requests, agents.fail_request))
    worker.agent(Handler(inventory.RESPONSES, inventory.RESPONSE_VOCABULARY, agents.on_decisions, agents.fail_decision))
    worker.background("asking again", agents.keep_asking)
    if settings.audit_seconds:
        auditor = TopicAuditor(
            partial(worker.partitions, cart.REQUESTS),
            partial(look, settings),
            settings.audit_seconds,
            service="cart",
            grace=timedelta(seconds=settings.audit_grace_seconds),
            kept=cart.REQUESTS.retention or timedelta.max,
        )
        worker.background("auditor", auditor.run)
    return worker


def run(settings: Settings) -> int:
    """Work until asked to stop."""
    from infrastructure.worker import ReplicaInUseError

    try:
        return asyncio.run(build(settings).run())
    except ReplicaInUseError as error:
        print(f"cart_service: {error}", file=sys.stderr)
        return 1


def check(settings: Settings, *, as_json: bool) -> int:
    """Count the topics again; 1 when something does not add up."""
    report = asyncio.run(audit(settings, timedelta(seconds=settings.audit_grace_seconds)))
    return show(report, as_json=as_json)


def main() -> int:
    """Run one sub-command; the process's exit code."""
    parser = argparse.ArgumentParser(prog="cart_service", description=__doc__)
    parser.add_argument(
        "command", choices=("run", "migrate", "audit"), help="work, only make the topics, or count them again"
    )
    parser.add_argument("--json", action="store_true", help="an audit for machines")
    arguments = parser.parse_args()
    settings = Settings()
    logs.configure("cart", settings)
    try:
        match arguments.command:
            case "migrate":
                asyncio.run(ensure_topics(settings, build(settings).topics))
                return 0
            case "audit":
                return check(settings, as_json=arguments.json)
            case _:
                return run(settings)
    except BrokerAwayError as error:
        print(f"cart_service: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
