"""`holdfast story`: everything that happened to one order, request or shopper, from all topics, logs and mails.

Each round reads the topics once, up to where they ended at its start, and keeps the matching records only. The first
round reads everything that is there, or from the moment that is part of the id (UUIDv7). Later rounds follow the ids
that were found, and read from a little before the first match.
"""

import asyncio
import json
import logging
import shlex
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from infrastructure.local.commands import connection, output
from infrastructure.local.commands.output import AsJson
from infrastructure.local.commands.story_search import Search, Step, log_step, mail_step, record_step
from infrastructure.local.commands.topic_reader import list_partitions
from infrastructure.local.errors import StackError
from infrastructure.local.servers import probes
from infrastructure.local.state import Root, find_root, find_running
from infrastructure.messaging import dead_letters
from infrastructure.messaging.broker import BrokerUnavailableError
from infrastructure.messaging.topic_history import read_topic
from infrastructure.process.settings import Settings

ROUNDS: Final = 3
"""Rounds in which the topics are read at most."""
MARGIN: Final = timedelta(minutes=10)
"""Time before the first match at which a later round begins; a record may have a later time than its cause."""
MAX_MILLISECONDS: Final = 253_402_300_799_000
"""The last second of the year 9999."""
UUID7: Final = 7
SKEW: Final = timedelta(hours=1)
"""Error that is allowed to the clock that made an id."""
SKIPPED_TOPICS: Final = ("inventory.stock.v1", "catalogue.products.v1", "insights.")
"""Beginnings of the names of topics that are about no order, request or shopper."""
DEAD_LETTERS: Final = ".dlq"


