"""Registry of the commands that work with a running shop; each module registers its own commands.

`cli` calls `register` once. The commands get the shop's addresses from `connection`.
"""

import typer

from infrastructure.local.commands import audit, dlq, replay, service_commands, story, token, top, topics


def register(app: typer.Typer) -> None:
    """Add the commands of every module to the app."""
    for module in (topics, story, replay, dlq, service_commands, audit, token, top):
        module.register(app)
