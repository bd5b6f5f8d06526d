"""The composition root of the inventory service, with one function per sub-command."""

import argparse
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import inventory_service
from contracts.inventory import PRODUCTS, REQUEST_REGISTRY, REQUESTS, RESPONSES, STOCK
from infrastructure.audit import table_auditor
from infrastructure.audit.order_accounts import add_audit_options
from infrastructure.audit.table_auditor import TableAuditor
from infrastructure.audit.topic_auditor import print_report
from infrastructure.messaging.batch_processor import Handler
from infrastructure.messaging.broker import BrokerUnavailableError
from infrastructure.process import cli
from infrastructure.storage import postgres
from infrastructure.storage.contention_locks import ContentionLocks, NoContentionLocks, RedisContentionLocks
from infrastructure.storage.csv_file import CsvFileError
from inventory_service import build_catalogue, catalogue, publisher
from inventory_service.agents import InventoryAgents, LockPolicy
from inventory_service.audit import audit, find_violations
from inventory_service.audit_topics import read_topics
from inventory_service.expiry_scanner import ExpiryScanner
from inventory_service.publisher import Publisher
from inventory_service.retention import RetentionJob
from inventory_service.settings import Settings
from inventory_service.store import BACKGROUND_OPTIONS, MIGRATIONS, QUERIES, STORE_OPTIONS, PostgresStore

SERVICE: Final = "inventory"


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema, then process requests until stopped."""
    # Imported here because only `run` needs Faust, which is slow to import.
    from infrastructure.messaging.event_publisher import EventPublisher
    from infrastructure.messaging.worker import Worker

    await migrate(settings, _)
    connect = partial(postgres.connect, settings, SERVICE)
    store = PostgresStore(partial(connect, options=STORE_OPTIONS), settings.time_limits, settings.holding_limits)
    locks: ContentionLocks = (
        RedisContentionLocks(settings.redis_url, settings.prefix) if settings.locks else NoContentionLocks()
    )
    worker = Worker(settings, SERVICE, topics=[REQUESTS, RESPONSES, STOCK, PRODUCTS])
    publish = EventPublisher(worker.app, settings).publish
    inventory = InventoryAgents(store, locks, publish, LockPolicy(settings.lock_above, settings.lock_remaining))
    worker.add_agent(
        Handler(
            REQUESTS,
            REQUEST_REGISTRY,
            inventory.on_requests,
            inventory.on_permanent_failure,
            transient_errors=postgres.TRANSIENT_ERRORS,
            max_batch_size=500,
        )
    )
    publish_as = f"{settings.schema_name(SERVICE)} publisher"
    worker.add_background_loop(
        "publisher", Publisher(partial(connect, options=publisher.PUBLISHER_OPTIONS), publish, publish_as).run
    )
    worker.add_background_loop(
        "expiry scanner", ExpiryScanner(partial(connect, options=BACKGROUND_OPTIONS), publish).run
    )
    worker.add_background_loop("retention", RetentionJob(partial(connect, options=BACKGROUND_OPTIONS)).run)
    if settings.audit_seconds:
        audit_as = f"{settings.schema_name(SERVICE)} auditor"
        worker.add_background_loop(
            "auditor",
            TableAuditor(
                partial(connect, options=table_auditor.AUDIT_OPTIONS),
                audit_as,
                settings.audit_seconds,
                service=SERVICE,
                check=find_violations,
            ).run,
        )
    worker.add_closer(store.close)
    worker.add_closer(locks.close)
    return await worker.run()


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema to the latest version; safe to repeat at any time."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def seed(settings: Settings, arguments: argparse.Namespace) -> int:
    """Load a catalogue file into the database."""
    try:
        items = catalogue.read_catalogue(arguments.file)
    except (catalogue.CatalogueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        result = await catalogue.seed(connection, items)
    print(
        f"{len(items)} products: {result.added} new, {result.changed} with a new name or price, "
        f"{result.unchanged} unchanged. The stock of existing products was not changed."
    )
    return 0


async def withdraw(settings: Settings, arguments: argparse.Namespace) -> int:
    """Take products out of the catalogue; their stock, holds and orders stay."""
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        number = await catalogue.withdraw(connection, arguments.codes)
    print(f"{number} of {len(set(arguments.codes))} products were for sale and are withdrawn.")
    return 0


async def republish(settings: Settings, arguments: argparse.Namespace) -> int:
    """Make the running publisher send the state of every product again."""
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        await connection.execute(QUERIES["reset_position"])
    print("The running inventory service will publish every product and its stock again.")
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Audit the database and the topics; return 1 if there is a violation."""
    grace = timedelta(seconds=settings.audit_grace_seconds)
    try:
        topic_audit = await read_topics(settings, grace)
    except BrokerUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    async with await postgres.connect(settings, SERVICE) as connection:
        report = await audit(connection, topic_audit, grace if arguments.accounts else None)
    return print_report(report, as_json=arguments.json)


async def derive_catalogue(_: Settings, arguments: argparse.Namespace) -> int:
    """Print the catalogue file that is built from one day of order lines."""
    try:
        text = build_catalogue.catalogue_csv(arguments.orders)
    except (CsvFileError, OSError) as error:
        print(f"{arguments.orders}: {error}" if isinstance(error, CsvFileError) else error, file=sys.stderr)
        return 1
    print(text, end="")
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the sub-command and its arguments; exits with status 2 if they are invalid."""
    program = "python -m inventory_service"
    parser, commands = cli.sub_commands(program, inventory_service.__doc__)
    cli.add_command(commands, "run", run, f"{program} run")
    cli.add_command(commands, "migrate", migrate, f"{program} migrate")
    cli.add_command(commands, "republish", republish, f"{program} republish")
    seeding = cli.add_command(commands, "seed", seed, f"{program} seed inventory_service/inventory.csv")
    seeding.add_argument("file", nargs="?", type=Path, default=catalogue.DEFAULT_FILE, metavar="FILE")
    withdrawing = cli.add_command(commands, "withdraw", withdraw, f"{program} withdraw 85123A")
    withdrawing.add_argument("codes", nargs="+", metavar="CODE")
    auditing = cli.add_command(commands, "audit", check, f"{program} audit --json")
    add_audit_options(auditing)
    deriving = cli.add_command(
        commands, "catalogue", derive_catalogue, f"{program} catalogue orders.csv > inventory.csv"
    )
    deriving.add_argument("orders", type=Path, metavar="ORDERS.csv")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the sub-command and return its exit status."""
    return cli.execute(parse(), service=SERVICE, settings=Settings)


if __name__ == "__main__":
    sys.exit(main())
