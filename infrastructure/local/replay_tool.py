"""`holdfast replay`: what lies on a topic goes onto it again, unchanged, to show that this changes nothing."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import orjson
import typer
from aiokafka import AIOKafkaConsumer, TopicPartition
from rich.console import Console
from rich.progress import Progress

from infrastructure.envelope import rfc3339
from infrastructure.local import reach, topic_reader
from infrastructure.local.errors import WrongUse
from infrastructure.local.topic_reader import Record, TopicState
from infrastructure.local.topic_writer import writer
from infrastructure.settings import Settings

DEAD_LETTERS: Final = ".dlq"
CHANGELOG: Final = "-changelog"

Bound = int | datetime
"""An offset, the same in every partition, or a time."""


def bound(text: str | None, option: str) -> Bound | None:
    """The value of `--from` or `--to`. Raises WrongUse."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise WrongUse(
            f"{option} takes a time with its zone, as 2026-11-21T03:24:41Z, or an offset, as 120; not {text!r}"
        )
    return moment


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records to send again: from `since` on, before `until`."""

    since: Bound | None = None
    until: Bound | None = None
    id: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        """Raises WrongUse when nothing can lie between the two."""
        for kind in (int, datetime):
            if isinstance(self.since, kind) and isinstance(self.until, kind) and not self.since < self.until:  # type: ignore[operator] # both are of one kind
                raise WrongUse("--from must be before --to")

    async def bounds(
        self, reader: AIOKafkaConsumer, partitions: list[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """The first offset to read in each partition, and the one to end before: at most that of the next record."""
        starts: dict[TopicPartition, int] = await reader.beginning_offsets(partitions)
        ends: dict[TopicPartition, int] = await reader.end_offsets(partitions)
        if isinstance(self.since, datetime):
            at = _milliseconds(self.since)
            found = await reader.offsets_for_times(dict.fromkeys(partitions, at))
            starts = {p: ends[p] if (place := found.get(p)) is None else place.offset for p in partitions}
        elif self.since is not None:
            starts = {p: max(first, self.since) for p, first in starts.items()}
        if isinstance(self.until, int):
            ends = {p: min(end, self.until) for p, end in ends.items()}
        return starts, ends

    def matches(self, record: Record) -> bool:
        """Whether `record` is one of them; it lies between the offsets already."""
        if isinstance(self.since, datetime) and record.timestamp < _milliseconds(self.since):
            return False
        if isinstance(self.until, datetime) and record.timestamp >= _milliseconds(self.until):
            return False
        if self.key is not None and record.key != self.key.encode():
            return False
        if record.key is None and record.value is None:  # there is nothing to send
            return False
        return self.id is None or self.id in names(record.value)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def names(value: bytes | None) -> tuple[str | None, str | None]:
    """The id and the `requestid` of the event in a record's value; none of what is no event."""
    event = _event(value)
    id_, request_id = event.get("id"), event.get("requestid")
    return id_ if isinstance(id_, str) else None, request_id if isinstance(request_id, str) else None


def _event(value: bytes | None) -> Mapping[str, Any]:
    try:
        event = orjson.loads(value or b"")
    except orjson.JSONDecodeError:  # also what is not UTF-8, or nested too deep
        return {}
    return event if isinstance(event, dict) else {}


def replay(  # noqa: PLR0913 - a parameter for each option
    topic: Annotated[str, typer.Argument(help="A topic's name, with or without the shop's prefix.")],
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TIME|OFFSET",
            help="Only records from this time on (RFC 3339 with its zone), or from this offset on in every partition.",
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Send records of a topic onto it again, each with its own key and value, unchanged.

    It ends where the topic ended when it began, so it never follows itself. A time is that of the record at the broker.
    Compacted topics and dead letters are refused: they have commands of their own.
    """
    selection = Selection(bound(since, "--from"), bound(until, "--to"), id_, key)
    done = asyncio.run(_replay(reach.settings("HOLDFAST_KAFKA"), topic, selection, dry_run=dry_run))
    if as_json:
        typer.echo(json.dumps(done))
        return
    for each in done.get("records", ()):
        place = f"{each['partition']:>2}@{each['offset']:<6}"
        typer.echo(f"{each['timestamp']} {place} {each['key']} {each['type']} {each['requestid'] or each['id'] or '-'}")
    typer.echo(
        f"{done['matched']} records of {done['topic']} " + ("would be sent" if dry_run else "were sent") + " again"
    )


async def _replay(settings: Settings, topic: str, selection: Selection, *, dry_run: bool) -> dict[str, Any]:
    (state,) = await topic_reader.states(settings, topic)
    _refuse(state)
    listed: list[dict[str, Any]] = []
    sent = 0
    async with topic_reader.consumer(settings) as reader:
        partitions = [TopicPartition(state.name, number) for number in state.offsets]
        reader.assign(partitions)
        starts, ends = await selection.bounds(reader, partitions)
        records = (each async for each in _shown(reader, starts, ends) if selection.matches(each))
        if dry_run:
            listed = [_described(record) async for record in records]
        else:
            async with writer(settings) as out:
                async for record in records:
                    await out.send(
                        state.name, record.key, record.value, headers=record.headers, partition=record.partition
                    )
            sent = out.acknowledged
    told = {"topic": state.name, "dry_run": dry_run, "matched": len(listed) if dry_run else sent, "sent": sent}
    return {**told, "records": listed} if dry_run else told


def _refuse(state: TopicState) -> None:
    """Raises WrongUse for a topic whose old records are not to be sent again."""
    if state.name.endswith(DEAD_LETTERS):
        raise WrongUse(f"{state.name} keeps dead letters: `holdfast dlq redrive` puts them back where they came from")
    if state.name.endswith(CHANGELOG):
        raise WrongUse(f"{state.name} is the changelog of a table: its worker reads it when it starts, nobody else may")
    if "compact" in state.cleanup:
        raise WrongUse(
            f"{state.name} is compacted, it keeps the last state of each key: its owner sends that again with"
            " `holdfast republish` (`python -m inventory_service republish`)"
        )


async def _shown(
    reader: AIOKafkaConsumer, starts: dict[TopicPartition, int], ends: dict[TopicPartition, int]
) -> AsyncIterator[Record]:
    """The records, with a bar on standard error while they are read."""
    total = sum(max(0, ends[p] - starts[p]) for p in starts)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("read", total=total)
        async for record in topic_reader.kept(reader, starts, ends):
            progress.advance(task)
            yield record


def _described(record: Record) -> dict[str, Any]:
    event_id, request_id = names(record.value)
    return {
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": rfc3339(datetime.fromtimestamp(record.timestamp / 1000, UTC)),
        "key": None if record.key is None else record.key.decode(errors="replace"),
        "type": _event(record.value).get("type"),
        "id": event_id,
        "requestid": request_id,
    }


def register(app: typer.Typer) -> None:
    """Add `replay`."""
    app.command(epilog="Example: holdfast replay cart.requests.v1 --from 2026-11-21T03:00:00Z --dry-run")(replay)
