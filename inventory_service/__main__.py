"""The composition root: where the parts of the inventory service are built and joined, one function a sub-command."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

import inventory_service
from infrastructure import auditor, logs, postgres
from infrastructure.audit_topics import show
from infrastructure.auditor import Auditor
from infrastructure.broker import BrokerAwayError
from infrastructure.guard import Handler
from infrastructure.locks import Locks, NoLocks, RedisLocks
from inventory_service import catalogue, derive, publisher, upkeep
from inventory_service.agents import Crowd, Inventory
from inventory_service.audit import audit, violations_of
from inventory_service.audit_topics import read_topics
from inventory_service.messages import PRODUCTS, REQUEST_VOCABULARY, REQUESTS, RESPONSES, STOCK
from inventory_service.publisher import Publisher
from inventory_service.settings import Settings
from inventory_service.store import MIGRATIONS, OPTIONS, QUERIES, PostgresStore
from inventory_service.upkeep import Housekeeper, Knocker

SERVICE: Final = "inventory"


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate, then decide requests until asked to stop."""
    from infrastructure.worker import Worker  # Faust takes its time, which the other sub-commands need not

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
    worker.background("knocker", Knocker(partial(connect, options=upkeep.OPTIONS), worker.publish).run)
    worker.background("housekeeper", Housekeeper(partial(connect, options=upkeep.OPTIONS)).run)
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
    """Bring the schema up; safe at any time and any number of times."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def seed(settings: Settings, arguments: argparse.Namespace) -> int:
    """Load a catalogue file."""
    try:
        items = catalogue.read_catalogue(arguments.file)
    except (catalogue.CatalogueError, OSError, UnicodeDecodeError) as error:
        print(error, file=sys.stderr)
        return 1
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        done = await catalogue.seed(connection, items)
    print(
        f"{len(items)} products: {done.added} new, {done.changed} with another name or price, {done.unchanged} as they "
        "were. The stock of products that were there already was left alone."
    )
    return 0


async def republish(settings: Settings, arguments: argparse.Namespace) -> int:
    """Have the running publisher send the state of every product again."""
    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        await connection.execute(QUERIES["begin_again"])
    print("Every product and its stock will be published again by the running inventory.")
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Count everything again; 1 when something does not add up."""
    try:
        told = await read_topics(settings, timedelta(seconds=settings.audit_grace_seconds))
    except BrokerAwayError as error:
        print(error, file=sys.stderr)
        return 1
    async with await postgres.connect(settings, SERVICE) as connection:
        report = await audit(connection, told)
    return show(report, as_json=arguments.json)


async def derive_catalogue(_: Settings, arguments: argparse.Namespace) -> int:
    """Print the catalogue that a day's order lines come to."""
    print(derive.catalogue_of(arguments.orders), end="")
    return 0


Command = Callable[[Settings, argparse.Namespace], Coroutine[Any, Any, int]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The sub-command and its arguments; exits with status 2 when they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m inventory_service", description=inventory_service.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Command, example: str) -> argparse.ArgumentParser:
        text = act.__doc__ or ""
        added = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example: python -m inventory_service {example}",
        )
        added.set_defaults(act=act)
        return added

    command("run", run, "run")
    command("migrate", migrate, "migrate")
    command("republish", republish, "republish")
    seeding = command("seed", seed, "seed inventory_service/inventory.csv")
    seeding.add_argument("file", nargs="?", type=Path, default=catalogue.DEFAULT_FILE, metavar="FILE")
    command("audit", check, "audit --json").add_argument("--json", action="store_true", help="for machines")
    deriving = command("catalogue", derive_catalogue, "catalogue orders.csv > inventory.csv")
    deriving.add_argument("orders", type=Path, metavar="ORDERS.csv")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the sub-command; its exit status."""
    arguments = parse()
    act: Command = arguments.act
    settings = Settings()
    logs.configure(SERVICE, settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(act(settings, arguments))


if __name__ == "__main__":
    sys.exit(main())
