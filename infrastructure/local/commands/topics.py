"""`holdfast topics` and `holdfast tail`: list the shop's topics and print their records, for people and for pipes."""

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from contracts.envelope import UnreadableBatch
from infrastructure.local.commands import connection, output, topic_reader
from infrastructure.local.commands.topic_reader import Record, TopicState, decode_value
from infrastructure.process.settings import Settings
from infrastructure.process.terminal import escape_controls

TYPE_PREFIX: Final = "holdfast."
DAY_MS: Final = 86_400_000


def topics(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array on standard output.")] = False,
) -> None:
    """List the shop's topics: partitions, retention, first and next offsets, number of records.

    The offsets are the lowest first and the highest next offset of all partitions; --json has those of each partition.
    """
    found = asyncio.run(topic_reader.read_topic_states(connection.settings("HOLDFAST_KAFKA")))
    if as_json:
        output.echo(json.dumps([topic.as_json() for topic in found]))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("topic", no_wrap=True, overflow="fold")
    table.add_column("partitions", justify="right")
    table.add_column("retention")
    for heading in ("first", "next", "records"):
        table.add_column(heading, justify="right")
    for topic in found:
        first = min((offset for offset, _ in topic.offsets.values()), default=0)
        end = max((offset for _, offset in topic.offsets.values()), default=0)
        table.add_row(
            topic.name, str(len(topic.offsets)), _format_retention(topic), str(first), str(end), _format_count(topic)
        )
    output.wide_console().print(table)


def _format_retention(topic: TopicState) -> str:
    if topic.retention_ms is None:
        return "last of each key" if "compact" in topic.cleanup_policy else "unlimited"
    return f"{topic.retention_ms / DAY_MS:g} d"


