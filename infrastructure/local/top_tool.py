"""`holdfast top`: the shop live in the terminal, or one look at it for pipes and machines."""

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

from infrastructure.envelope import rfc3339
from infrastructure.local import reach, show, vitals
from infrastructure.local.errors import Fault
from infrastructure.local.lag import Groups, Lag
from infrastructure.local.state import NO_SHOP, Root, find_root
from infrastructure.local.vitals import ALL, Reading

BEAT: Final = 1.0
"""Seconds between two looks."""
PARTS: Final = 4
"""Of a rate or a lag at most so many parts are told."""
WHICH: Final = "of which"
WIDE: Final = 130
"""Columns from which lag and rates stand beside the services; below, they stand under them."""


def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="One look, measured over a second.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One look as one JSON object on standard output.")] = False,
) -> None:
    """The system live: each process, how far consumer groups are behind, what happens in a second.

    Looks again every second until Ctrl-C, which ends it with exit status 0; where there is no terminal, once. CPU is in
    percent of one core. On a small terminal the end is cut off; --once prints all.
    """
    settings, root = reach.here(), find_root()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    live = not once and not as_json and sys.stdout.isatty() and not console.is_dumb_terminal
    try:
        if live:
            asyncio.run(_live(root, Groups(settings), console))
            return
        sample = asyncio.run(_once(root, Groups(settings)))
    except KeyboardInterrupt:
        raise typer.Exit(0 if live else 130) from None
    if as_json:
        typer.echo(json.dumps(sample))
    else:
        console.print(view(sample, console.width))


async def _once(root: Root, groups: Groups) -> dict[str, Any]:
    try:
        before = await _read(root)
        await asyncio.sleep(BEAT)
        return (await _sample(root, groups, before))[1]
    finally:
        await groups.close()


async def _live(root: Root, groups: Groups, console: Console) -> None:
    """Until interrupted. Raises Fault when the shop ends."""
    before: Reading | None = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                began = time.monotonic()
                before, sample = await _sample(root, groups, before)
                live.update(view(sample, console.width), refresh=True)
                await asyncio.sleep(max(0.0, began + BEAT - time.monotonic()))
    finally:
        await groups.close()


async def _sample(root: Root, groups: Groups, before: Reading | None) -> tuple[Reading, dict[str, Any]]:
    after, lag = await asyncio.gather(_read(root), groups.lag())
    return after, {"time": rfc3339(datetime.now(UTC)), **vitals.compare(before, after, lag)}


async def _read(root: Root) -> Reading:
    """A look at the shop. Raises Fault when its supervisor does not live."""
    reading = await asyncio.to_thread(vitals.read, root)
    if reading is None or not reading.status["supervisor"]:
        raise Fault(NO_SHOP if reading is None else show.missing(reading.status))
    return reading


def view(sample: dict[str, Any], width: int) -> RenderableType:
    """A sample as a person sees it on a terminal of so many columns."""
    wait = "" if sample["outcome_ms"] is None else f" · outcomes in {sample['outcome_ms']:.0f} ms"
    head = f"{sample['time'][11:19]}Z · {sample['http']} · {sample['state']} · {sample['sockets']} sockets{wait}"
    services, lag, rates = _services(sample["services"]), _lag(sample["lag"]), _rates(sample["rates"])
    both = Table.grid(padding=(0, 4))
    if width >= WIDE:
        both.add_row(services, Group(lag, "", rates))
        return Group(head, "", both)
    both.add_row(lag, rates)
    return Group(head, "", services, "", both)


def _services(services: dict[str, Any]) -> Table:
    table = _table("service", "state", "pid", "CPU %", "MiB", "restarts", "records/s", words=2)
    for name, entry in services.items():
        called, state, pid, mib, restarts = show.row(name, entry)
        table.add_row(called, state, pid, _number(entry["cpu_percent"]), mib, restarts, _number(entry["records"]))
    cpu = [entry["cpu_percent"] for entry in services.values() if entry["cpu_percent"] is not None]
    mib = sum(entry["rss_bytes"] for entry in services.values()) / (1 << 20)
    table.add_row("all", "", "", _number(sum(cpu) if cpu else None), f"{mib:.0f}", style="dim")
    return table


def _lag(lag: Lag | None) -> Table:
    table = _table("group", "behind", WHICH, words=1)
    for group, topics in (lag or {}).items():
        most = sorted(((number, topic) for topic, number in topics.items() if number), reverse=True)
        behind = str(sum(topics.values())) if topics else "-"
        table.add_row(escape(group), behind, _parts([f"{topic} {number}" for number, topic in most]))
    if lag is None:
        table.add_row("[yellow]Kafka does not answer[/]")
    return table


def _rates(rates: dict[str, dict[str, float]] | None) -> Table:
    table = _table("what happens", "a second", WHICH, words=1)
    for name, parts in (rates or {}).items():
        most = sorted(((value, part) for part, value in parts.items() if part != ALL), reverse=True)
        told = _parts([f"{part} {value:.1f}" for value, part in most])
        table.add_row(name.replace("_", " "), _number(parts[ALL]), told)
    return table


def _table(*titles: str, words: int) -> Table:
    """A table without lines: so many columns of words, then of numbers; `of which` is words again."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, title in enumerate(titles):
        justify: JustifyMethod = "left" if place < words or title == WHICH else "right"
        table.add_column(title, justify=justify, no_wrap=title != WHICH)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _parts(told: list[str]) -> Text:
    """The greatest few, and that there are more; it is cut where there is no room."""
    return Text(", ".join(told[:PARTS]) + (" …" if len(told) > PARTS else ""), no_wrap=True, overflow="ellipsis")


def register(app: typer.Typer) -> None:
    """Add `top`."""
    app.command(epilog="Example: holdfast top --json")(top)
