"""`holdfast dlq`: list, show, redrive or drop dead letters."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from contracts.envelope import rfc3339
from infrastructure.local.commands import connection, output
from infrastructure.local.commands.dead_letters import (
    DeadLetterEntry,
    DeadLetterFilter,
    DeadLetterList,
    load_dead_letters,
    read_contents,
    settle,
)
from infrastructure.local.commands.output import wide_console
from infrastructure.local.commands.topic_reader import decode_value
from infrastructure.local.errors import StackError, UsageError
from infrastructure.messaging.dead_letters import DeadLetter, Settlement
from infrastructure.process.settings import Settings

OfTopic = Annotated[
    str | None,
    typer.Option(
        "--topic", help="Only dead letters of this topic; accepts the topic's name or its dead-letter topic's."
    ),
]
WithReason = Annotated[str | None, typer.Option("--reason", help="Only dead letters with this reason.")]
WithId = Annotated[
    str | None,
    typer.Option("--id", help="Only the dead letter with this id (topic/partition/offset), event id or request id."),
]
WithKey = Annotated[str | None, typer.Option("--key", help="Only dead letters whose original record has this key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
WithSettled = Annotated[bool, typer.Option("--settled", help="Include dead letters that are settled.")]
NONE_UNSETTLED: Final = "No unsettled dead letters."


def list_(
    topic: OfTopic = None,
    reason: WithReason = None,
    key: WithKey = None,
    *,
    with_settled: WithSettled = False,
    as_json: AsJson = False,
) -> None:
    """Count the dead letters by topic and reason, with the times of the oldest and the newest."""
    settings = connection.settings("HOLDFAST_KAFKA")
    dead_letters = asyncio.run(load_dead_letters(settings))
    groups: dict[tuple[str, str], list[DeadLetterEntry]] = {}
    for entry in _matching(dead_letters, DeadLetterFilter(topic, reason, key=key), settings):
        if with_settled or not entry.settled:
            groups.setdefault((entry.topic, entry.reason), []).append(entry)
    rows = [
        {
            "topic": group_topic,
            "reason": group_reason,
            "count": len(entries),
            "oldest": rfc3339(entries[0].time),
            "newest": rfc3339(entries[-1].time),
        }
        for (group_topic, group_reason), entries in sorted(groups.items())
    ]
    _warn_of_unreadable(dead_letters)
    if as_json:
        output.echo(json.dumps(rows))
        return
    if not rows:
        output.echo(NONE_UNSETTLED)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("topic", "reason", "count", "oldest", "newest"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "count" else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row.values()))
    wide_console().print(table)


def show(
    topic: OfTopic = None,
    reason: WithReason = None,
    id_: WithId = None,
    key: WithKey = None,
    *,
    with_settled: WithSettled = False,
    as_json: AsJson = False,
) -> None:
    """Print dead letters in full: the original's position, the reason, and the original value.

    With --json, print one object per line.
    """
    settings = connection.settings("HOLDFAST_KAFKA")
    choice = DeadLetterFilter(topic, reason, id_, key)
    entries = _require_matching(asyncio.run(load_dead_letters(settings)), choice, settings)
    asyncio.run(_show(settings, [e for e in entries if with_settled or id_ or not e.settled], as_json=as_json))


async def _show(settings: Settings, entries: Sequence[DeadLetterEntry], *, as_json: bool) -> None:
    if not entries and not as_json:
        output.echo(NONE_UNSETTLED)
        return
    async for entry, dead_letter in read_contents(settings, entries):
        fields = _as_json(entry, dead_letter)
        if as_json:
            output.echo(json.dumps(fields, ensure_ascii=False))
            continue
        value = fields.pop("value", None)
        for name, each in fields.items():
            if each is not None:
                output.echo(f"{name:<12} {each}")
        output.echo(json.dumps(value, ensure_ascii=False, indent=2) if isinstance(value, dict | list) else value)
        output.echo("")


def _as_json(entry: DeadLetterEntry, dead_letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter's fields, with the original value decoded as `decode_value` does."""
    event, original = dead_letter.event, dead_letter.original
    position = {"topic": original.topic, "partition": original.partition, "offset": original.offset}
    cause = {name: event.data.get(name) for name in ("reason", "detail", "service", "attempts")}
    return {
        "id": entry.id,
        **position,
        "time": rfc3339(event.time),
        **cause,
        "settled": entry.settled,
        **({"incomplete": dead_letter.incomplete} if dead_letter.incomplete else {}),
        "key": None if original.key is None else original.key.decode(errors="backslashreplace"),
        **decode_value(original.value),
    }