def story(
    id_: Annotated[
        str, typer.Argument(metavar="ID", help="An order, a request or a shopper; also a trace, payment or shipment.")
    ],
    *,
    user: Annotated[
        str | None, typer.Option(help="Only requests of this shopper, if several used the same id.", metavar="USER")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show everything that happened to one order, request or shopper: one line per record, in order of time.

    Reads all topics, the logs of the shop that runs here, and its local mailbox. Follows the traces, orders and
    requests that are named in what it finds. Exit status 1 if nothing is found.
    """
    if not id_.strip():
        raise typer.BadParameter("the id is empty: give the id of an order, a request or a shopper")
    settings = connection.settings("HOLDFAST_KAFKA")
    search = Search(id_)
    topics = asyncio.run(_search_topics(settings, search))
    root = find_root()
    local = find_running(root) is not None
    if local:
        for step in [*_log_steps(root, search), *_mail_steps(root)]:
            search.add_unfollowed(step)
    steps = search.story(user)
    if not steps:
        raise StackError(_not_found(id_, user, topics, local=local))
    if as_json:
        output.echo(json.dumps({"id": id_, "complete": not search.is_cut, "steps": [step.as_json() for step in steps]}))
        return
    _show(steps, search, user)


@dataclass(slots=True)
class TopicsRead:
    """Names of the topics that were read, and how far back they go."""

    names: list[str]
    oldest: datetime | None = None
    """Time of the oldest record."""


async def _search_topics(settings: Settings, search: Search) -> TopicsRead:
    """Read the topics in rounds, and add their records to the search."""
    topics = TopicsRead(
        [
            name
            for name in await list_partitions(settings)
            if not name.removeprefix(settings.prefix).startswith(SKIPPED_TOPICS) and not name.endswith("-changelog")
        ]
    )
    begin = _time_of(search.wanted)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the `StackError` reports what the library would log
    for _ in range(ROUNDS):
        found_more = await _read_round(settings, search, topics, begin)
        if not search.steps and begin is not None:  # the clock that made the id may have been wrong
            found_more = await _read_round(settings, search, topics, None)
        if not found_more:
            break
        begin = min(step.time for step in search.steps.values()) - MARGIN
    return topics


async def _read_round(settings: Settings, search: Search, topics: TopicsRead, since: datetime | None) -> bool:
    """Read the topics once; return whether a record led to new ids."""
    found_more, needles = False, search.needles()
    try:
        async for record in read_topic(settings, topics.names, since=since):
            at = _time_of_record(record)
            topics.oldest = min(topics.oldest or at, at)
            if (step := _step(record, at, needles)) is not None:
                found_more |= search.add(step)
    except BrokerUnavailableError as error:
        raise StackError(str(error)) from None
    return found_more


def _time_of_record(record: Any) -> datetime:
    """Return a record's time; a foreign client may have written one outside of the calendar."""
    return datetime.fromtimestamp(
        min(max(record.timestamp, MARGIN.total_seconds() * 1000), MAX_MILLISECONDS) / 1000, UTC
    )


def _step(record: Any, at: datetime, needles: list[bytes]) -> Step | None:
    """Return the step of a record that contains one of the needles, else `None`."""
    value, key = record.value or b"", record.key or b""
    value_in_letter = key_in_letter = b""
    if record.topic.endswith(DEAD_LETTERS) and isinstance(
        letter := dead_letters.decode(value), dead_letters.DeadLetter
    ):
        value_in_letter, key_in_letter = letter.original.value or b"", letter.original.key or b""
    haystack = (value, key, value_in_letter, key_in_letter)
    if not any(needle in text for needle in needles for text in haystack):
        return None
    raw = b" ".join(haystack).decode(errors="replace")
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        content = None
    place = f"{record.topic} {record.partition}@{record.offset}"
    inner = value_in_letter.decode(errors="replace")
    return record_step(place, at, key.decode(errors="replace"), content, raw, inner)


def _time_of(id_: str) -> datetime | None:
    """Return a time before which nothing about an id can have happened; `None` unless the id is a UUIDv7."""
    try:
        parsed = uuid.UUID(id_)
        if parsed.version != UUID7:
            return None
        return datetime.fromtimestamp((parsed.int >> 80) / 1000, UTC) - SKEW
    except (ValueError, OverflowError, OSError):
        return None


def _log_steps(root: Root, search: Search) -> Iterator[Step]:
    ids = search.local_ids()
    for log in sorted((root.path / "logs").glob("*.log*")):
        for number, line in enumerate(_lines(log), 1):
            if step := log_step(f"log {log.name}:{number}", line, ids):
                yield step


def _lines(log: Path) -> Iterator[str]:
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            yield from lines
    except OSError:
        return


def _mail_steps(root: Root) -> Iterator[Step]:
    content = output.status(root) or {}
    page = probes.get_page(f"{content['mails']}mails.json") if "mails" in content else None
    try:
        mails: Iterable[Mapping[str, Any]] = json.loads(page or "{}").get("mails", [])
    except ValueError:
        return
    for mail in mails:
        if step := mail_step(mail):
            yield step


def _not_found(id_: str, user: str | None, topics: TopicsRead, *, local: bool) -> str:
    """Return what was looked for, where, and how far back."""
    if not topics.names:
        return f"nothing is known of {id_!r}: the shop has no topics yet"
    reach = f"whose oldest record is of {topics.oldest:%Y-%m-%d %H:%M} UTC" if topics.oldest else "which are empty"
    whose = f" of the shopper {user!r}" if user else ""
    logs = "; the logs and the local mailbox have nothing either" if local else ""
    return (
        f"nothing is known of {id_!r}{whose}: no record has it as an order, request, shopper, trace, payment or"
        f" shipment in {len(topics.names)} topics, {reach}{logs}. Give the whole id, as `holdfast tail` prints it"
    )


def _show(steps: list[Step], search: Search, user: str | None) -> None:
    console = output.SafeConsole(highlight=False, soft_wrap=True)
    width = max(len(step.place) for step in steps)
    day = None
    for step in steps:
        if step.time.date() != day:
            day = step.time.date()
            console.print(f"{day} (UTC)", style="bold")
        line = Text()
        line.append(f"{step.time:%H:%M:%S.%f}"[:-3], "dim")
        line.append(f"  {step.place:<{width}}", "dim")
        line.append(f"  {step.type:<26}", "bold cyan" if step.type != "not an event" else "bold red")
        line.append(f"  {step.who:<14}", "green")
        line.append(f"  {step.request_id} " if step.request_id else "  ", "yellow")
        line.append(step.summary)
        console.print(line)
    if user is None and len(shoppers := search.shoppers()) > 1:
        console.print(
            f"{len(shoppers)} shoppers used the request id {search.wanted!r}: choose one with --user,"
            f" for example --user {shlex.quote(shoppers[0])}",
            style="yellow",
            markup=False,
        )
    if search.is_cut:
        console.print("there is more: the search stopped at its limit of ids or records", style="yellow")


def register(app: typer.Typer) -> None:
    """Add `story` to the app."""
    app.command(epilog="Example: holdfast story 6b0d52c1-2a4f-5e1b-9c1d-0f3a7b5c9e21")(story)
