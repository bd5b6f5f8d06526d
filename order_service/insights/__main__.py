"""The composition root of the insights, with one function per sub-command."""

import argparse
import os
import sys
from functools import partial
from typing import Final

from contracts import orders
from infrastructure.messaging.batch_processor import Handler
from infrastructure.process import cli
from infrastructure.storage import postgres
from order_service import insights
from order_service.insights import basket_report
from order_service.insights.settings import Settings

SERVICE: Final = "insights"
FETCH_INTERVAL: Final = 0.3
"""Seconds between two fetches: nobody waits for a figure."""


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema, then count the events of the shop until the process is stopped."""
    from contracts import cart, payments
    from contracts.insights import FIGURES, RELATED
    from infrastructure.messaging.worker import Worker  # the import of Faust is slow and only this sub-command needs it
    from order_service.insights import agents, model, store

    await migrate(settings, _)
    connect = partial(postgres.connect, settings, SERVICE)
    topics = [orders.EVENTS, payments.EVENTS, cart.RESPONSES, RELATED, FIGURES]
    worker = Worker(settings, SERVICE, topics=topics, fetch_interval=FETCH_INTERVAL)

    def counting() -> agents.InsightsAgents:
        insights_store = store.InsightsStore(partial(connect, options=store.STORE_OPTIONS))
        worker.add_closer(insights_store.close)
        return agents.InsightsAgents(insights_store)

    ordered, paid, carted = counting(), counting(), counting()
    handler = partial(Handler, transient_errors=postgres.TRANSIENT_ERRORS, max_batch_size=agents.MAX_BATCH)
    worker.add_agent(
        handler(
            orders.EVENTS,
            model.ORDER_EVENTS,
            ordered.on_order_events,
            ordered.on_permanent_failure,
            prefilter=agents.ORDER_EVENT_FILTER,
        )
    )
    worker.add_agent(
        handler(
            payments.EVENTS,
            model.PAYMENT_EVENTS,
            paid.on_payment_events,
            paid.on_permanent_failure,
            prefilter=agents.PAYMENT_EVENT_FILTER,
        )
    )
    worker.add_agent(
        handler(
            cart.RESPONSES,
            model.CART_EVENTS,
            carted.on_cart_responses,
            carted.on_permanent_failure,
            prefilter=agents.CART_EVENT_FILTER,
        )
    )
    publish_as = f"{settings.schema_name(SERVICE)} publisher"
    publisher_connects = partial(connect, options=agents.PUBLISHER_OPTIONS)
    publisher = agents.Publisher(publisher_connects, worker.publish, publish_as, settings.related_min_support)
    worker.add_background_loop("publisher", publisher.run)
    worker.add_background_loop("housekeeper", agents.RetentionJob(publisher_connects).run)
    return await worker.run()


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema. Safe at any time and any number of times."""
    from order_service.insights.store import MIGRATIONS

    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def republish(settings: Settings, arguments: argparse.Namespace) -> int:
    """Have the running publisher send every window of figures and every list of related products again."""
    from order_service.insights.store import republish_all

    await migrate(settings, arguments)
    async with await postgres.connect(settings, SERVICE) as connection:
        figures, lists = await republish_all(connection)
    print(f"{figures} windows of figures and {lists} lists will be published again by the running insights service.")
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the sub-command and its arguments. Exit with status 2 if they are invalid."""
    program = "python -m order_service.insights"
    parser, commands = cli.sub_commands(program, insights.__doc__)
    for name, act in (("run", run), ("migrate", migrate), ("republish", republish)):
        cli.add_command(commands, name, act, f"{program} {name}")
    description = "Compute association rules with one or two items on the left from a file of baskets."
    baskets = commands.add_parser(
        "baskets",
        prog="holdfast baskets",
        help=description,
        description=description,
        epilog="Example: holdfast baskets orders.csv --min-support 0.02 --min-confidence 0.5 --json",
    )
    basket_report.add_arguments(baskets)
    baskets.set_defaults(act=None)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the sub-command. Return its exit status."""
    arguments = parse()
    if arguments.act is None:
        return _baskets(arguments)
    return cli.execute(arguments, service=SERVICE, settings=Settings)


def _baskets(arguments: argparse.Namespace) -> int:
    """Run `holdfast baskets`, which needs neither a shop nor settings."""
    try:
        status = basket_report.report(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reading end was closed (`holdfast baskets … | head`)
        os._exit(0)
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
