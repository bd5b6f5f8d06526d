"""The process of one channel: `python -m notification_service.email run`, `.sms run`, `.push run`.

A processor needs only Postgres and the destination of its channel. A stopped processor, or one whose mail server is
down, does not affect the others.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from contracts.notifications import Channel
from infrastructure.observability import logs
from infrastructure.process.background_service import BackgroundService
from infrastructure.process.service import lower_priority
from infrastructure.storage import job_queue, postgres
from infrastructure.storage.job_queue import Job, JobWorker, PostgresJobRows
from notification_service.sender import SEND_DEADLINE_SHARE, NoticePort, Sender
from notification_service.settings import Settings
from notification_service.store import MIGRATIONS, SERVICE, SharedConnection

CONCURRENCY: Final = 8


@dataclass(frozen=True, slots=True)
class PortContext:
    """The inputs for a port: the settings, the processor's connection, and the process around it."""

    settings: Settings
    connection: SharedConnection
    daemon: BackgroundService


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
    parser = argparse.ArgumentParser(
        prog=f"python -m notification_service.{channel}",
        description=description,
        epilog=f"example: python -m notification_service.{channel} run",
    )
    parser.add_argument("command", choices=("run", "migrate"), help="run until stopped, or only migrate the schema")
    command = parser.parse_args().command
    settings = Settings()
    logs.configure(channel, settings)
    migrate = partial(postgres.migrate, settings, SERVICE, MIGRATIONS)
    if command == "migrate":
        asyncio.run(migrate())
        return 0
    lower_priority()
    return asyncio.run(_run(partial(build, settings, channel, build_port), migrate))


async def _run(build_daemon: Callable[[], BackgroundService], begin: Callable[[], Awaitable[None]]) -> int:
    return await build_daemon().run(begin)
