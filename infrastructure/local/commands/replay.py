"""`holdfast replay`: sends records of a topic to the same topic again, unchanged, to show that replays are harmless."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import orjson
import typer
from aiokafka import AIOKafkaConsumer, TopicPartition
from rich.progress import Progress

from contracts.envelope import UnreadableBatch
from infrastructure.local.commands import connection, output, topic_reader
from infrastructure.local.commands.output import AsJson
from infrastructure.local.commands.topic_reader import Record, TopicState
from infrastructure.local.commands.topic_writer import open_writer
from infrastructure.local.errors import UsageError
from infrastructure.process.settings import Settings

DEAD_LETTER_SUFFIX: Final = ".dlq"
CHANGELOG_SUFFIX: Final = "-changelog"

Bound = int | datetime
"""An offset that applies to every partition, or a time."""


def parse_bound(text: str | None, option: str) -> Bound | None:
    """Return the value of `--from` or `--to` as an offset or a time. Raises `UsageError`."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise UsageError(f"{option} takes a time with a zone (2026-11-21T03:24:41Z) or an offset (120), not {text!r}")
    return moment


@dataclass(frozen=True, slots=True)
class RecordSelection:
    """Selection of records to send again: from `since` (inclusive) to `until` (exclusive), by id and by key."""

    since: Bound | None = None
    until: Bound | None = None
    id: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        """Raise `UsageError` if no record can lie between the bounds."""
        for kind in (int, datetime):
            if isinstance(self.since, kind) and isinstance(self.until, kind) and not self.since < self.until:  # type: ignore[operator] # both are of one kind
                raise UsageError("--from must be before --to")

    async def resolve_offsets(
        self, reader: AIOKafkaConsumer, partitions: list[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Return the first offset to read and the end offset (exclusive, at most the current end), by partition."""
        starts: dict[TopicPartition, int] = await reader.beginning_offsets(partitions)
        ends: dict[TopicPartition, int] = await reader.end_offsets(partitions)
        if isinstance(self.since, datetime):
            if (at := _milliseconds(self.since)) <= 0:  # Kafka has no search for them; `matches` compares each record
                return starts, self._limit(ends)
            found = await reader.offsets_for_times(dict.fromkeys(partitions, at))
            starts = {p: ends[p] if (position := found.get(p)) is None else position.offset for p in partitions}
        elif self.since is not None:
            starts = {p: max(first, self.since) for p, first in starts.items()}
        return starts, self._limit(ends)

    def _limit(self, ends: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        until = self.until
        return {p: min(end, until) for p, end in ends.items()} if isinstance(until, int) else ends

    def matches(self, record: Record) -> bool:
        """Return whether `record` is selected. Its offset is not checked: `resolve_offsets` limits the offsets."""
        if isinstance(self.since, datetime) and record.timestamp < _milliseconds(self.since):
            return False
        if isinstance(self.until, datetime) and record.timestamp >= _milliseconds(self.until):
            return False
        if self.key is not None and record.key != self.key.encode():
            return False
        if record.key is None and record.value is None:  # an empty record: nothing to send
            return False
        if isinstance(record.value, UnreadableBatch):
            return False
        return self.id is None or self.id in event_ids(record.value)


def _milliseconds(moment: datetime) -> int:
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def event_ids(value: bytes | None) -> tuple[str | None, str | None]:
    """Return the id and the `requestid` of the event in a record's value; `None` for each that is missing."""
    event = _parse_event(value)
    id_, request_id = event.get("id"), event.get("requestid")
    return id_ if isinstance(id_, str) else None, request_id if isinstance(request_id, str) else None


def _parse_event(value: bytes | None) -> Mapping[str, Any]:
    try:
        event = orjson.loads(value or b"")
    except orjson.JSONDecodeError:  # also raised for invalid UTF-8 and for too deep nesting
        return {}
    return event if isinstance(event, dict) else {}


def replay(  # noqa: PLR0913 - a parameter for each option
    topic: Annotated[str, typer.Argument(help="A topic's name, with or without the shop's prefix.")],
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TIME|OFFSET",
            help="Only records from this time on (RFC 3339 with a zone), or from this offset on in every partition.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--to", metavar="TIME|OFFSET", help="Only records before this time, or before this offset."),
    ] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="Only events with this id, or caused by the request with this id.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Only records with this key.")] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the records to send, but send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send records of a topic to the same topic again, each with its key and value unchanged.

    The replay stops at the offsets where the topic ended at the start of the command, so it never replays its own
    records. A time is the broker's timestamp of a record. Compacted topics and dead-letter topics are refused: use
    `holdfast republish` and `holdfast dlq redrive`.
    """
    selection = RecordSelection(parse_bound(since, "--from"), parse_bound(until, "--to"), id_, key)
    result = asyncio.run(_replay(connection.settings("HOLDFAST_KAFKA"), topic, selection, dry_run=dry_run))
    if as_json:
        output.echo(json.dumps(result))
        return
    for each in result.get("records", ()):
        position = f"{each['partition']:>2}@{each['offset']:<6}"
        event = f"{each['type']} {each['requestid'] or each['id'] or '-'}"
        output.echo(f"{each['timestamp']} {position} {each['key']} {event}")
    output.echo(
        f"{result['matched']} records of {result['topic']} " + ("would be sent" if dry_run else "were sent") + " again"
    )


async def _replay(settings: Settings, topic: str, selection: RecordSelection, *, dry_run: bool) -> dict[str, Any]:
    (state,) = await topic_reader.read_topic_states(settings, topic)
    _require_replayable(state)
    listed: list[dict[str, Any]] = []
    sent = 0
    async with topic_reader.open_consumer(settings) as reader:
        partitions = [TopicPartition(state.name, number) for number in state.offsets]
        reader.assign(partitions)
        starts, ends = await selection.resolve_offsets(reader, partitions)
        records = (each async for each in _read_with_progress(reader, starts, ends) if selection.matches(each))
        if dry_run:
            listed = [_as_json(record) async for record in records]
        else:
            async with open_writer(settings) as out:
                async for record in records:
                    await out.send(
                        state.name, record.key, record.value, headers=record.headers, partition=record.partition
                    )
            sent = out.acknowledged
    result = {"topic": state.name, "dry_run": dry_run, "matched": len(listed) if dry_run else sent, "sent": sent}
    return {**result, "records": listed} if dry_run else result


def _require_replayable(state: TopicState) -> None:
    """Raise `UsageError` for a topic whose old records must not be sent again."""
    if state.name.endswith(DEAD_LETTER_SUFFIX):
        raise UsageError(f"{state.name} is a dead-letter topic: send its records back with `holdfast dlq redrive`")
    if state.name.endswith(CHANGELOG_SUFFIX):
        raise UsageError(f"{state.name} is the changelog of a table: only the worker that owns it may write to it")
    if "compact" in state.cleanup_policy:
        raise UsageError(
            f"{state.name} is compacted and keeps only the last state of each key: publish that state again with"
            " `holdfast republish` (`python -m inventory_service republish`)"
        )


async def _read_with_progress(
    reader: AIOKafkaConsumer, starts: dict[TopicPartition, int], ends: dict[TopicPartition, int]
) -> AsyncIterator[Record]:
    """Yield the records, with a progress bar on standard error."""
    total = sum(max(0, ends[p] - starts[p]) for p in starts)
    console = output.SafeConsole(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("read", total=total)
        async for record in topic_reader.read_range(reader, starts, ends):
            progress.advance(task)
            yield record


def _as_json(record: Record) -> dict[str, Any]:
    event_id, request_id = event_ids(record.value)
    return {
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": topic_reader.format_timestamp(record.timestamp),
        "key": None if record.key is None else record.key.decode(errors="replace"),
        "type": _parse_event(record.value).get("type"),
        "id": event_id,
        "requestid": request_id,
    }


def register(app: typer.Typer) -> None:
    """Add `replay` to the app."""
    app.command(epilog="Example: holdfast replay cart.requests.v1 --from 2026-11-21T03:00:00Z --dry-run")(replay)
