"""The composition root of the insights, one function a sub-command: `python -m order_service.insights run`."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from infrastructure import logs, postgres
from infrastructure.guard import Handler
from order_service import insights
from order_service import messages as orders
from order_service.insights import basket_report
from order_service.insights.settings import Settings

SERVICE: Final = "insights"


async def run(settings: Settings) -> int:
    """Migrate, then count what happens in the shop until asked to stop."""
    from cart_service import messages as cart
    from infrastructure.worker import Worker  # Faust takes its time, which the other sub-commands need not
    from order_service.insights import agents, model, store
    from order_service.insights.messages import FIGURES, RELATED
    from order_service.payment import messages as payments

    await migrate(settings)
    connect = partial(postgres.connect, settings, SERVICE)
    worker = Worker(settings, SERVICE, topics=[orders.EVENTS, payments.EVENTS, cart.RESPONSES, RELATED, FIGURES])

    def counting() -> agents.Counting:
        keeping = store.Store(partial(connect, options=store.OPTIONS))
        worker.closing(keeping.close)
        return agents.Counting(keeping)

    ordered, paid, carted = counting(), counting(), counting()
    handler = partial(Handler, transient=postgres.LOST, max_batch=agents.MAX_BATCH)
    worker.agent(
        handler(orders.EVENTS, model.ORDER_EVENTS, ordered.on_orders, ordered.put_aside, wanted=agents.WANTED_ORDERS)
    )
    worker.agent(
        handler(payments.EVENTS, model.PAYMENT_EVENTS, paid.on_events, paid.put_aside, wanted=agents.WANTED_PAYMENTS)
    )
    worker.agent(
        handler(cart.RESPONSES, model.CART_EVENTS, carted.on_events, carted.put_aside, wanted=agents.WANTED_CARTS)
    )
    publish_as = f"{settings.schema_name(SERVICE)} publisher"
    publisher_connects = partial(connect, options=agents.OPTIONS)
    publisher = agents.Publisher(publisher_connects, worker.publish, publish_as, settings.related_min_support)
    worker.background("publisher", publisher.run)
    worker.background("housekeeper", agents.Housekeeper(publisher_connects).run)
    return await worker.run()


async def migrate(settings: Settings) -> int:
    """Bring the schema up; safe at any time and any number of times."""
    from order_service.insights.store import MIGRATIONS

    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def republish(settings: Settings) -> int:
    """Have the running publisher send every window of figures and every list of related products again."""
    from order_service.insights.store import tell_all_again

    await migrate(settings)
    async with await postgres.connect(settings, SERVICE) as connection:
        figures, lists = await tell_all_again(connection)
    print(f"{figures} windows of figures and {lists} lists will be published again by the running insights.")
    return 0


Command = Callable[[Settings], Coroutine[Any, Any, int]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The sub-command and its arguments; exits with status 2 when they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m order_service.insights", description=insights.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, act in (("run", run), ("migrate", migrate), ("republish", republish)):
        example = f"example: python -m order_service.insights {name}"
        added = commands.add_parser(name, help=act.__doc__, description=act.__doc__, epilog=example)
        added.set_defaults(act=act)
    told = "Learn from a file which products are bought together: rules with one or two items on the left."
    baskets = commands.add_parser(
        "baskets",
        prog="holdfast baskets",
        help=told,
        description=told,
        epilog="Example: holdfast baskets orders.csv --min-support 0.02 --min-confidence 0.5 --json",
    )
    basket_report.add_arguments(baskets)
    baskets.set_defaults(act=None)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the sub-command; its exit status."""
    arguments = parse()
    act: Command | None = arguments.act
    if act is None:
        return _baskets(arguments)
    settings = Settings()
    logs.configure(SERVICE, settings)
    return asyncio.run(act(settings))


def _baskets(arguments: argparse.Namespace) -> int:
    """Needs no shop and no settings."""
    try:
        status = basket_report.report(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough (`holdfast baskets … | head`)
        os._exit(0)
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
