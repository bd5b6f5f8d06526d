"""The composition root of the simulated provider."""

import argparse
import asyncio
import logging
import signal
import sys

from pydantic import ValidationError
from pydantic_settings import SettingsError

import order_service.payment.provider
from infrastructure.observability import logs
from infrastructure.process.settings import explain
from order_service.payment.provider.database import ProviderDatabase
from order_service.payment.provider.listener import serve
from order_service.payment.provider.server import ProviderServer
from order_service.payment.provider.settings import Settings
from order_service.payment.provider.webhooks import WebhookSender

log = logging.getLogger(__name__)


async def run(settings: Settings) -> int:
    """Serve until the process is stopped."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = ProviderServer(
        ProviderDatabase(settings.provider_file),
        WebhookSender(settings.webhook_secret.get_secret_value(), settings.webhook_url),
        settings.provider_key.get_secret_value(),
        late=settings.provider_late_seconds,
    )
    async with serve(server.app(), settings.provider_host, settings.provider_port) as address:
        log.info("running at %s", address)
        await stop.wait()
    return 0


def main() -> int:
    """Run the sub-command. Return its exit status."""
    program = "python -m order_service.payment.provider"
    parser = argparse.ArgumentParser(prog=program, description=order_service.payment.provider.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help=run.__doc__, description=run.__doc__, epilog=f"example: {program} run")
    parser.parse_args()
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        print(explain(error), file=sys.stderr)
        return 2
    logs.configure("provider", settings)
    return asyncio.run(run(settings))


if __name__ == "__main__":
    sys.exit(main())
