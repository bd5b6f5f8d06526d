"""`holdfast top`: live view of the shop in the terminal, or a single measurement for pipes and scripts."""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from contracts.envelope import rfc3339
from infrastructure.local.commands import connection, output, process_stats
from infrastructure.local.commands.consumer_lag import Lag, LagReader
from infrastructure.local.commands.process_stats import ALL, Snapshot
from infrastructure.local.errors import StackError
from infrastructure.local.state import Root, find_root, not_running

INTERVAL_SECONDS: Final = 1.0
"""Seconds between two measurements."""
MAX_PARTS: Final = 4
"""Maximum number of parts that are shown of a rate or a lag."""
BREAKDOWN: Final = "of which"
WIDE_COLUMNS: Final = 130
"""Terminal columns from which lag and rates are shown next to the services instead of below them."""


def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="Measure once, over one second.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Measure once and print one JSON object on standard output.")
    ] = False,
) -> None:
    """Show the shop live: its processes, the lag of consumer groups, and event rates.

    Refreshes every second until Ctrl-C, which ends it with exit status 0; without a terminal it measures once. CPU is
    in percent of one core. On a small terminal the end is cut off; --once prints everything.
    """
    settings, root = connection.running_shop_settings(), find_root()
    console = output.wide_console()
    live = not once and not as_json and sys.stdout.isatty() and not console.is_dumb_terminal
    try:
        if live:
            asyncio.run(_run_live(root, LagReader(settings), console))
            return
        sample = asyncio.run(_measure_once(root, LagReader(settings)))
    except KeyboardInterrupt:
        raise typer.Exit(0 if live else 130) from None
    if as_json:
        output.echo(json.dumps(sample))
    else:
        console.print(render(sample, console.width))


async def _measure_once(root: Root, groups: LagReader) -> dict[str, Any]:
    try:
        before = await _read(root)
        await asyncio.sleep(INTERVAL_SECONDS)
        return (await _sample(root, groups, before))[1]
    finally:
        await groups.close()


async def _run_live(root: Root, groups: LagReader, console: Console) -> None:
    """Refresh the view until interrupted. Raises `StackError` when the shop ends."""
    before: Snapshot | None = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                started = time.monotonic()
                before, sample = await _sample(root, groups, before)
                live.update(render(sample, console.width), refresh=True)
                await asyncio.sleep(max(0.0, started + INTERVAL_SECONDS - time.monotonic()))
    finally:
        await groups.close()


async def _sample(root: Root, groups: LagReader, before: Snapshot | None) -> tuple[Snapshot, dict[str, Any]]:
    after, lag = await asyncio.gather(_read(root), groups.read())
    return after, {"time": rfc3339(datetime.now(UTC)), **process_stats.compare(before, after, lag)}


async def _read(root: Root) -> Snapshot:
    """Measure the shop. Raises `StackError` if its supervisor does not run."""
    reading = await asyncio.to_thread(process_stats.take_snapshot, root)
    if reading is None or not reading.status["supervisor"]:
        raise StackError(not_running(root) if reading is None else output.explain_not_running(root, reading.status))
    return reading


def render(sample: dict[str, Any], width: int) -> RenderableType:
    """Return a sample laid out for a terminal of `width` columns."""
    wait = "" if sample["outcome_ms"] is None else f" · outcomes in {sample['outcome_ms']:.0f} ms"
    head = f"{sample['time'][11:19]}Z · {sample['http']} · {sample['state']} · {sample['sockets']} sockets{wait}"
    services, lag, rates = _services(sample["services"]), _lag(sample["lag"]), _rates(sample["rates"])
    columns = Table.grid(padding=(0, 4))
    if width >= WIDE_COLUMNS:
        columns.add_row(services, Group(lag, "", rates))
        return Group(head, "", columns)
    columns.add_row(lag, rates)
    return Group(head, "", services, "", columns)


def _services(services: dict[str, Any]) -> Table:
    table = _table("service", "state", "pid", "CPU %", "MiB", "restarts", "records/s", text_columns=2)
    for name, entry in services.items():
        label, state, pid, mib, restarts = output.status_row(name, entry)
        table.add_row(
            label, state, pid, _format_number(entry["cpu_percent"]), mib, restarts, _format_number(entry["records"])
        )
    cpu = [entry["cpu_percent"] for entry in services.values() if entry["cpu_percent"] is not None]
    total = sum(output.memory_bytes(entry) for entry in services.values()) / (1 << 20)
    table.add_row("all", "", "", _format_number(sum(cpu) if cpu else None), f"{total:.0f}", style="dim")
    return table


def _lag(lag: Lag | None) -> Table:
    table = _table("group", "lag", BREAKDOWN, text_columns=1)
    for group, topics in (lag or {}).items():
        largest = sorted(((number, topic) for topic, number in topics.items() if number), reverse=True)
        total = str(sum(topics.values())) if topics else "-"
        table.add_row(escape(group), total, _format_parts([f"{topic} {number}" for number, topic in largest]))
    if lag is None:
        table.add_row("[yellow]Kafka does not answer[/]")
    return table


def _rates(rates: dict[str, dict[str, float]] | None) -> Table:
    table = _table("event", "per second", BREAKDOWN, text_columns=1)
    for name, parts in (rates or {}).items():
        largest = sorted(((value, part) for part, value in parts.items() if part != ALL), reverse=True)
        shown = _format_parts([f"{part} {value:.1f}" for value, part in largest])
        table.add_row(name.replace("_", " "), _format_number(parts[ALL]), shown)
    return table


def _table(*titles: str, text_columns: int) -> Table:
    """Return a table without lines: `text_columns` columns of text, then columns of numbers; `of which` is text too."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(titles):
        justify: JustifyMethod = "left" if index < text_columns or title == BREAKDOWN else "right"
        table.add_column(title, justify=justify, no_wrap=title != BREAKDOWN)
    return table


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _format_parts(parts: list[str]) -> Text:
    """Return the first `MAX_PARTS` parts as one line, with `…` if there are more; it is cut at the column's width."""
    return Text(
        ", ".join(parts[:MAX_PARTS]) + (" …" if len(parts) > MAX_PARTS else ""), no_wrap=True, overflow="ellipsis"
    )


def register(app: typer.Typer) -> None:
    """Add `top` to the app."""
    app.command(epilog="Example: holdfast top --json")(top)
