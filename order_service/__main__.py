"""The composition root: where the parts of the order service are built and joined, one function a sub-command."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

from aiokafka import AIOKafkaProducer

import order_service
from cart_service.messages import RESPONSES
from infrastructure import auditor, logs, postgres
from infrastructure.audit_topics import show
from infrastructure.auditor import Auditor
from infrastructure.broker import BrokerAwayError, ensure_topics
from infrastructure.envelope import HEADERS, Envelope
from infrastructure.guard import Handler
from infrastructure.topics import Topic
from inventory_service import messages as inventory
from order_service import messages as orders
from order_service import upkeep
from order_service.agents import Saga, may_be_about_an_order
from order_service.audit import audit, checks, read_topics
from order_service.delivery import messages as deliveries
from order_service.payment import messages as payments
from order_service.settings import Settings
from order_service.store import MIGRATIONS, OPTIONS, OrderStore

SERVICE: Final = "orders"
TOPICS: Final = (
    orders.REQUESTS,
    orders.EVENTS,
    inventory.REQUESTS,
    inventory.RESPONSES,
    payments.REQUESTS,
    payments.EVENTS,
    deliveries.REQUESTS,
    deliveries.EVENTS,
    RESPONSES,
)


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate, then decide what becomes of orders until asked to stop."""
    from infrastructure.worker import Worker  # Faust takes its time, which the other sub-commands need not

    await migrate(settings, _)
    connect = partial(postgres.connect, settings, SERVICE)
    worker = Worker(settings, SERVICE, topics=TOPICS)

    def saga() -> Saga:
        """One agent's own: four topics and the deadlines are worked on side by side."""
        store = OrderStore(partial(connect, options=OPTIONS), settings.rules)
        worker.closing(store.close)
        return Saga(store, worker.publish)

    asked, decided, paid, sent = (saga() for _ in range(4))
    lost = postgres.LOST
    worker.agent(Handler(orders.REQUESTS, orders.REQUEST_VOCABULARY, asked.on_requests, asked.fail, lost))
    worker.agent(
        Handler(
            inventory.RESPONSES,
            inventory.RESPONSE_VOCABULARY,
            decided.on_decisions,
            decided.fail,
            lost,
            wanted=may_be_about_an_order,
        )
    )
    worker.agent(Handler(payments.EVENTS, payments.EVENT_VOCABULARY, paid.on_payments, paid.fail, lost))
    worker.agent(Handler(deliveries.EVENTS, deliveries.EVENT_VOCABULARY, sent.on_deliveries, sent.fail, lost))
    worker.background("deadlines", saga().keep_looking)
    if settings.audit_seconds:
        grace = timedelta(seconds=settings.audit_grace_seconds)
        audit_as = f"{settings.schema_name(SERVICE)} auditor"
        connected = partial(connect, options=auditor.OPTIONS)
        worker.background(
            "auditor",
            Auditor(connected, audit_as, settings.audit_seconds, service=SERVICE, check=checks(grace)).run,
        )
    return await worker.run()


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Bring the schema up; safe at any time and any number of times."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Count everything again; 1 when something does not add up."""
    grace = timedelta(seconds=settings.audit_grace_seconds)
    try:
        told = await read_topics(settings, grace)
    except BrokerAwayError as error:
        print(error, file=sys.stderr)
        return 1
    async with await postgres.connect(settings, SERVICE) as connection:
        report = await audit(connection, grace, told)
    return show(report, as_json=arguments.json)


async def republish(settings: Settings, arguments: argparse.Namespace) -> int:
    """Send every event of every order to `orders.events` again."""
    await migrate(settings, arguments)
    try:
        await ensure_topics(settings, TOPICS)
    except BrokerAwayError as error:
        print(error, file=sys.stderr)
        return 1
    async with (
        await postgres.connect(settings, SERVICE) as connection,
        AIOKafkaProducer(bootstrap_servers=settings.kafka, acks="all", enable_idempotence=True) as producer,
    ):
        headers = [*HEADERS.items()]

        async def publish(topic: Topic, events: Sequence[Envelope]) -> None:
            for event in events:
                await producer.send(settings.topic(topic), event.encode(), event.key, headers=headers)

        count = await upkeep.republish(connection, publish)
        await producer.flush()
    print(f"{count} events were published again; readers keep the greatest version of each order.")
    return 0


async def rebuild(settings: Settings, arguments: argparse.Namespace) -> int:
    """Compute the read side anew from the events; 1 when it had said something else."""
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        differing = await upkeep.rebuild(connection, settings.rules)
    print(*(f"order {order_id} was not what its events come to" for order_id in differing), sep="\n", end="")
    print(f"{len(differing)} orders were mended" if differing else "the read side is what the events come to")
    return 1 if differing else 0


async def forget(settings: Settings, arguments: argparse.Namespace) -> int:
    """Erase the addresses, contacts and payment tokens of a shopper's orders that are at rest."""
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        print(f"{await upkeep.forget(connection, arguments.user)} orders have no address any more")
    return 0


Command = Callable[[Settings, argparse.Namespace], Coroutine[Any, Any, int]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The sub-command and its arguments; exits with status 2 when they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m order_service", description=order_service.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Command, example: str) -> argparse.ArgumentParser:
        text = act.__doc__ or ""
        epilog = f"example: python -m order_service {example}"
        added = commands.add_parser(name, help=text, description=text, epilog=epilog)
        added.set_defaults(act=act)
        return added

    command("run", run, "run")
    command("migrate", migrate, "migrate")
    command("audit", check, "audit --json").add_argument("--json", action="store_true", help="for machines")
    command("republish", republish, "republish")
    command("rebuild", rebuild, "rebuild")
    command("forget", forget, "forget 01a1fc22-7d1e-7c3e-9b1d-2f6c1a90e4d7").add_argument("user", metavar="USER_ID")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the sub-command; its exit status."""
    arguments = parse()
    act: Command = arguments.act
    settings = Settings()
    logs.configure(SERVICE, settings)
    return asyncio.run(act(settings, arguments))


if __name__ == "__main__":
    sys.exit(main())
