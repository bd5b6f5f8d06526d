"""The `holdfast` command. Commands of the local stack are defined here, all others are registered by `tools`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from infrastructure.local.commands import output, passthrough
from infrastructure.local.commands import up as ups
from infrastructure.local.errors import StackError
from infrastructure.local.state import exit_with_error, find_root, not_running, require_running
from infrastructure.local.supervision import services
from infrastructure.local.supervision.startup_plan import UpOptions
from infrastructure.local.supervision.supervisor import last_lines

app = typer.Typer(
    name="holdfast",
    help="Run the Holdfast shop and its servers on this machine, and inspect them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""Settings of commands whose arguments are parsed by the program they start."""


@app.command(epilog="Example: holdfast up --detach --workers inventory=2,cart=2")
def up(
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background; return when everything is ready.")
    ] = False,
    workers: Annotated[
        str, typer.Option(help="Number of workers by service, for example inventory=2,cart=2.", metavar="NAME=N,…")
    ] = "",
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Disable all rate limits.")] = False,
    infra_only: Annotated[
        bool, typer.Option("--infra-only", help="Start Kafka, PostgreSQL and Redis only, no services.")
    ] = False,
    only: Annotated[
        str, typer.Option(help="Start only these services, for example edge,cart,inventory.", metavar="NAME,…")
    ] = "",
    report_to: Annotated[int | None, typer.Option(ups.REPORT_OPTION, hidden=True)] = None,
) -> None:
    """Start Kafka, PostgreSQL, Redis and the shop; Ctrl-C stops everything.

    A shop that is already running is left as it is: options and settings that differ are named, and not applied.

    Exit codes: 0 done or already running, 1 failed, 2 wrong use, 3 a requested port is in use, 4 damaged
    download, 5 no network, 6 disk full, 7 no permission to write, 8 an external server does not answer,
    9 this machine lacks a requirement, 10 already running with other options or settings.
    """
    numbers = services.parse_workers(workers)
    named = frozenset(piece.partition("=")[0].strip() for piece in workers.split(",") if piece.strip())
    options = UpOptions(numbers, not no_limits, infra_only, services.parse_only(only), named)
    root = find_root()
    if report_to is not None:
        exit_now(ups.run_reporting(root, options, report_to))
    if not detach:
        exit_now(ups.run_foreground(root, options))
    arguments = ["--workers", workers] * bool(workers) + ["--no-limits"] * no_limits + ["--infra-only"] * infra_only
    arguments += ["--only", only] * bool(only)
    raise typer.Exit(ups.start_detached(root, options, arguments))


def exit_now(code: int) -> None:
    """Exit at once, without waiting for threads that still download or probe."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@app.command(epilog="Example: holdfast down")
def down() -> None:
    """Stop everything, including processes left by a killed supervisor."""
    raise typer.Exit(ups.down(find_root()))


@app.command(epilog="Example: holdfast status --json")
def status(as_json: output.AsJson = False) -> None:
    """Show the processes with their state, the shop's addresses and its limits; exit code 1 when no shop runs."""
    root = find_root()
    content = output.status(root)
    supervised = root.has_supervisor()
    if content is None:
        exit_with_error(not_running(root))
    if as_json:
        output.echo(json.dumps(content))
    elif supervised:
        output.print_status(content)
    if not supervised:
        exit_with_error(output.explain_not_running(root, content))


@app.command(epilog="Example: holdfast logs cart-1 --follow")
def logs(
    service: Annotated[
        str | None, typer.Argument(help="A process of `holdfast status`, or supervisor or seed; all by default.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Number of last lines of each log.")] = 100,
) -> None:
    """Print the logs of one process or of all processes. Ctrl-C ends --follow with exit status 0."""
    root = find_root()
    found = {log.stem: log for log in sorted((root.path / "logs").glob("*.log"))}
    if not found:
        exit_with_error(not_running(root))
    if service is not None and service not in found:
        exit_with_error(f"there is no log of {service!r}: choose from {', '.join(found) or 'none yet'}", 2)
    chosen = {name: log for name, log in found.items() if service in (None, name)}
    width = max(map(len, chosen), default=0) if service is None else 0
    try:
        _print_logs(chosen, width, lines, follow=follow)
    except KeyboardInterrupt:
        raise typer.Exit(0 if follow else 130) from None


def _print_logs(chosen: Mapping[str, Path], width: int, lines: int, *, follow: bool) -> None:
    """Print the last lines of some logs; with `follow`, also print each new complete line until interrupted."""
    positions = {}
    for name, log in chosen.items():
        positions[name] = log.stat().st_size
        for line in last_lines(log, lines):
            output.echo(f"{name:<{width}}  {line}" if width else line)
    while follow:
        time.sleep(0.2)
        for name, log in chosen.items():
            size = log.stat().st_size
            if size < positions[name]:
                positions[name] = 0
            if size > positions[name]:
                with log.open("rb") as stream:
                    stream.seek(positions[name])
                    text = stream.read()
                complete = text[: text.rfind(b"\n") + 1]
                positions[name] += len(complete)
                for line in complete.decode(errors="replace").splitlines():
                    output.echo(f"{name:<{width}}  {line}" if width else line)


@app.command(epilog='Example: eval "$(holdfast env)" && psql -c "SELECT 1"')
def env() -> None:
    """Print shell lines that export all addresses and passwords."""
    require_running()
    output.echo(output.shell_exports(find_root()))


@app.command(
    epilog="Example: holdfast psql -c 'SELECT count(*) FROM pg_tables'",
    context_settings=PASS_THROUGH,
    add_help_option=False,
)
def psql(ctx: typer.Context) -> None:
    """Run psql on the shop's database; its arguments are passed through."""
    passthrough.exec_psql(ctx.args)


kafka = typer.Typer(
    no_args_is_help=True,
    help="Run Apache Kafka's own console tools; arguments are passed through, the address is filled in.",
    epilog="Example: holdfast kafka console-consumer --topic cart.requests.v1 --from-beginning",
)
app.add_typer(kafka, name="kafka")


def _add_kafka_tool(tool: str) -> None:
    @kafka.command(tool, context_settings=PASS_THROUGH, add_help_option=False, help=f"Run Kafka's kafka-{tool}.")
    def run(ctx: typer.Context) -> None:
        passthrough.exec_kafka_tool(tool, ctx.args)


for _tool in passthrough.KAFKA_TOOLS:
    _add_kafka_tool(_tool)
LOCAL_COMMANDS = {"up", "down", "status", "logs", "env", "psql", "kafka"}
"""Commands that are defined here and need none of the modules that `tools` imports."""


def main() -> None:
    """Run a command; print an expected error as one sentence and exit with its code, never with a traceback."""
    try:
        if not LOCAL_COMMANDS & set(sys.argv[1:2]):
            # The other commands import the shop's libraries: half a second and 30 MB that a supervisor can do without.
            from infrastructure.local.commands import registry

            registry.register(app)
        app()
    except StackError as fault:
        exit_with_error(str(fault), fault.code)
    except BrokenPipeError:
        # The reader of standard output is gone (`holdfast logs | head`).
        os._exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
