"""The composition root of payment, with one function per sub-command."""

import argparse
import sys
from datetime import timedelta
from functools import partial
from typing import Final

import order_service.payment
from contracts.payments import EVENTS, REQUEST_REGISTRY, REQUESTS, STATE
from infrastructure.audit.order_accounts import add_audit_options
from infrastructure.audit.table_auditor import snapshot, snapshot_time
from infrastructure.audit.topic_auditor import print_report
from infrastructure.messaging.batch_processor import Handler
from infrastructure.process import cli
from infrastructure.security.breaker import CircuitBreaker, Unavailable
from infrastructure.storage import job_queue, postgres
from infrastructure.storage.job_queue import Job, JobWorker, PostgresJobRows
from order_service.payment.agents import PaymentAgents
from order_service.payment.audit import ProviderHistory, audit
from order_service.payment.provider_client import ProviderClient
from order_service.payment.provider_monitor import ProviderMonitor
from order_service.payment.settings import Settings
from order_service.payment.store import MIGRATIONS, STORE_OPTIONS, PaymentStore

SERVICE: Final = "payment"
PUBLISH_TIMEOUT: Final = 2.0
"""The deadline of one publication to Kafka, after which it is retried."""
RETRY_PAUSES: Final = (0.5, 30.0)
"""The shortest and the longest pause between two calls about an undecided charge, in seconds."""


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema, then process payments until the process is stopped."""
    from infrastructure.messaging.worker import Worker  # the import of Faust is slow and only this sub-command needs it

    await migrate(settings, _)
    store = PaymentStore(partial(postgres.connect, settings, SERVICE, options=STORE_OPTIONS))
    worker = Worker(settings, SERVICE, topics=[REQUESTS, EVENTS, STATE])
    breaker = CircuitBreaker(settings.provider)
    async with provider_client(settings) as provider:
        payments = PaymentAgents(store, provider, breaker, worker.publish)
        connect = partial(postgres.connect, settings, SERVICE, options=job_queue.JOB_QUEUE_OPTIONS)
        outcome_jobs = JobWorker(
            PostgresJobRows(connect, Job("step", key="key", name="tell")),
            payments.publish_outcome,
            name="payment.tell",
            deadline=PUBLISH_TIMEOUT,
        )
        operation_jobs = JobWorker(
            PostgresJobRows(connect, Job("step", key="key", name="ask")),
            payments.execute_operation,
            name="payment.ask",
            concurrency=settings.provider_concurrency,
            deadline=3 * settings.provider_timeout_seconds,  # a charge, a query, and a margin
            pauses=RETRY_PAUSES,
            capacity=lambda: breaker.capacity(settings.provider_concurrency),
            on_finished=outcome_jobs.wake,
        )

        def wake_workers() -> None:
            operation_jobs.wake()
            outcome_jobs.wake()

        payments.on_stored = wake_workers
        breaker.on_change = operation_jobs.wake
        worker.add_agent(
            Handler(
                REQUESTS,
                REQUEST_REGISTRY,
                payments.on_payment_requests,
                payments.on_permanent_failure,
                transient_errors=postgres.TRANSIENT_ERRORS,
            )
        )
        worker.add_background_loop("asking", operation_jobs.run)
        worker.add_background_loop("telling", outcome_jobs.run)
        monitor = ProviderMonitor(settings.provider, provider, breaker, store, worker.publish)
        worker.add_background_loop("watch", monitor.run)
        for close in (operation_jobs.close, outcome_jobs.close, store.close):
            worker.add_closer(close)
        return await worker.run()


def provider_client(settings: Settings) -> ProviderClient:
    """Return a client of the configured provider."""
    return ProviderClient(
        settings.provider_url,
        settings.provider_key.get_secret_value(),
        timeout=settings.provider_timeout_seconds,
        webhook_url=settings.webhook_url,
        concurrency=settings.provider_concurrency,
    )


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema. Safe at any time and any number of times."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Check the stored payments, also against the provider's history. Exit with status 1 on a violation."""
    history = None
    async with await postgres.connect(settings, SERVICE) as connection:
        async with snapshot(connection):
            read_at = await snapshot_time(connection)
        try:
            async with provider_client(settings) as provider:
                history = ProviderHistory(await provider.history(), read_at)
        except Unavailable as error:
            print(f"continuing without the provider's history: {error}", file=sys.stderr)
        grace = timedelta(seconds=settings.audit_grace_seconds)
        report = await audit(connection, grace, history, with_account=arguments.accounts)
    return print_report(report, as_json=arguments.json)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the sub-command and its arguments. Exit with status 2 if they are invalid."""
    program = "python -m order_service.payment"
    parser, commands = cli.sub_commands(program, order_service.payment.__doc__)
    cli.add_command(commands, "run", run, f"{program} run")
    cli.add_command(commands, "migrate", migrate, f"{program} migrate")
    auditing = cli.add_command(commands, "audit", check, f"{program} audit --json")
    add_audit_options(auditing)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the sub-command. Return its exit status."""
    return cli.execute(parse(), service=SERVICE, settings=Settings)


if __name__ == "__main__":
    sys.exit(main())
