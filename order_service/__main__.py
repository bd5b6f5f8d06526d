"""The composition root of the order service, with one function per sub-command."""

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from aiokafka import AIOKafkaProducer

import order_service
from contracts import deliveries, inventory, orders, payments
from contracts.cart import RESPONSES
from contracts.envelope import HEADERS, Envelope
from contracts.topics import Topic
from infrastructure.audit import table_auditor
from infrastructure.audit.order_accounts import add_audit_options
from infrastructure.audit.table_auditor import TableAuditor
from infrastructure.audit.topic_auditor import print_report
from infrastructure.messaging.batch_processor import Handler
from infrastructure.messaging.broker import BrokerUnavailableError, ensure_topics
from infrastructure.messaging.kafka_security import client_options
from infrastructure.process import cli
from infrastructure.storage import postgres
from infrastructure.storage.retention import RETENTION_OPTIONS, RetentionJob
from order_service import repairs
from order_service.agents import OrderAgents, may_concern_order
from order_service.audit import audit, checks, read_topics
from order_service.settings import Settings
from order_service.store import MIGRATIONS, STORE_OPTIONS, OrderStore, retention_sweeps

SERVICE: Final = "orders"
FETCH_INTERVAL: Final = 0.03
"""Seconds between two fetches: most records on the busiest topic, the decisions about carts, concern no order."""
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
    """Migrate the schema, then process orders until the process is stopped."""
    from infrastructure.messaging.worker import Worker  # the import of Faust is slow and only this sub-command needs it

    await migrate(settings, _)
    connect = partial(postgres.connect, settings, SERVICE)
    worker = Worker(settings, SERVICE, topics=TOPICS, fetch_interval=FETCH_INTERVAL)

    def saga() -> OrderAgents:
        """Return an instance for one agent: the four topics and the deadlines are processed concurrently."""
        store = OrderStore(partial(connect, options=STORE_OPTIONS), settings.timeouts)
        worker.add_closer(store.close)
        return OrderAgents(store, worker.publish)

    requests, decisions, paying, parcels = (saga() for _ in range(4))
    lost = postgres.TRANSIENT_ERRORS
    worker.add_agent(
        Handler(
            orders.REQUESTS, orders.REQUEST_REGISTRY, requests.on_order_requests, requests.on_permanent_failure, lost
        )
    )
    worker.add_agent(
        Handler(
            inventory.RESPONSES,
            inventory.RESPONSE_REGISTRY,
            decisions.on_inventory_responses,
            decisions.on_permanent_failure,
            lost,
            prefilter=may_concern_order,
        )
    )
    worker.add_agent(
        Handler(payments.EVENTS, payments.EVENT_REGISTRY, paying.on_payment_events, paying.on_permanent_failure, lost)
    )
    worker.add_agent(
        Handler(
            deliveries.EVENTS, deliveries.EVENT_REGISTRY, parcels.on_delivery_events, parcels.on_permanent_failure, lost
        )
    )
    worker.add_background_loop("deadlines", saga().run_deadlines)
    worker.add_background_loop(
        "retention", RetentionJob(partial(connect, options=RETENTION_OPTIONS), *retention_sweeps()).run
    )
    if settings.audit_seconds:
        grace = timedelta(seconds=settings.audit_grace_seconds)
        audit_as = f"{settings.schema_name(SERVICE)} auditor"
        connected = partial(connect, options=table_auditor.AUDIT_OPTIONS)
        worker.add_background_loop(
            "auditor",
            TableAuditor(connected, audit_as, settings.audit_seconds, service=SERVICE, check=checks(grace)).run,
        )
    return await worker.run()


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema. Safe at any time and any number of times."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Check the stored orders against each other and the topics. Exit with status 1 on a violation."""
    grace = timedelta(seconds=settings.audit_grace_seconds)
    try:
        topics = await read_topics(settings, grace)
    except BrokerUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    async with await postgres.connect(settings, SERVICE) as connection:
        report = await audit(connection, grace, topics, with_account=arguments.accounts)
    return print_report(report, as_json=arguments.json)


async def republish(settings: Settings, arguments: argparse.Namespace) -> int:
    """Send all events of all orders to `orders.events` again."""
    await migrate(settings, arguments)
    try:
        await ensure_topics(settings, TOPICS)
    except BrokerUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    async with (
        await postgres.connect(settings, SERVICE) as connection,
        AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True) as producer,
    ):
        headers = [*HEADERS.items()]

        async def publish(topic: Topic, events: Sequence[Envelope]) -> None:
            for event in events:
                await producer.send(settings.topic(topic), event.encode(), event.key, headers=headers)

        count = await repairs.republish(connection, publish)
        await producer.flush()
    print(f"{count} events were published again; consumers keep the greatest version of each order.")
    return 0


async def rebuild(settings: Settings, arguments: argparse.Namespace) -> int:
    """Rebuild the read side from the events. Exit with status 1 if it differed."""
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        differing = await repairs.rebuild(connection, settings.timeouts)
    print(*(f"order {order_id} differed from the fold of its events" for order_id in differing), sep="\n", end="")
    print(f"{len(differing)} orders were repaired" if differing else "the read side matches the events")
    return 1 if differing else 0


async def forget(settings: Settings, arguments: argparse.Namespace) -> int:
    """Erase the addresses, contacts and payment tokens of a shopper's complete orders."""
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        print(f"erased the personal data of {await repairs.erase_personal_data(connection, arguments.user)} orders")
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the sub-command and its arguments. Exit with status 2 if they are invalid."""
    program = "python -m order_service"
    parser, commands = cli.sub_commands(program, order_service.__doc__)
    cli.add_command(commands, "run", run, f"{program} run")
    cli.add_command(commands, "migrate", migrate, f"{program} migrate")
    auditing = cli.add_command(commands, "audit", check, f"{program} audit --json")
    add_audit_options(auditing)
    cli.add_command(commands, "republish", republish, f"{program} republish")
    cli.add_command(commands, "rebuild", rebuild, f"{program} rebuild")
    forgetting = cli.add_command(commands, "forget", forget, f"{program} forget 01a1fc22-7d1e-7c3e-9b1d-2f6c1a90e4d7")
    forgetting.add_argument("user", metavar="USER_ID")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the sub-command. Return its exit status."""
    return cli.execute(parse(), service=SERVICE, settings=Settings)


if __name__ == "__main__":
    sys.exit(main())