def _format_count(topic: TopicState) -> str:
    """Return the number of records; an upper bound for a compacted topic, whose removed records leave offset gaps."""
    return f"{'≤ ' if 'compact' in topic.cleanup_policy and topic.records else ''}{topic.records}"


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Filter for records; a field that is `None` matches all."""

    key: str | None = None
    type: str | None = None

    def matches(self, record: Record) -> bool:
        """Return whether `record` has this key and this type; a type also matches without its leading parts."""
        if self.key is not None and record.key != self.key.encode():
            return False
        return self.type is None or f".{_type(record)}".endswith(f".{self.type}")

    @property
    def matches_all(self) -> bool:
        """True if every record passes."""
        return self.key is None and self.type is None


def tail(  # noqa: PLR0913 - a parameter for each option
    topic: Annotated[str, typer.Argument(help="A topic's name, with or without the shop's prefix.")],
    key: Annotated[str | None, typer.Option(help="Only records with this key.")] = None,
    type_: Annotated[
        str | None, typer.Option("--type", help="Only events of this type: `holdfast.cart.held`, `cart.held`, `held`.")
    ] = None,
    last: Annotated[int | None, typer.Option(min=0, help="Only the last N matching records; all by default.")] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new records until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per record, with its position.")
    ] = False,
    pretty: Annotated[
        bool | None,
        typer.Option("--pretty/--plain", help="Formatted, or key TAB value; by default formatted on a terminal."),
    ] = None,
) -> None:
    """Print the records of a topic in the order of their time, without a consumer group.

    In a pipe each record is one line, key TAB value, as Apache Kafka's console consumer prints it and its console
    producer reads it. Ctrl-C ends --follow with exit status 0.
    """
    printer: Callable[[Record], None] = _print_plain
    if as_json:
        printer = _print_json
    elif pretty or (pretty is None and sys.stdout.isatty()):
        printer = _print_pretty
    settings = connection.settings("HOLDFAST_KAFKA")
    try:
        asyncio.run(_tail(settings, topic, RecordFilter(key, type_), last, printer, follow=follow))
    except KeyboardInterrupt:
        raise typer.Exit(0 if follow else 130) from None
    except BrokenPipeError:  # the reader is gone (`| head`); standard output must not be flushed into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _tail(
    settings: Settings,
    topic: str,
    filter_: RecordFilter,
    last: int | None,
    printer: Callable[[Record], None],
    *,
    follow: bool,
) -> None:
    partitions = await topic_reader.find_partitions(settings, topic)
    async with topic_reader.open_consumer(settings) as reader:
        reader.assign(partitions)
        starts = await reader.beginning_offsets(partitions)
        ends = await reader.end_offsets(partitions)
        if last is not None and filter_.matches_all:  # the last N records of all are among the last N of each partition
            starts = {p: max(first, ends[p] - last) for p, first in starts.items()}
        old = (record async for record in topic_reader.read_range(reader, starts, ends) if filter_.matches(record))
        await _print_records(old if last is None else _last(old, last), printer)
        if follow:
            new = (record async for record in topic_reader.read_new(reader, ends) if filter_.matches(record))
            await _print_records(new, printer)


async def _last(records: AsyncIterator[Record], number: int) -> AsyncIterator[Record]:
    end: deque[Record] = deque(maxlen=number)
    async for record in records:
        end.append(record)
    for record in end:
        yield record


async def _print_records(records: AsyncIterator[Record], printer: Callable[[Record], None]) -> None:
    async for record in records:
        printer(record)


def _print_plain(record: Record) -> None:
    """Print key TAB value, with `null` for a missing key or value."""
    if isinstance(record.value, UnreadableBatch):  # a producer could not send its bytes again
        output.echo(f"{record.topic}/{record.partition}: {record.value.explanation}", err=True)
        return
    line = b"\t".join(b"null" if part is None else _printable(part) for part in (record.key, record.value))
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _printable(part: bytes) -> bytes:
    """Return a key or value with control characters escaped, if it is JSON, which stays equal, or for a terminal.

    Other bytes stay as they are in a pipe, which may end in a program that needs them.
    """
    try:
        text = part.decode()
        if not sys.stdout.isatty():
            json.loads(text)
    except (ValueError, RecursionError):
        return escape_controls(repr(part)).encode() if sys.stdout.isatty() else part
    return escape_controls(text).encode()


def _print_json(record: Record) -> None:
    position = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": topic_reader.format_timestamp(record.timestamp),
        "key": None if record.key is None else record.key.decode(errors="replace"),
    }
    output.echo(json.dumps(position | decode_value(record.value), ensure_ascii=False))


def _type(record: Record) -> str | None:
    """Return the event's type, `None` if the value is not an event."""
    event = decode_value(record.value).get("value")
    type_ = event.get("type") if isinstance(event, dict) else None
    return type_ if isinstance(type_, str) else None


def _print_pretty(record: Record) -> None:
    event = decode_value(record.value).get("value")
    line = Text()
    line.append(_format_time(record.timestamp), "dim")
    line.append(f" {record.partition:>2}@{record.offset:<6} ", "dim")
    if isinstance(event, dict) and isinstance(event.get("data"), dict) and isinstance(event.get("type"), str):
        line.append(event["type"].removeprefix(TYPE_PREFIX).ljust(18) + " ", "bold cyan")
        line.append(f"{event.get('subject')} ", "green")
        if event.get("requestid"):
            line.append(f"{event['requestid']} ", "yellow")
        line.append(json.dumps({k: v for k, v in event["data"].items() if k != "user_id"}, ensure_ascii=False))
    elif isinstance(record.value, UnreadableBatch):
        line.append("unreadable".ljust(18) + " ", "bold red")
        line.append(record.value.explanation)
    else:
        line.append("not an event".ljust(18) + " ", "bold red")
        line.append(f"{record.key!r} {record.value!r}")
    output.SafeConsole(highlight=False, soft_wrap=True).print(line)


def _format_time(milliseconds: int) -> str:
    """Return the time of day, as `03:24:41.118`; the whole timestamp if it is not of this century."""
    text = topic_reader.format_timestamp(milliseconds)
    return text[len("2026-11-21T") : -1] if text.startswith("20") else text


def register(app: typer.Typer) -> None:
    """Add `topics` and `tail` to the app."""
    app.command(epilog="Example: holdfast topics --json")(topics)
    app.command(epilog="Example: holdfast tail cart.responses.v1 --type cart.held --follow")(tail)
