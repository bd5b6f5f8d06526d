"""The process around one channel: `python -m notification_service.email run`, `.sms run`, `.push run`.

It needs Postgres and its port, and nothing of the rest of the shop: each can be stopped, or stand before a dead mail
server, and the others go on.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from infrastructure import logs, postgres, pump
from infrastructure.daemon import Daemon, yield_to_others
from infrastructure.pump import Job, PostgresRows, Pump
from notification_service.messages import Channel
from notification_service.settings import Settings
from notification_service.store import MIGRATIONS, SERVICE, Link
from notification_service.teller import MARGIN, Port, Teller

CONCURRENCY: Final = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """What a port is built from: the settings, statements on the processor's connection, and the process around it."""

    settings: Settings
    link: Link
    daemon: Daemon


def build(settings: Settings, channel: Channel, port_of: Callable[[Parts], Port]) -> Daemon:
    """A processor of `channel`, its parts joined."""
    daemon = Daemon(settings)
    link = Link(partial(postgres.connect, settings, SERVICE, options=pump.OPTIONS))
    port = port_of(Parts(settings, link, daemon))
    seconds = settings.notice_seconds
    works = Pump(
        PostgresRows(link, Job(f"{channel}_queue", key="notice_id")),
        Teller(port, attempts=settings.notice_attempts, seconds=seconds * MARGIN),
        name=channel,
        concurrency=CONCURRENCY,
        deadline=seconds,
        pauses=(settings.notice_pause_seconds, settings.notice_longest_pause_seconds),
    )
    daemon.background(channel, works.run)
    daemon.closing(works.close)
    daemon.closing(link.close)
    return daemon


def main(channel: Channel, port_of: Callable[[Parts], Port], about: str) -> int:
    """Run the sub-command; its exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m notification_service.{channel}",
        description=about,
        epilog=f"example: python -m notification_service.{channel} run",
    )
    parser.add_argument("command", choices=("run", "migrate"), help="work until stopped, or only bring the schema up")
    command = parser.parse_args().command
    settings = Settings()
    logs.configure(channel, settings)
    migrate = partial(postgres.migrate, settings, SERVICE, MIGRATIONS)
    if command == "migrate":
        asyncio.run(migrate())
        return 0
    yield_to_others()
    return asyncio.run(_run(partial(build, settings, channel, port_of), migrate))


async def _run(of: Callable[[], Daemon], begin: Callable[[], Awaitable[None]]) -> int:
    return await of().run(begin)
