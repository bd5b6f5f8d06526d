"""The process of one channel: `python -m notification_service.email run`, `.sms run`, `.push run`.

A processor needs only Postgres and the destination of its channel. A stopped processor, or one whose mail server is
down, does not affect the others.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from contracts.notifications import Channel
from infrastructure.process import cli
from infrastructure.process.background_service import BackgroundService
from infrastructure.process.service import lower_priority
from infrastructure.storage import job_queue, postgres
from infrastructure.storage.job_queue import Job, JobWorker, PostgresJobRows
from notification_service.recipients import RecipientLimiter, RecipientLimits
from notification_service.sender import SEND_DEADLINE_SHARE, NoticePort, Sender
from notification_service.settings import Settings
from notification_service.store import MIGRATIONS, SERVICE, STORE_OPTIONS, SharedConnection

CONCURRENCY: Final = 8


@dataclass(frozen=True, slots=True)
class PortContext:
    """The inputs for a port: the settings, the processor's connection, and the process around it."""

    settings: Settings
    connection: SharedConnection
    daemon: BackgroundService

    def limiter(self, channel: Channel) -> RecipientLimiter:
        """Return the limits by recipient of `channel`, on a connection that is closed with the process."""
        connect = partial(postgres.connect, self.settings, SERVICE, options=STORE_OPTIONS)
        limiter = RecipientLimiter(connect, channel, RecipientLimits.of(self.settings, channel))
        self.daemon.add_closer(limiter.close)
        return limiter


def build(settings: Settings, channel: Channel, build_port: Callable[[PortContext], NoticePort]) -> BackgroundService:
    """Build the processor of `channel`."""
    daemon = BackgroundService(settings)
    connection = SharedConnection(partial(postgres.connect, settings, SERVICE, options=job_queue.JOB_QUEUE_OPTIONS))
    port = build_port(PortContext(settings, connection, daemon))
    seconds = settings.notice_seconds
    worker = JobWorker(
        PostgresJobRows(connection, Job(f"{channel}_queue", key="notice_id")),
        Sender(port, attempts=settings.notice_attempts, seconds=seconds * SEND_DEADLINE_SHARE),
        name=channel,
        concurrency=CONCURRENCY,
        deadline=seconds,
        pauses=(settings.notice_pause_seconds, settings.notice_longest_pause_seconds),
    )
    daemon.add_background_loop(channel, worker.run)
    daemon.add_closer(worker.close)
    daemon.add_closer(connection.close)
    return daemon


def main(channel: Channel, build_port: Callable[[PortContext], NoticePort], description: str) -> int:
    """Run the sub-command and return its exit status."""

    async def migrate(settings: Settings, _: argparse.Namespace) -> int:
        await postgres.migrate(settings, SERVICE, MIGRATIONS)
        return 0

    async def run(settings: Settings, _: argparse.Namespace) -> int:
        lower_priority()
        return await build(settings, channel, build_port).run(partial(postgres.migrate, settings, SERVICE, MIGRATIONS))

    program = f"python -m notification_service.{channel}"
    parser = cli.choices(
        program,
        description,
        {"run": run, "migrate": migrate},
        text="run until stopped, or only migrate the schema",
        epilog=f"example: {program} run",
    )
    return cli.execute(parser.parse_args(), service=channel, settings=Settings)
