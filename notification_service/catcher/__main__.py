"""The mail catcher as a process: `python -m notification_service.catcher run`; local profile only."""

import argparse
import asyncio
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Final

from aiosmtpd.smtp import SMTP, Envelope, Session

from infrastructure import clock, logs
from infrastructure.daemon import Daemon, yield_to_others
from notification_service import catcher
from notification_service.catcher.mailbox import Mailbox
from notification_service.catcher.pages import Pages
from notification_service.settings import Settings

log = logging.getLogger(__name__)

MAX_MAIL_BYTES: Final = 1024 * 1024


class Catcher:
    """What aiosmtpd calls: keeps a mail before it is answered, as a mail server must."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802 - aiosmtpd's
        """Keep it."""
        raw = envelope.content if isinstance(envelope.content, bytes) else (envelope.content or "").encode()
        self.mailbox.put(envelope.mail_from or "", ", ".join(envelope.rcpt_tos), raw, clock.now())
        return "250 caught"


async def run(settings: Settings) -> int:
    """Listen for mails and for readers until asked to stop."""
    mailbox = Mailbox(Path(settings.state_dir) / "mails.sqlite")
    daemon = Daemon(settings, pages=Pages(mailbox))
    protocol = partial(
        SMTP,
        Catcher(mailbox),
        data_size_limit=MAX_MAIL_BYTES,
        enable_SMTPUTF8=True,
        hostname="catcher",
        ident="Holdfast",
    )
    listening = await asyncio.get_running_loop().create_server(
        protocol, settings.health_host, settings.catcher_smtp_port
    )
    log.info("catching mails", extra={"smtp": listening.sockets[0].getsockname()[1]})

    async def stop() -> None:
        listening.close()
        mailbox.close()

    daemon.closing(stop)
    return await daemon.run()


def main() -> int:
    """Run the sub-command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m notification_service.catcher",
        description=catcher.__doc__,
        epilog="example: python -m notification_service.catcher run",
    )
    parser.add_argument("command", choices=("run",), help="catch mails until stopped")
    parser.parse_args()
    settings = Settings()
    logs.configure("catcher", settings)
    if settings.profile == "production":
        print("notification_service.catcher: a production shop delivers its mails", file=sys.stderr)
        return 1
    yield_to_others()
    return asyncio.run(run(settings))


if __name__ == "__main__":
    sys.exit(main())
