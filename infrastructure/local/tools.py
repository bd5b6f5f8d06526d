"""The commands that work with a running shop; each module of them adds its own.

`register` is called once by `cli`; `reach` gives them the shop's addresses.
"""

import typer

from infrastructure.local import letter_tools, replay_tool, service_tools, token_tool, top_tool, topic_tools


def register(app: typer.Typer) -> None:
    """Add every command of the tools to the app."""
    for module in (topic_tools, replay_tool, letter_tools, service_tools, token_tool, top_tool):
        module.register(app)
