"""The composition root of the inventory service, with one function per sub-command."""

import argparse
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

import inventory_service
from infrastructure import auditor, cli, postgres
from infrastructure.audit_topics import show
from infrastructure.auditor import Auditor
from infrastructure.broker import BrokerAwayError
from infrastructure.guard import Handler
from infrastructure.locks import Locks, NoLocks, RedisLocks
from inventory_service import catalogue, derive, publisher
from inventory_service.agents import Crowd, Inventory
from inventory_service.audit import audit, violations_of
from inventory_service.audit_topics import read_topics
from inventory_service.expiry import Knocker
from inventory_service.messages import PRODUCTS, REQUEST_VOCABULARY, REQUESTS, RESPONSES, STOCK
from inventory_service.publisher import Publisher
from inventory_service.retention import Housekeeper
from inventory_service.settings import Settings
from inventory_service.store import BACKGROUND_OPTIONS, MIGRATIONS, OPTIONS, QUERIES, PostgresStore

SERVICE: Final = "inventory"


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema, then process requests until stopped."""
    from infrastructure.worker import Worker  # imported here because only `run` needs Faust, which is slow to import

    await migrate(settings, _)
    connect = partial(postgres.connect, settings, SERVICE)
    store = PostgresStore(partial(connect, options=OPTIONS), settings.rules)
    locks: Locks = RedisLocks(settings.redis_url, settings.prefix) if settings.locks else NoLocks()
    worker = Worker(settings, SERVICE, topics=[REQUESTS, RESPONSES, STOCK, PRODUCTS])
    inventory = Inventory(store, locks, worker.publish, Crowd(settings.lock_above, settings.lock_remaining))
    worker.agent(
        Handler(REQUESTS, REQUEST_VOCABULARY, inventory.handle, inventory.fail, transient=postgres.LOST, max_batch=500)
    )
    publish_as = f"{settings.schema_name(SERVICE)} publisher"
    worker.background(
        "publisher", Publisher(partial(connect, options=publisher.OPTIONS), worker.publish, publish_as).run
    )
    worker.background("expiry scanner", Knocker(partial(connect, options=BACKGROUND_OPTIONS), worker.publish).run)
    worker.background("retention", Housekeeper(partial(connect, options=BACKGROUND_OPTIONS)).run)
    if settings.audit_seconds:
        audit_as = f"{settings.schema_name(SERVICE)} auditor"
        worker.background(
            "auditor",
            Auditor(
                partial(connect, options=auditor.OPTIONS),
                audit_as,
                settings.audit_seconds,
                service=SERVICE,
                check=violations_of,
            ).run,
        )
    worker.closing(store.close)
    worker.closing(locks.close)
    return await worker.run()


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema to the latest version; safe to repeat at any time."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def seed(settings: Settings, arguments: argparse.Namespace) -> int:
    """Load a catalogue file into the database."""
    try:
        items = catalogue.read_catalogue(arguments.file)
    except (catalogue.CatalogueError, OSError, UnicodeDecodeError) as error:
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


async def republish(settings: Settings, arguments: argparse.Namespace) -> int:
    """Make the running publisher send the state of every product again."""
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        await connection.execute(QUERIES["reset_position"])
    print("The running inventory service will publish every product and its stock again.")
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Audit the database and the topics; return 1 if there is a violation."""
    try:
        topic_audit = await read_topics(settings, timedelta(seconds=settings.audit_grace_seconds))
    except BrokerAwayError as error:
        print(error, file=sys.stderr)
        return 1
    async with await postgres.connect(settings, SERVICE) as connection:
        report = await audit(connection, topic_audit)
    return show(report, as_json=arguments.json)


async def derive_catalogue(_: Settings, arguments: argparse.Namespace) -> int:
    """Print the catalogue file that is built from one day of order lines."""
    print(derive.catalogue_of(arguments.orders), end="")
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
    auditing = cli.add_command(commands, "audit", check, f"{program} audit --json")
    auditing.add_argument("--json", action="store_true", help="print the audit as JSON")
    deriving = cli.add_command(
        commands, "catalogue", derive_catalogue, f"{program} catalogue orders.csv > inventory.csv"
    )
    deriving.add_argument("orders", type=Path, metavar="ORDERS.csv")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the sub-command and return its exit status."""
    return cli.execute(parse(), service=SERVICE, settings=Settings, loop_factory=uvloop.new_event_loop)


if __name__ == "__main__":
    sys.exit(main())
