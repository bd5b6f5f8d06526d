"""The composition root of payment: where its parts are built and joined, one function a sub-command."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any, Final

import order_service.payment
from infrastructure import logs, postgres, pump
from infrastructure.audit_topics import show
from infrastructure.breaker import Breaker, Unavailable
from infrastructure.guard import Handler
from infrastructure.pump import Job, PostgresRows, Pump
from order_service.payment.agents import Payments
from order_service.payment.audit import audit
from order_service.payment.client import Provider
from order_service.payment.messages import EVENTS, REQUEST_VOCABULARY, REQUESTS, STATE
from order_service.payment.settings import Settings
from order_service.payment.store import MIGRATIONS, OPTIONS, PaymentStore
from order_service.payment.watch import Watch

SERVICE: Final = "payment"
TELL_SECONDS: Final = 2.0
"""For Kafka to store what is told, before it is told again."""
PAUSES: Final = (0.5, 30.0)
"""Between two questions about a charge that is still undecided, in seconds."""


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate, then store requests, ask the provider and tell what it says, until asked to stop."""
    from infrastructure.worker import Worker  # Faust takes its time, which the other sub-commands need not

    await migrate(settings, _)
    store = PaymentStore(partial(postgres.connect, settings, SERVICE, options=OPTIONS))
    worker = Worker(settings, SERVICE, topics=[REQUESTS, EVENTS, STATE])
    breaker = Breaker(settings.provider)
    async with provider_of(settings) as provider:
        payments = Payments(store, provider, breaker, worker.publish)
        connect = partial(postgres.connect, settings, SERVICE, options=pump.OPTIONS)
        telling = Pump(
            PostgresRows(connect, Job("step", key="key", name="tell")),
            payments.tell,
            name="payment.tell",
            deadline=TELL_SECONDS,
        )
        asking = Pump(
            PostgresRows(connect, Job("step", key="key", name="ask")),
            payments.ask,
            name="payment.ask",
            concurrency=settings.provider_concurrency,
            deadline=3 * settings.provider_timeout_seconds,  # a charge, and a question about it, and some air
            pauses=PAUSES,
            room=lambda: breaker.room(settings.provider_concurrency),
            then=telling.wake,
        )

        def stored() -> None:
            asking.wake()
            telling.wake()

        payments.stored = stored
        breaker.changed = asking.wake
        worker.agent(Handler(REQUESTS, REQUEST_VOCABULARY, payments.handle, payments.fail, transient=postgres.LOST))
        worker.background("asking", asking.run)
        worker.background("telling", telling.run)
        watch = Watch(settings.provider, provider, breaker, store, worker.publish)
        worker.background("watch", watch.run)
        for close in (asking.close, telling.close, store.close):
            worker.closing(close)
        return await worker.run()


def provider_of(settings: Settings) -> Provider:
    """The provider that the settings name."""
    return Provider(
        settings.provider_url,
        settings.provider_key.get_secret_value(),
        timeout=settings.provider_timeout_seconds,
        webhook_url=settings.webhook_url,
        concurrency=settings.provider_concurrency,
    )


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Bring the schema up; safe at any time and any number of times."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Count everything again, with the provider's own history when it can be reached; 1 when something is wrong."""
    history = None
    try:
        async with provider_of(settings) as provider:
            history = await provider.history()
    except Unavailable as error:
        print(f"without the provider's history: {error}", file=sys.stderr)
    async with await postgres.connect(settings, SERVICE) as connection:
        report = await audit(connection, timedelta(seconds=settings.audit_grace_seconds), history)
    return show(report, as_json=arguments.json)


Command = Callable[[Settings, argparse.Namespace], Coroutine[Any, Any, int]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The sub-command and its arguments; exits with status 2 when they are wrong."""
    program = "python -m order_service.payment"
    parser = argparse.ArgumentParser(prog=program, description=order_service.payment.__doc__)
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
