"""The composition root of delivery: where its parts are built and joined, one function a sub-command."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any, Final

import order_service.delivery
from infrastructure import logs, postgres, pump
from infrastructure.audit_topics import show
from infrastructure.guard import Handler
from infrastructure.pump import Job, PostgresRows, Pump
from order_service.delivery.agents import Deliveries
from order_service.delivery.audit import audit
from order_service.delivery.messages import EVENTS, REQUEST_VOCABULARY, REQUESTS
from order_service.delivery.settings import Settings
from order_service.delivery.store import MIGRATIONS, OPTIONS, DeliveryStore

SERVICE: Final = "delivery"
ATTEMPT_SECONDS: Final = 2.0
"""For one question to the carrier, and for Kafka to store what is told."""


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate, then store requests, ask the carrier and tell what it says, until asked to stop."""
    from infrastructure.worker import Worker  # Faust takes its time, which the other sub-commands need not

    await migrate(settings, _)
    store = DeliveryStore(partial(postgres.connect, settings, SERVICE, options=OPTIONS))
    worker = Worker(settings, SERVICE, topics=[REQUESTS, EVENTS])
    deliveries = Deliveries(store, settings.carrier, worker.publish)
    connect = partial(postgres.connect, settings, SERVICE, options=pump.OPTIONS)

    def rows(job: str) -> PostgresRows:
        return PostgresRows(connect, Job("parcel", key="shipment_id", name=job))

    telling = Pump(rows("tell"), deliveries.tell, name="delivery.tell", deadline=ATTEMPT_SECONDS)
    moving = Pump(rows("move"), deliveries.move, name="delivery.move", deadline=ATTEMPT_SECONDS, then=telling.wake)

    def stored() -> None:
        moving.wake()
        telling.wake()

    deliveries.stored = stored
    worker.agent(Handler(REQUESTS, REQUEST_VOCABULARY, deliveries.handle, deliveries.fail, transient=postgres.LOST))
    worker.background("moving", moving.run)
    worker.background("telling", telling.run)
    for close in (moving.close, telling.close, store.close):
        worker.closing(close)
    return await worker.run()


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Bring the schema up; safe at any time and any number of times."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Count everything again; 1 when something is wrong."""
    async with await postgres.connect(settings, SERVICE) as connection:
        report = await audit(connection, timedelta(seconds=settings.audit_grace_seconds))
    return show(report, as_json=arguments.json)


Command = Callable[[Settings, argparse.Namespace], Coroutine[Any, Any, int]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The sub-command and its arguments; exits with status 2 when they are wrong."""
    program = "python -m order_service.delivery"
    parser = argparse.ArgumentParser(prog=program, description=order_service.delivery.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Command, example: str) -> argparse.ArgumentParser:
        text = act.__doc__ or ""
        added = commands.add_parser(name, help=text, description=text, epilog=f"example: {program} {example}")
        added.set_defaults(act=act)
        return added

    command("run", run, "run")
    command("migrate", migrate, "migrate")
    command("audit", check, "audit --json").add_argument("--json", action="store_true", help="for machines")
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
