"""The composition root of delivery, with one function per sub-command."""

import argparse
import sys
from datetime import timedelta
from functools import partial
from typing import Final

import order_service.delivery
from contracts.deliveries import EVENTS, REQUEST_REGISTRY, REQUESTS
from infrastructure.audit.order_accounts import add_audit_options
from infrastructure.audit.topic_auditor import print_report
from infrastructure.messaging.batch_processor import Handler
from infrastructure.process import cli
from infrastructure.storage import job_queue, postgres
from infrastructure.storage.job_queue import Job, JobWorker, PostgresJobRows
from order_service.delivery.agents import DeliveryAgents
from order_service.delivery.audit import audit
from order_service.delivery.settings import Settings
from order_service.delivery.store import MIGRATIONS, STORE_OPTIONS, DeliveryStore

SERVICE: Final = "delivery"
ATTEMPT_SECONDS: Final = 2.0
"""The deadline of one call to the carrier, and of one publication to Kafka."""


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema, then deliver parcels until the process is stopped."""
    from infrastructure.messaging.worker import Worker  # the import of Faust is slow and only this sub-command needs it

    await migrate(settings, _)
    store = DeliveryStore(partial(postgres.connect, settings, SERVICE, options=STORE_OPTIONS))
    worker = Worker(settings, SERVICE, topics=[REQUESTS, EVENTS])
    deliveries = DeliveryAgents(store, settings.carrier, worker.publish)
    connect = partial(postgres.connect, settings, SERVICE, options=job_queue.JOB_QUEUE_OPTIONS)

    def rows(job: str) -> PostgresJobRows:
        return PostgresJobRows(connect, Job("parcel", key="shipment_id", name=job))

    outcome_jobs = JobWorker(rows("tell"), deliveries.publish_moves, name="delivery.tell", deadline=ATTEMPT_SECONDS)
    move_jobs = JobWorker(
        rows("move"),
        deliveries.advance_parcel,
        name="delivery.move",
        deadline=ATTEMPT_SECONDS,
        on_finished=outcome_jobs.wake,
    )

    def wake_workers() -> None:
        move_jobs.wake()
        outcome_jobs.wake()

    deliveries.on_stored = wake_workers
    worker.add_agent(
        Handler(
            REQUESTS,
            REQUEST_REGISTRY,
            deliveries.on_delivery_requests,
            deliveries.on_permanent_failure,
            transient_errors=postgres.TRANSIENT_ERRORS,
        )
    )
    worker.add_background_loop("moving", move_jobs.run)
    worker.add_background_loop("telling", outcome_jobs.run)
    for close in (move_jobs.close, outcome_jobs.close, store.close):
        worker.add_closer(close)
    return await worker.run()


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema. Safe at any time and any number of times."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def check(settings: Settings, arguments: argparse.Namespace) -> int:
    """Check the stored parcels. Exit with status 1 on a violation."""
    async with await postgres.connect(settings, SERVICE) as connection:
        grace = timedelta(seconds=settings.audit_grace_seconds)
        report = await audit(connection, grace, with_account=arguments.accounts)
    return print_report(report, as_json=arguments.json)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the sub-command and its arguments. Exit with status 2 if they are invalid."""
    program = "python -m order_service.delivery"
    parser, commands = cli.sub_commands(program, order_service.delivery.__doc__)
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
