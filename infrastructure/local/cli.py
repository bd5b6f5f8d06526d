"""The `holdfast` command: the local stack here, everything else registered by `tools`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from infrastructure.local import console, services, show
from infrastructure.local import up as ups
from infrastructure.local.errors import Fault
from infrastructure.local.plan import Options
from infrastructure.local.state import NO_SHOP, die, find_root, running
from infrastructure.local.supervisor import tail

app = typer.Typer(
    name="holdfast",
    help="Holdfast on this machine: the shop, its servers, and the tools to look inside.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""Arguments that are not ours to read."""


@app.command(epilog="Example: holdfast up --detach --workers inventory=2,cart=2")
def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return when all is ready; it goes on by itself.")] = False,
    workers: Annotated[
        str, typer.Option(help="Workers of each service, as inventory=2,cart=2.", metavar="NAME=N,…")
    ] = "",
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Lift all rate limits.")] = False,
    infra_only: Annotated[bool, typer.Option("--infra-only", help="Kafka, PostgreSQL and Redis, no services.")] = False,
    only: Annotated[str, typer.Option(help="These services alone, as edge,cart,inventory.", metavar="NAME,…")] = "",
    report_to: Annotated[int | None, typer.Option(ups.REPORT, hidden=True)] = None,
) -> None:
    """Start Kafka, PostgreSQL, Redis and the shop; Ctrl-C stops everything.

    Exit codes: 0 done or already running, 1 failed, 2 wrong use, 3 a port asked for is taken, 4 damaged
    download, 5 no network, 6 disk full, 7 no right to write, 8 an external server does not answer,
    9 this machine lacks something.
    """
    options = Options(services.workers(workers), not no_limits, infra_only, services.only(only))
    root = find_root()
    if report_to is not None:
        leave(ups.report(root, options, report_to))
    if not detach:
        leave(ups.foreground(root, options))
    words = ["--workers", workers] * bool(workers) + ["--no-limits"] * no_limits + ["--infra-only"] * infra_only
    words += ["--only", only] * bool(only)
    raise typer.Exit(ups.detached(root, words))


def leave(code: int) -> None:
    """End now: threads that still download or probe have nothing to say any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@app.command(epilog="Example: holdfast down")
def down() -> None:
    """Stop everything, also what a killed supervisor left."""
    raise typer.Exit(ups.down(find_root()))


@app.command(epilog="Example: holdfast status --json")
def status(as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """What runs, since when it is well, and where it answers; exit code 1 when no shop runs."""
    root = find_root()
    content = show.status(root)
    lives = root.held()
    if content is None:
        die(NO_SHOP)
    if as_json:
        typer.echo(json.dumps(content))
    elif lives:
        show.table(content)
    if not lives:
        die(show.missing(content))


@app.command(epilog="Example: holdfast logs cart-1 --follow")
def logs(
    service: Annotated[str | None, typer.Argument(help="One of `holdfast status`, or supervisor or seed.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 100,
) -> None:
    """What the processes print; of all of them when none is named. Ctrl-C ends --follow with exit status 0."""
    root = find_root()
    found = {log.stem: log for log in sorted((root.path / "logs").glob("*.log"))}
    if service is not None and service not in found:
        die(f"there is no log of {service!r}: it is one of {', '.join(found) or 'none yet'}", 2)
    chosen = {name: log for name, log in found.items() if service in (None, name)}
    width = max(map(len, chosen), default=0) if service is None else 0
    try:
        _print_logs(chosen, width, lines, follow=follow)
    except KeyboardInterrupt:
        raise typer.Exit(0 if follow else 130) from None


def _print_logs(chosen: Mapping[str, Path], width: int, lines: int, *, follow: bool) -> None:
    """The last lines of some logs, and with `follow` each new one when it is whole, until interrupted."""
    places = {}
    for name, log in chosen.items():
        places[name] = log.stat().st_size
        for line in tail(log, lines):
            typer.echo(f"{name:<{width}}  {line}" if width else line)
    while follow:
        time.sleep(0.2)
        for name, log in chosen.items():
            size = log.stat().st_size
            if size < places[name]:
                places[name] = 0
            if size > places[name]:
                with log.open("rb") as stream:
                    stream.seek(places[name])
                    text = stream.read()
                whole = text[: text.rfind(b"\n") + 1]
                places[name] += len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    typer.echo(f"{name:<{width}}  {line}" if width else line)


@app.command(epilog='Example: eval "$(holdfast env)" && psql -c "SELECT 1"')
def env() -> None:
    """Shell lines that export every address and password."""
    running()
    typer.echo(show.environment(find_root()))


@app.command(
    epilog="Example: holdfast psql -c 'SELECT count(*) FROM pg_tables'", context_settings=PASS_ON, add_help_option=False
)
def psql(ctx: typer.Context) -> None:
    """The client psql on the shop's database; its arguments are passed through."""
    console.psql(ctx.args)


kafka = typer.Typer(
    no_args_is_help=True,
    help="Apache Kafka's own console tools; arguments passed through, the address filled in.",
    epilog="Example: holdfast kafka console-consumer --topic cart.requests.v1 --from-beginning",
)
app.add_typer(kafka, name="kafka")


def _add(tool: str) -> None:
    @kafka.command(tool, context_settings=PASS_ON, add_help_option=False, help=f"Kafka's kafka-{tool}.")
    def run(ctx: typer.Context) -> None:
        console.kafka_tool(tool, ctx.args)


for _tool in console.TOOLS:
    _add(_tool)
OWN = {"up", "down", "status", "logs", "env", "psql", "kafka"}


def main() -> None:
    """Run a command; an expected fault is one sentence and an exit code, never a traceback."""
    try:
        if not OWN & set(sys.argv[1:2]):
            # The other commands bring the shop's libraries: half a second and 30 MB that a supervisor can do without.
            from infrastructure.local import tools

            tools.register(app)
        app()
    except Fault as fault:
        die(str(fault), fault.code)
    except BrokenPipeError:
        # The reader has seen enough (`holdfast logs | head`).
        os._exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
