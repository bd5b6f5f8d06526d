"""The cart service as a process: `python -m cart_service run | migrate`."""

import argparse
import asyncio
import sys

from cart_service import messages as cart
from cart_service.agents import CartAgents
from cart_service.store import Carts
from infrastructure import logs
from infrastructure.broker import BrokerAwayError, ensure_topics
from infrastructure.guard import Handler
from infrastructure.ids import uuid7
from infrastructure.settings import Settings
from infrastructure.worker import ReplicaInUseError, Worker
from inventory_service import messages as inventory

TOPICS = (cart.REQUESTS, cart.RESPONSES, inventory.REQUESTS, inventory.RESPONSES)


def build(settings: Settings) -> Worker:
    """One cart worker, its parts joined."""
    worker = Worker(settings, "cart", topics=TOPICS)
    process = uuid7()
    agents = CartAgents(
        Carts(worker.table("carts")), worker.publish, generation=lambda: f"{process}/{worker.generation}"
    )
    worker.agent(Handler(cart.REQUESTS, cart.REQUEST_VOCABULARY, agents.on_requests, agents.fail_request))
    worker.agent(Handler(inventory.RESPONSES, inventory.RESPONSE_VOCABULARY, agents.on_decisions, agents.fail_decision))
    worker.background("asking again", agents.keep_asking)
    return worker


def main() -> int:
    """Run one sub-command; the process's exit code."""
    parser = argparse.ArgumentParser(prog="cart_service", description=__doc__)
    parser.add_argument("command", choices=("run", "migrate"), help="work, or only make the topics")
    command = parser.parse_args().command
    settings = Settings()
    logs.configure("cart", settings)
    try:
        if command == "migrate":
            asyncio.run(ensure_topics(settings, build(settings).topics))
            return 0
        return asyncio.run(build(settings).run())
    except (BrokerAwayError, ReplicaInUseError) as error:
        print(f"cart_service: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
