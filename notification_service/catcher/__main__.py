"""The process of the mail catcher: `python -m notification_service.catcher run`; local profile only."""

import argparse
import asyncio
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Final

from aiosmtpd.smtp import SMTP, Envelope, Session

from infrastructure.process import cli, clock
from infrastructure.process.background_service import BackgroundService
from infrastructure.process.bounded_server import BoundedServer, ConnectionBounds
from infrastructure.process.service import lower_priority
from notification_service import catcher
from notification_service.catcher.mailbox import Mailbox
from notification_service.catcher.pages import MailPages
from notification_service.settings import Settings

log = logging.getLogger(__name__)

MAX_MAIL_BYTES: Final = 1024 * 1024
COMMAND_SECONDS: Final = 30.0
"""Time limit of a client for each command, and for the text of a mail."""
BOUNDS: Final = ConnectionBounds(connections=64, lifetime_seconds=300)


class CatcherProtocol(SMTP):
    """SMTP that ends a connection which speaks HTTP: a web page could hide a mail in the body of a request."""

    async def smtp_POST(self, _: str) -> None:  # noqa: N802 - aiosmtpd's
        """Refuse a request line."""
        await self.push("421 this is not an HTTP server")
        if self.transport is not None:
            self.transport.close()

    smtp_GET = smtp_PUT = smtp_OPTIONS = smtp_POST  # noqa: N815 - aiosmtpd's


class MailHandler:
    """SMTP handler for aiosmtpd. It stores a mail before it answers, as a mail server must."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802 - aiosmtpd's
        """Store a mail."""
        raw = envelope.content if isinstance(envelope.content, bytes) else (envelope.content or "").encode()
        self.mailbox.put(envelope.mail_from or "", ", ".join(envelope.rcpt_tos), raw, clock.now())
        return "250 caught"


def smtp_protocol(mailbox: Mailbox, timeout: float = COMMAND_SECONDS) -> SMTP:
    """Return the protocol of a new connection."""
    return CatcherProtocol(
        MailHandler(mailbox),
        data_size_limit=MAX_MAIL_BYTES,
        enable_SMTPUTF8=True,
        hostname="catcher",
        ident="Holdfast",
        timeout=timeout,
    )


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Accept mails and serve the pages until stopped."""
    if settings.profile == "production":
        print(
            "notification_service.catcher: not available in production; point HOLDFAST_SMTP_URL to a mail server",
            file=sys.stderr,
        )
        return 1
    lower_priority()
    mailbox = Mailbox(Path(settings.state_dir) / "mails.sqlite")
    daemon = BackgroundService(settings, pages=MailPages(mailbox))
    listening = await asyncio.get_running_loop().create_server(
        BoundedServer(partial(smtp_protocol, mailbox), BOUNDS), settings.health_host, settings.catcher_smtp_port
    )
    log.info("accepting mails", extra={"smtp": listening.sockets[0].getsockname()[1]})

    async def stop() -> None:
        listening.close()
        mailbox.close()

    daemon.add_closer(stop)
    return await daemon.run()


def main() -> int:
    """Run the command and return its exit status."""
    program = "python -m notification_service.catcher"
    parser = cli.choices(
        program, catcher.__doc__, {"run": run}, text="accept mails until stopped", epilog=f"example: {program} run"
    )
    return cli.execute(parser.parse_args(), service="catcher", settings=Settings)


if __name__ == "__main__":
    sys.exit(main())
