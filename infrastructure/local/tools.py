"""Registry of the commands that work with a running shop; each module registers its own commands.

`cli` calls `register` once. The commands get the shop's addresses from `reach`.
"""

import typer

from infrastructure.local import letter_tools, replay_tool, service_tools, token_tool, top_tool, topic_tools


def register(app: typer.Typer) -> None:
    """Add the commands of every module to the app."""
    for module in (topic_tools, replay_tool, letter_tools, service_tools, token_tool, top_tool):
        module.register(app)
