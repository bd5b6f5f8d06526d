"""`holdfast token`: issues a token for development, signed with the local shop's secret."""

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from contracts.envelope import rfc3339
from contracts.ids import uuid7
from infrastructure.local.commands import connection, output
from infrastructure.local.commands.output import AsJson
from infrastructure.local.errors import StackError
from infrastructure.security.secrets import TokenSettings
from infrastructure.security.tokens import issue


class Role(StrEnum):
    """Role that a token grants."""

    ADMIN = "admin"
    SUPPORT = "support"
    SERVICE = "service"
    SHOPPER = "shopper"


def token(
    role: Annotated[Role, typer.Option(help="Role that the token grants.")],
    user: Annotated[str | None, typer.Option(help="User id in the token; a new id by default.", metavar="ID")] = None,
    minutes: Annotated[int, typer.Option(min=1, max=60 * 24 * 30, help="Lifetime of the token in minutes.")] = 60,
    *,
    as_json: AsJson = False,
) -> None:
    """Print a signed token; works only in the local profile."""
    if user is not None and not (0 < len(user) <= 64 and user.isascii() and user.isprintable()):  # noqa: PLR2004 - the contract's
        raise typer.BadParameter("an id is 1 to 64 printable ASCII characters", param_hint="--user")
    settings = connection.settings("HOLDFAST_SECRET", kind=TokenSettings)
    if settings.profile != "local":
        raise StackError(f"`holdfast token` works only in the local profile, not in {settings.profile!r}")
    user_id = user or uuid7()
    signed, expires_at = issue(
        settings.secret.get_secret_value(),
        user_id=user_id,
        roles=[role.value],
        lifetime=timedelta(minutes=minutes),
        now=datetime.now(UTC),
    )
    if as_json:
        answer = {"user_id": user_id, "token": signed, "expires_at": rfc3339(expires_at), "roles": [role.value]}
        output.echo(json.dumps(answer))
    else:
        output.echo(signed)


def register(app: typer.Typer) -> None:
    """Add `token` to the app."""
    app.command(epilog='Example: curl -H "Authorization: Bearer $(holdfast token --role admin)" …')(token)