def redrive(
    topic: OfTopic = None,
    reason: WithReason = None,
    id_: WithId = None,
    key: WithKey = None,
    *,
    again: Annotated[bool, typer.Option("--again", help="Include dead letters that are settled.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to their topics with their original keys and values, each once.

    Fix the cause first. A request that was answered `refused: failed` repeats that answer, because the shopper has
    already received it. A record that still cannot be read becomes a new dead letter. One that could not be decoded or
    was too big to be kept is not sent: use `dlq drop`.
    """
    _settle(DeadLetterFilter(topic, reason, id_, key), "redriven", again=again, as_json=as_json)


def drop(
    topic: OfTopic = None,
    reason: WithReason = None,
    id_: WithId = None,
    key: WithKey = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters of the shop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Settle dead letters without sending them; they stay on their topic until its retention removes them."""
    choice = DeadLetterFilter(topic, reason, id_, key)
    if choice.matches_all == (not everything):
        raise UsageError("drop takes either a filter (--topic, --reason, --id or --key) or --all")
    _settle(choice, "dropped", again=False, as_json=as_json)


def _settle(choice: DeadLetterFilter, how: Settlement, *, again: bool, as_json: bool) -> None:
    settings = connection.settings("HOLDFAST_KAFKA")
    dead_letters = asyncio.run(load_dead_letters(settings))
    matching = _require_matching(dead_letters, choice, settings)
    entries = [entry for entry in matching if again or not entry.settled]
    before = len(matching) - len(entries)
    if how == "redriven":
        for entry in entries:
            if entry.incomplete:
                output.echo(f"{entry.id} is not sent again: {entry.incomplete}; settle it with `dlq drop`", err=True)
        entries = [entry for entry in entries if not entry.incomplete]
    done = asyncio.run(settle(settings, entries, how))
    _warn_of_unreadable(dead_letters)
    if as_json:
        topics = Counter(entry.topic for entry in entries)
        output.echo(json.dumps({how: done, "settled_before": before, "topics": topics}))
        return
    hint = f"; {before} settled before" + (" (--again includes them)" if how == "redriven" else "")
    output.echo(f"{done} dead {'letter' if done == 1 else 'letters'} {how}" + (hint if before else ""))


def _matching(dead_letters: DeadLetterList, choice: DeadLetterFilter, settings: Settings) -> list[DeadLetterEntry]:
    return [entry for entry in dead_letters.entries if choice.matches(entry, settings.prefix)]


def _require_matching(
    dead_letters: DeadLetterList, choice: DeadLetterFilter, settings: Settings
) -> list[DeadLetterEntry]:
    """Return the dead letters that match, settled or not. Raises `StackError` if a filter is given and none matches."""
    found = _matching(dead_letters, choice, settings)
    if not found and not choice.matches_all:
        raise StackError("no dead letter matches; `holdfast dlq list --settled` counts all dead letters")
    return found


def _warn_of_unreadable(dead_letters: DeadLetterList) -> None:
    if dead_letters.unreadable:
        output.echo(
            f"{dead_letters.unreadable} records on the dead-letter topics are not dead letters; ignored", err=True
        )


def register(app: typer.Typer) -> None:
    """Add `dlq` to the app."""
    dlq = typer.Typer(
        no_args_is_help=True,
        help="Inspect and settle dead letters: records that could not be processed.",
        epilog="Example: holdfast dlq list",
    )
    dlq.command("list", epilog="Example: holdfast dlq list --topic cart.requests.v1")(list_)
    dlq.command(epilog="Example: holdfast dlq show --topic inventory.requests.v1 --reason failed")(show)
    dlq.command(epilog="Example: holdfast dlq redrive --topic inventory.requests.v1 --reason failed")(redrive)
    dlq.command(epilog="Example: holdfast dlq drop --reason not_json")(drop)
    app.add_typer(dlq, name="dlq")
