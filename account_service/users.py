"""`holdfast user`: the accounts of a shop, for the operator, over the database.

Changes are published by the running account service. The first administrator is made here.
"""

import argparse
import getpass
import json
import secrets
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from account_service import model
from account_service.commands import CommandError, Commands, describe_user
from account_service.common_passwords import common_passwords
from account_service.keys import KeyRing
from account_service.model import Account, Email, InvalidValueError, Password
from account_service.passwords import Hasher
from account_service.settings import Settings
from account_service.store import MIGRATIONS, SERVICE, Store, Transaction
from contracts.accounts import ROLES
from contracts.ids import uuid7
from infrastructure.process import clock
from infrastructure.process.terminal import escape_controls
from infrastructure.storage import postgres

PAGE = 100
EXIT_REFUSED = 1

Run = Callable[["UserCommands", argparse.Namespace], Awaitable[Any]]


def build_hasher(settings: Settings) -> Hasher:
    """Return the hasher of the settings."""
    return Hasher(
        memory_kib=settings.accounts_hash_memory_kib,
        passes=settings.accounts_hash_passes,
        threads=settings.hash_threads,
        waiting=settings.accounts_hash_waiting,
    )


class UserCommands:
    """The sub-commands. Each returns what it prints as JSON."""

    def __init__(self, settings: Settings, store: Store, hasher: Hasher) -> None:
        self._store = store
        self._hasher = hasher
        self._commands = Commands(settings, store, hasher, KeyRing(store, settings))

    async def list(self, _: argparse.Namespace) -> Any:
        """List all accounts, oldest first."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            async with self._store.transaction() as transaction:
                page = await transaction.accounts_page(after=after, limit=PAGE)
            found += [describe_user(each) for each in page]
            if len(page) < PAGE:
                return found
            after = page[-1].user_id

    async def show(self, arguments: argparse.Namespace) -> Any:
        """Show one account."""
        async with self._store.transaction() as transaction:
            return describe_user(await _find(transaction, arguments.user))

    async def add(self, arguments: argparse.Namespace) -> Any:
        """Create an account whose address counts as confirmed.

        The password is the first line of standard input. On a terminal it is asked for; an empty one is replaced by a
        random one, which is printed once.
        """
        email = Email.parse(arguments.email)
        roles = model.parse_roles(arguments.role or ["shopper"])
        name = model.parse_name(arguments.name)
        text = _read_password()
        generated = None if text else secrets.token_urlsafe(18)
        password = Password.parse(text or generated or "", common_passwords())
        password_hash = await self._hasher.hash(password)
        now = clock.now()
        account = Account(uuid7(), email.text, name, {}, roles, now, confirmed=True, password_hash=password_hash)
        async with self._store.transaction() as transaction:
            if not await transaction.insert_account(model.register(account), now):
                raise CommandError("invalid", f"{email.text} has an account already; see `holdfast user show`")
        return {**describe_user(account), **({"password": generated} if generated else {})}

    async def role(self, arguments: argparse.Namespace) -> Any:
        """Give an account exactly the roles that are named."""
        roles = model.parse_roles(arguments.roles)
        async with self._store.transaction() as transaction:
            account = await _find(transaction, arguments.user, lock=True)
            change = model.set_roles(account, roles)
            await transaction.save(change, clock.now())
        return describe_user(change.account)

    async def disable(self, arguments: argparse.Namespace) -> Any:
        """Disable an account and end its sessions; with --undo, let it log in again."""
        async with self._store.transaction() as transaction:
            account = await _find(transaction, arguments.user, lock=True)
            now = clock.now()
            if arguments.undo:
                change = model.set_disabled(account, disabled=False)
                await transaction.save(change, now)
                return describe_user(change.account)
            return describe_user(await self._commands.disable_account(transaction, account, now))

    async def delete(self, arguments: argparse.Namespace) -> Any:
        """Delete an account and end its sessions. Its orders and its events stay."""
        async with self._store.transaction() as transaction:
            account = await _find(transaction, arguments.user, lock=True)
            await self._commands.delete_account(transaction, account, clock.now())
        return {"user_id": account.user_id, "status": "deleted"}


def add_parsers(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of `user`."""
    parser.prog = "holdfast user"
    parser.description = "List, show, add, disable or delete accounts, or set their roles."
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog=parser.prog)

    def add(name: str, run: Run, example: str) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").strip()
        added = commands.add_parser(
            name, help=text.partition("\n")[0], description=text, epilog=f"example: holdfast user {example}"
        )
        added.add_argument("--json", action="store_true", help="print JSON")
        added.set_defaults(run=run)
        return added

    user: Any = {"metavar": "USER", "help": "A user id or an e-mail address."}
    add("list", UserCommands.list, "list --json")
    add("show", UserCommands.show, "show ann@example.org").add_argument("user", **user)
    adding = add("add", UserCommands.add, "add ann@example.org --role admin")
    adding.add_argument("email", metavar="EMAIL", help="The address of the account.")
    adding.add_argument("--role", action="append", metavar="ROLE", help=f"A role: {', '.join(ROLES)}; repeatable.")
    adding.add_argument("--name", default="", metavar="NAME", help="The name of the person.")
    roles = add("role", UserCommands.role, "role ann@example.org shopper support")
    roles.add_argument("user", **user)
    roles.add_argument("roles", nargs="+", metavar="ROLE", help=f"All roles of the account: {', '.join(ROLES)}.")
    disabling = add("disable", UserCommands.disable, "disable ann@example.org")
    disabling.add_argument("user", **user)
    disabling.add_argument("--undo", action="store_true", help="Let a disabled account log in again.")
    add("delete", UserCommands.delete, "delete ann@example.org").add_argument("user", **user)


async def execute(settings: Settings, arguments: argparse.Namespace) -> int:
    """Run a sub-command and print its result; return 1 if it was refused."""
    await postgres.migrate(settings, SERVICE, MIGRATIONS)
    store, hasher = Store(settings, size=1), build_hasher(settings)
    await store.open()
    try:
        found = await arguments.run(UserCommands(settings, store, hasher), arguments)
    except (CommandError, InvalidValueError) as error:
        print(f"holdfast user: {error.detail if isinstance(error, CommandError) else error}", file=sys.stderr)  # noqa: T201 - a command
        return EXIT_REFUSED
    finally:
        hasher.close()
        await store.close()
    print(json.dumps(found) if arguments.json else _as_text(found))  # noqa: T201 - a command
    return 0


async def _find(transaction: Transaction, named: str, *, lock: bool = False) -> Account:
    """Return the account with a user id or an address. Raise `CommandError` if there is none."""
    account = await transaction.account(named, lock=lock)
    if account is None and "@" in named:
        found = await transaction.account_of(Email.parse(named))
        account = await transaction.account(found.user_id, lock=lock) if found else None
    if account is None:
        raise CommandError("not-found", f"there is no account {named!r}; `holdfast user list` prints all of them")
    return account


def _read_password() -> str:
    if sys.stdin.isatty():
        return getpass.getpass("Password (empty: a random one): ")
    return sys.stdin.readline().rstrip("\r\n")


def _as_text(found: Any) -> str:
    if isinstance(found, list):
        return "\n".join(
            escape_controls(
                f"{each['user_id']}  {each['status']:8}  {','.join(each['roles']):16}  {each['email']}  {each['name']}"
            ).rstrip()
            for each in found
        )
    lines = {name: ", ".join(value) if isinstance(value, list) else value for name, value in found.items()}
    return "\n".join(escape_controls(f"{name:12} {value}") for name, value in lines.items())
