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

from infrastructure import logs, postgres, pump
from infrastructure.daemon import Daemon
from infrastructure.pump import Job, PostgresRows, Pump
from infrastructure.service import yield_to_others
from notification_service.messages import Channel
from notification_service.settings import Settings
from notification_service.store import MIGRATIONS, SERVICE, Link
from notification_service.teller import MARGIN, Port, Teller

CONCURRENCY: Final = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """The inputs for a port: the settings, the processor's connection, and the process around it."""

    settings: Settings
    link: Link
    daemon: Daemon


def build(settings: Settings, channel: Channel, port_of: Callable[[Parts], Port]) -> Daemon:
    """Build the processor of `channel`."""
    daemon = Daemon(settings)
    link = Link(partial(postgres.connect, settings, SERVICE, options=pump.OPTIONS))
    port = port_of(Parts(settings, link, daemon))
    seconds = settings.notice_seconds
    worker = Pump(
        PostgresRows(link, Job(f"{channel}_queue", key="notice_id")),
        Teller(port, attempts=settings.notice_attempts, seconds=seconds * MARGIN),
        name=channel,
        concurrency=CONCURRENCY,
        deadline=seconds,
        pauses=(settings.notice_pause_seconds, settings.notice_longest_pause_seconds),
    )
    daemon.background(channel, worker.run)
    daemon.closing(worker.close)
    daemon.closing(link.close)
    return daemon


def main(channel: Channel, port_of: Callable[[Parts], Port], about: str) -> int:
    """Run the sub-command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m notification_service.{channel}",
        description=about,
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
    yield_to_others()
    return asyncio.run(_run(partial(build, settings, channel, port_of), migrate))


async def _run(build_daemon: Callable[[], Daemon], begin: Callable[[], Awaitable[None]]) -> int:
    return await build_daemon().run(begin)
