"""Output of the local stack's commands: progress on standard error, addresses and tables on standard output."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table

from infrastructure.local import processes
from infrastructure.local.servers.external import without_password
from infrastructure.local.servers.probes import LOOPBACK
from infrastructure.local.state import find_running, not_running, postgres_variables
from infrastructure.local.supervision import limits
from infrastructure.local.supervision.limits import LIMITS
from infrastructure.process.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infrastructure.local.events import Event
    from infrastructure.local.state import Root

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
"""Option of a command that can print its result as one JSON object."""
ADDRESSES = ("http", "kafka", "postgres", "redis", "mails", "smtp", "provider")
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


def wide_console() -> SafeConsole:
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
        family = families.get(entry["pid"], [])
        memory = processes.resident_bytes(family)
        unsupervised_state = "degraded" if memory else "stopped"
        entries[name] = {
            **entry,
            "state": entry["state"] if supervised else unsupervised_state,
            "rss_bytes": memory,
            "pss_bytes": processes.proportional_bytes(family),
        }
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
        **_helper_urls(state),
        "state": state["state"] if supervised else "stopped",
        "supervisor": state["supervisor"] if supervised else 0,
        "services": entries,
    }


def explain_not_running(root: Root, content: dict[str, Any]) -> str:
    """Return the message for a `status` without a supervisor: why no shop runs, and what to do."""
    orphans = sum(1 for entry in content["services"].values() if entry["state"] != "stopped")
    if not orphans:
        return not_running(root)
    return (
        f"the supervisor of {root.path} is gone but {orphans} processes still run:"
        " `holdfast up` takes them over, `holdfast down` ends them"
    )


def _helper_urls(state: dict[str, Any]) -> dict[str, str]:
    """Return the addresses of the shop's simulated helpers: the mailbox's page and port, and the payment provider."""
    ports, services = state.get("ports", {}), state.get("services", {})
    urls = {}
    if "catcher" in services and ports.get("catcher"):
        urls["mails"] = f"http://{LOOPBACK}:{ports['catcher']}/"
        if ports.get("smtp"):
            urls["smtp"] = f"smtp://{LOOPBACK}:{ports['smtp']}"
    if "provider" in services and ports.get("provider"):
        urls["provider"] = f"http://{LOOPBACK}:{ports['provider']}"
    return urls


def print_status(content: dict[str, Any]) -> None:
    """Print a `status` as a table and a list of addresses and limits."""
    console = wide_console()
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("service", "state", "pid", "MiB", "restarts", "since", "address"):
        grid.add_column(title, justify="right" if title in ("pid", "MiB", "restarts") else "left")
    for name, entry in content["services"].items():
        grid.add_row(*status_row(name, entry), format_since(entry.get("since")), _escape(entry.get("address") or ""))
    console.print(grid)
    console.print(f"\n{describe_memory(content['services'])}")
    for name in [name for name in (*ADDRESSES, "limits") if name in content]:
        console.print(f"{name:<12} {_escape(content[name])}")
    console.print("metrics      at /metrics of each service's own port; `holdfast status --json` has the addresses")
    for name, value in content["limit_settings"].items():
        shown = "lifted" if value is None else _escape(str(value))
        console.print(f"  {name:<30} {shown:>6}  [dim]{LIMITS[name].description}[/]")


def format_since(since: str | None) -> str:
    """Return the local time since which a process is in its state, with the date unless it is today's."""
    if not since:
        return "-"
    at = datetime.fromisoformat(since).astimezone()
    return f"{at:%H:%M:%S}" if at.date() == datetime.now(UTC).astimezone().date() else f"{at:%Y-%m-%d %H:%M:%S}"


def describe_memory(services: dict[str, dict[str, Any]]) -> str:
    """Return the line about the memory of all processes, and how it was counted."""
    mib = sum(memory_bytes(entry) for entry in services.values()) / (1 << 20)
    shared = [name for name, entry in services.items() if entry.get("pss_bytes") is None]
    if not shared:
        return f"memory       {mib:.0f} MiB (each shared page counted once)"
    which = "all processes" if len(shared) == len(services) else ", ".join(shared)
    return f"memory       {mib:.0f} MiB at most (resident; this system does not say what is shared by {which})"


def memory_bytes(entry: dict[str, Any]) -> int:
    """Return the memory of a process and its children: PSS, or where that is unknown, the resident bytes."""
    pss = entry.get("pss_bytes")
    return int(entry["rss_bytes"] if pss is None else pss)


def status_row(name: str, entry: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """Return the cells of a process in a table: name, state, pid, MiB and restarts."""
    colour = _COLOURS.get(entry["state"], "yellow")
    return (
        name,
        f"[{colour}]{entry['state']}[/]",
        str(entry["pid"] or "external" if entry.get("external") else entry["pid"] or "-"),
        f"{memory_bytes(entry) / (1 << 20):.0f}",
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
        **({"HOLDFAST_PREFIX": stack.prefix} if stack.prefix else {}),
        **stack.provider_settings(),
    }
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items())
