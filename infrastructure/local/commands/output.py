"""Output of the local stack's commands: progress on standard error, addresses and tables on standard output."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table

from infrastructure.local import processes
from infrastructure.local.servers.external import without_password
from infrastructure.local.servers.probes import LOOPBACK
from infrastructure.local.state import NOT_RUNNING, find_running, postgres_variables
from infrastructure.local.supervision import limits
from infrastructure.local.supervision.limits import LIMITS
from infrastructure.process.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infrastructure.local.events import Event
    from infrastructure.local.state import Root

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
"""Option of a command that can print its result as one JSON object."""
ADDRESSES = ("http", "kafka", "postgres", "redis", "mails")
_COLOURS = {"ready": "green", "failed": "red", "stopped": "red"}


class SafeConsole(Console):
    """Console that escapes control characters in all text, so that records cannot control the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with the text escaped; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape_controls(segment.text), segment.style)


def echo(text: object = "", *, err: bool = False) -> None:
    """Print a line, with control characters escaped."""
    typer.echo(escape_controls(str(text)), err=err)


class ProgressPrinter:
    """Printer of a supervisor's events: a progress bar while jars download, one line for every other event."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.console = SafeConsole(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Print one event."""
        match event.kind:
            case "jars":
                self._jars(event)
            case "ready":
                name, how = f"{event.name:<12}", {"started": "ready"}.get(event.how, event.how)
                pid = f" pid {event.pid}" if event.pid else ""
                self._line(f"[green]✓[/] {name} {how} in {event.seconds:.1f} s  {_escape(event.text)}[dim]{pid}[/]")
            case "lost":
                self._line(f"[yellow]![/] {event.name:<12} {_escape(event.text)}; restarting")
            case "note":
                self._line(f"[dim]·[/] {_escape(event.text)}")
            case "running":
                self._line("a shop is already running here")
            case "failed":
                self.close()
                self._line(f"[red]holdfast:[/] {_escape(event.text)}")
            case "up":
                self._line(f"[green]ready in {event.seconds:.1f} s[/]")
                self.close()
            case "down":
                self._line(f"stopped in {event.seconds:.1f} s")
            case _:
                pass

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, text: str) -> None:
        (self._bar.console if self._bar else self.console).print(text)

    def _jars(self, event: Event) -> None:
        if self._bar is None and event.done < event.total:
            if not self.console.is_terminal:
                self._line(f"· downloading {event.total} Kafka jars (about 55 MB in total)")
            columns = (TextColumn("  downloading Kafka jars"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("jars", total=event.total)
            self._bar.start()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=event.done)
            if event.done >= event.total:
                self.close()


def wide_console() -> Console:
    """Return a console for tables; in a pipe, which has no width, it is wide enough to neither cut nor wrap lines."""
    return SafeConsole(highlight=False, width=None if sys.stdout.isatty() else 200)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def status(root: Root) -> dict[str, Any] | None:
    """Return the object that `holdfast status --json` prints; `None` if no shop has ever run in this root directory."""
    state = root.load()
    if "http" not in state:
        return None
    supervised = root.has_supervisor()
    entries: dict[str, dict[str, Any]] = {}
    services = state.get("services", {})
    families = processes.process_trees(entry["pid"] for entry in services.values() if entry["pid"])
    for name, entry in services.items():
        memory = processes.resident_bytes(families.get(entry["pid"], []))
        unsupervised_state = "degraded" if memory else "stopped"
        entries[name] = {**entry, "state": entry["state"] if supervised else unsupervised_state, "rss_bytes": memory}
    return {
        "http": state["http"],
        "kafka": state["kafka"],
        "postgres": without_password("postgres", state["postgres"]),
        "redis": without_password("redis", state["redis"]),
        "limits": state["limits"],
        # Only an edge applies limits.
        "limit_settings": limits.effective_limits(state.get("limit_settings", {}), lifted=state["limits"] == "off")
        if "edge" in entries
        else {},
        **_mailbox_url(state),
        "state": state["state"] if supervised else "stopped",
        "supervisor": state["supervisor"] if supervised else 0,
        "services": entries,
    }


def explain_not_running(content: dict[str, Any]) -> str:
    """Return the message for a `status` without a supervisor: why no shop runs, and what to do."""
    orphans = sum(1 for entry in content["services"].values() if entry["state"] != "stopped")
    if not orphans:
        return NOT_RUNNING
    return (
        f"the supervisor is gone but {orphans} processes still run:"
        " `holdfast up` takes them over, `holdfast down` ends them"
    )


def _mailbox_url(state: dict[str, Any]) -> dict[str, str]:
    """Return the URL of the local mailbox, if the shop has one."""
    port = state.get("ports", {}).get("catcher")
    return {"mails": f"http://{LOOPBACK}:{port}/"} if port and "catcher" in state.get("services", {}) else {}


def print_status(content: dict[str, Any]) -> None:
    """Print a `status` as a table and a list of addresses and limits."""
    console = SafeConsole(highlight=False, soft_wrap=not os.isatty(1))
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("service", "state", "pid", "MiB", "restarts", "metrics"):
        grid.add_column(title, justify="right" if title in ("pid", "MiB", "restarts") else "left")
    for name, entry in content["services"].items():
        grid.add_row(*status_row(name, entry), entry["metrics"] or "")
    console.print(grid)
    total = sum(entry["rss_bytes"] for entry in content["services"].values())
    console.print(f"\nresident     {total / (1 << 20):.0f} MiB")
    for name in [name for name in (*ADDRESSES, "limits") if name in content]:
        console.print(f"{name:<12} {content[name]}")
    for name, value in content["limit_settings"].items():
        shown = "lifted" if value is None else _escape(str(value))
        console.print(f"  {name:<30} {shown:>6}  [dim]{LIMITS[name].description}[/]")


def status_row(name: str, entry: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """Return the cells of a process in a table: name, state, pid, MiB and restarts."""
    colour = _COLOURS.get(entry["state"], "yellow")
    return (
        name,
        f"[{colour}]{entry['state']}[/]",
        str(entry["pid"] or "external" if entry.get("external") else entry["pid"] or "-"),
        f"{entry['rss_bytes'] / (1 << 20):.0f}",
        str(entry["restarts"]),
    )


def print_addresses(root: Root) -> None:
    """Print the shop's addresses on standard output."""
    content = status(root) or {}
    lines = [f"{name:<10} {content[name]}" for name in ADDRESSES if name in content]
    echo("\n".join(lines))


def shell_exports(root: Root) -> str | None:
    """Return shell lines that export the addresses and passwords for every client; `None` if no shop runs."""
    stack = find_running(root)
    if stack is None:
        return None
    exports = {
        "HOLDFAST_HTTP_URL": stack.http,
        "HOLDFAST_KAFKA": stack.kafka,
        "HOLDFAST_POSTGRES_URL": stack.postgres_url,
        **postgres_variables(stack.postgres_url),
        "HOLDFAST_REDIS_URL": stack.redis_url,
        "HOLDFAST_SECRET": stack.secret,
        "HOLDFAST_ROOT": str(stack.root),
        **stack.provider_settings(),
    }
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items())
