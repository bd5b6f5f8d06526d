"""The account service process: `python -m account_service run | migrate | rotate-key | user …`."""

import argparse
import asyncio
import sys

import account_service
from account_service import users
from account_service.commands import Commands
from account_service.common_passwords import common_passwords
from account_service.keys import KeyRing
from account_service.outbox import OutboxPublisher
from account_service.server import AccountServer, serve
from account_service.settings import Settings
from account_service.store import MIGRATIONS, QUERIES, SERVICE, Store
from infrastructure.process import cli, clock
from infrastructure.process.background_service import BackgroundService
from infrastructure.process.service import lower_priority
from infrastructure.storage import postgres
from infrastructure.storage.retention import RETENTION_OPTIONS, RetentionJob, Sweep

KEY_POLL_SECONDS = 2.0
SWEEPS = ("delete_old_sessions", "delete_idle_sessions", "delete_expired_tokens")


async def run(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema, then serve until stopped."""
    lower_priority()  # hashing a password must not delay the other processes of the machine
    service, store = BackgroundService(settings), Store(settings)
    hasher, keys, outbox = users.build_hasher(settings), KeyRing(store, settings), OutboxPublisher(store, settings)
    commands = Commands(settings, store, hasher, keys, wake=outbox.wake)

    async def begin() -> None:
        await postgres.migrate(settings, SERVICE, MIGRATIONS)
        await store.open()
        await asyncio.to_thread(common_passwords)

    listening = asyncio.Event()

    async def answer() -> None:
        await keys.refresh(clock.now())
        app = AccountServer(commands, keys, host=settings.accounts_host).app()
        try:
            async with serve(app, settings.accounts_host, settings.accounts_port):
                listening.set()
                while True:
                    await asyncio.sleep(KEY_POLL_SECONDS)
                    await keys.refresh(clock.now())
        finally:
            listening.clear()

    retention = RetentionJob(
        lambda: postgres.connect(settings, SERVICE, options=RETENTION_OPTIONS),
        *(Sweep(QUERIES[name], {}) for name in SWEEPS),
    )
    service.add_background_loop("server", answer)
    service.add_readiness_check(lambda: None if listening.is_set() else "the server does not listen yet")
    service.add_background_loop("outbox", outbox.run)
    service.add_background_loop("retention", retention.run)
    service.add_closer(store.close)
    try:
        return await service.run(begin)
    finally:
        hasher.close()


async def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Migrate the schema to the latest version; safe to repeat at any time."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    return 0


async def rotate_key(settings: Settings, arguments: argparse.Namespace) -> int:
    """Make a new key for access tokens, which signs after HOLDFAST_ACCOUNTS_KEY_DELAY_SECONDS; print its id."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    store = Store(settings, size=1)
    await store.open()
    try:
        print(await KeyRing(store, settings).rotate(clock.now(), revoke=arguments.revoke))
    finally:
        await store.close()
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command and its options; exits with status 2 if they are invalid."""
    program = "python -m account_service"
    parser, commands = cli.sub_commands(program, account_service.__doc__)
    cli.add_command(commands, "run", run, f"{program} run")
    cli.add_command(commands, "migrate", migrate, f"{program} migrate")
    rotating = cli.add_command(commands, "rotate-key", rotate_key, f"{program} rotate-key")
    rotating.add_argument(
        "--revoke", action="store_true", help="use the new key at once, and end all access tokens of the old ones"
    )
    users.add_parsers(cli.add_command(commands, "user", users.execute, f"{program} user list"))
    return parser.parse_args(arguments)


def main() -> int:
    """Run the command and return its exit status."""
    return cli.execute(parse(), service=SERVICE, settings=Settings)


if __name__ == "__main__":
    sys.exit(main())
