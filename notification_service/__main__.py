"""The queue worker as a process: `python -m notification_service run | migrate | audit [--json]`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import notification_service
from cart_service import messages as cart
from infrastructure import logs, postgres, pump
from infrastructure.audit_topics import show
from infrastructure.broker import BrokerAwayError
from infrastructure.daemon import yield_to_others
from infrastructure.guard import Handler
from infrastructure.pump import Job, PostgresRows, Pump
from notification_service.agents import Notices
from notification_service.audit import audit
from notification_service.messages import EVENTS, REQUEST_VOCABULARY, REQUESTS
from notification_service.model import says_something
from notification_service.settings import Settings
from notification_service.store import MIGRATIONS, OPTIONS, SERVICE, Link, Store
from notification_service.upkeep import Housekeeper
from order_service import messages as orders

if TYPE_CHECKING:
    from infrastructure.worker import Worker

PLACES: Final = f'"{orders.Place.TYPE}"'.encode()
_AT_ONCE: Final[dict[str, Any]] = {"concurrency": 50, "deadline": 3.0, "pauses": (0.2, 5.0)}
"""Both only write to Kafka, which is quick or away."""
MAX_CARTS: Final = 500
"""Responses of carts in one transaction: there are many, and of each shopper the last one counts."""


def build(settings: Settings) -> Worker:
    """One worker, its parts joined."""
    from infrastructure.worker import Worker  # Faust takes its time, which the other sub-commands need not

    worker = Worker(settings, SERVICE, topics=[REQUESTS, EVENTS])
    store = Store(partial(postgres.connect, settings, SERVICE, options=OPTIONS))
    notices = Notices(store, worker.publish, settings.topic)
    given: dict[str, Any] = {"fail": notices.put_aside, "transient": postgres.LOST}
    worker.agent(Handler(REQUESTS, REQUEST_VOCABULARY, notices.on_requests, **given))
    worker.agent(
        Handler(
            orders.REQUESTS, orders.REQUEST_VOCABULARY, notices.on_places, **given, wanted=lambda value: PLACES in value
        )
    )
    worker.agent(Handler(orders.EVENTS, orders.EVENT_VOCABULARY, notices.on_orders, **given))
    worker.agent(
        Handler(
            cart.RESPONSES,
            cart.RESPONSE_VOCABULARY,
            notices.on_carts,
            **given,
            max_batch=MAX_CARTS,
            wanted=says_something,
        )
    )
    link = Link(partial(postgres.connect, settings, SERVICE, options=pump.OPTIONS))
    pumps = (
        Pump(PostgresRows(link, Job("cart", key="user_id")), notices.warn, name="warnings", **_AT_ONCE),
        Pump(
            PostgresRows(link, Job("notice", key="notice_id", name="told")), notices.tell, name="outcomes", **_AT_ONCE
        ),
    )
    for each in pumps:
        worker.background(each.name, each.run)
        worker.closing(each.close)
    worker.background("housekeeper", Housekeeper(link, settings.contact_days).run)
    worker.closing(store.close)
    worker.closing(link.close)
    return worker


async def run(settings: Settings) -> int:
    """Migrate, then work until asked to stop."""
    await migrate(settings)
    return await build(settings).run()


async def migrate(settings: Settings) -> int:
    """Bring the schema up; safe at any time and any number of times."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def check(settings: Settings, *, as_json: bool) -> int:
    """Count everything again; 1 when something does not add up."""
    report = await audit(settings, timedelta(seconds=settings.audit_grace_seconds))
    return show(report, as_json=as_json)


def main() -> int:
    """Run one sub-command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m notification_service",
        description=notification_service.__doc__,
        epilog="example: python -m notification_service audit --json",
    )
    parser.add_argument(
        "command", choices=("run", "migrate", "audit"), help="work, only bring the schema up, or count everything again"
    )
    parser.add_argument("--json", action="store_true", help="an audit for machines")
    arguments = parser.parse_args()
    settings = Settings()
    logs.configure(SERVICE, settings)
    try:
        match arguments.command:
            case "migrate":
                return asyncio.run(migrate(settings))
            case "audit":
                return asyncio.run(check(settings, as_json=arguments.json))
            case _:
                yield_to_others()
                return asyncio.run(run(settings))
    except BrokerAwayError as error:
        print(f"notification_service: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
