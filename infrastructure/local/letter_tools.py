"""`holdfast dlq`: look at what was put aside, put it back, or let it go."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infrastructure.dead_letters import How, Letter
from infrastructure.envelope import rfc3339
from infrastructure.local import reach
from infrastructure.local.errors import Fault, WrongUse
from infrastructure.local.letters import Choice, Entry, Letters, contents, overview, settle
from infrastructure.settings import Settings

OfTopic = Annotated[
    str | None, typer.Option("--topic", help="Only letters from this topic; its own name or that of its letters.")
]
WithReason = Annotated[str | None, typer.Option("--reason", help="Only letters put aside for this reason.")]
WithId = Annotated[
    str | None,
    typer.Option("--id", help="Only the letter with this id (topic/partition/offset), event id or request id."),
]
WithKey = Annotated[str | None, typer.Option("--key", help="Only letters whose original has this key.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")]


def list_(
    topic: OfTopic = None,
    reason: WithReason = None,
    key: WithKey = None,
    *,
    with_settled: Annotated[bool, typer.Option("--settled", help="Count also those that are settled.")] = False,
    as_json: AsJson = False,
) -> None:
    """How many letters wait, by topic and reason, and since when."""
    settings = reach.settings("HOLDFAST_KAFKA")
    letters = asyncio.run(overview(settings))
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in _chosen(letters, Choice(topic, reason, key=key), settings):
        if with_settled or not entry.settled:
            groups.setdefault((entry.topic, entry.reason), []).append(entry)
    rows = [
        {
            "topic": of,
            "reason": why,
            "count": len(those),
            "oldest": rfc3339(those[0].since),
            "newest": rfc3339(those[-1].since),
        }
        for (of, why), those in sorted(groups.items())
    ]
    _warn(letters)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo("No dead letters wait.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("topic", "reason", "count", "oldest", "newest"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "count" else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row.values()))
    _console().print(table)


def show(
    topic: OfTopic = None,
    reason: WithReason = None,
    id_: WithId = None,
    key: WithKey = None,
    *,
    with_settled: Annotated[bool, typer.Option("--settled", help="Also those that are settled.")] = False,
    as_json: AsJson = False,
) -> None:
    """The letters themselves: where each stood, why it was put aside, and what it says.

    With --json one object a line.
    """
    settings = reach.settings("HOLDFAST_KAFKA")
    choice = Choice(topic, reason, id_, key)
    entries = _known(asyncio.run(overview(settings)), choice, settings)
    asyncio.run(_show(settings, [e for e in entries if with_settled or id_ or not e.settled], as_json=as_json))


async def _show(settings: Settings, entries: Sequence[Entry], *, as_json: bool) -> None:
    if not entries and not as_json:
        typer.echo("No dead letters wait.")
        return
    async for entry, letter in contents(settings, entries):
        told = _told(entry, letter)
        if as_json:
            typer.echo(json.dumps(told, ensure_ascii=False))
            continue
        value = told.pop("value", None)
        for name, each in told.items():
            if each is not None:
                typer.echo(f"{name:<12} {each}")
        typer.echo(json.dumps(value, ensure_ascii=False, indent=2) if isinstance(value, dict | list) else value)
        typer.echo("")


def _told(entry: Entry, letter: Letter) -> dict[str, Any]:
    """A letter with its original decoded as far as it can be: JSON, else text, else base 64 under its own name."""
    event, original = letter.event, letter.original
    place = {"topic": original.topic, "partition": original.partition, "offset": original.offset}
    why = {name: event.data.get(name) for name in ("reason", "detail", "service", "attempts")}
    told = {"id": entry.id, **place, "time": rfc3339(event.time), **why, "settled": entry.settled}
    told["key"] = None if original.key is None else original.key.decode(errors="backslashreplace")
    if original.value is None:
        return {**told, "value": None}
    try:
        text = original.value.decode()
    except UnicodeDecodeError:
        return {**told, "value_base64": base64.b64encode(original.value).decode()}
    try:
        return {**told, "value": json.loads(text)}
    except (ValueError, RecursionError):
        return {**told, "value": text}


def redrive(
    topic: OfTopic = None,
    reason: WithReason = None,
    id_: WithId = None,
    key: WithKey = None,
    *,
    again: Annotated[bool, typer.Option("--again", help="Also those that are settled.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put letters back onto the topics they came from, with their own keys and values, once.

    What was wrong should be put right before. A request that was answered `refused: failed` repeats that answer: the
    shopper was told. What still can't be read becomes a new letter.
    """
    _settle(Choice(topic, reason, id_, key), "redriven", again=again, as_json=as_json)


def drop(
    topic: OfTopic = None,
    reason: WithReason = None,
    id_: WithId = None,
    key: WithKey = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All letters of the shop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Settle letters without sending them; they stay on their topic until it forgets them."""
    choice = Choice(topic, reason, id_, key)
    if choice.all == (not everything):
        raise WrongUse("drop which letters? Say --topic, --reason, --id or --key, or --all")
    _settle(choice, "dropped", again=False, as_json=as_json)


def _settle(choice: Choice, how: How, *, again: bool, as_json: bool) -> None:
    settings = reach.settings("HOLDFAST_KAFKA")
    letters = asyncio.run(overview(settings))
    known = _known(letters, choice, settings)
    entries = [entry for entry in known if again or not entry.settled]
    done = asyncio.run(settle(settings, entries, how))
    _warn(letters)
    if as_json:
        topics = Counter(entry.topic for entry in entries)
        typer.echo(json.dumps({how: done, "settled_before": len(known) - len(entries), "topics": topics}))
        return
    before = len(known) - len(entries)
    hint = f"; {before} had been settled before" + (" (--again sends them too)" if how == "redriven" else "")
    typer.echo(f"{done} {'letter was' if done == 1 else 'letters were'} {how}" + (hint if before else ""))


def _chosen(letters: Letters, choice: Choice, settings: Settings) -> list[Entry]:
    return [entry for entry in letters.entries if choice.matches(entry, settings.prefix)]


def _known(letters: Letters, choice: Choice, settings: Settings) -> list[Entry]:
    """Those that are meant, settled or not. Raises Fault when something was meant and there is no such letter."""
    found = _chosen(letters, choice, settings)
    if not found and not choice.all:
        raise Fault("no dead letter is like that; `holdfast dlq list --settled` counts all there are")
    return found


def _warn(letters: Letters) -> None:
    if letters.strange:
        typer.echo(f"{letters.strange} records on the dead-letter topics are no letters; left alone", err=True)


def _console() -> Console:
    """A pipe has no width: nothing is cut or wrapped there."""
    return console if (console := Console()).is_terminal else Console(width=200)


def register(app: typer.Typer) -> None:
    """Add `dlq`."""
    dlq = typer.Typer(
        no_args_is_help=True,
        help="Dead letters: records that could not be acted on.",
        epilog="Example: holdfast dlq list",
    )
    dlq.command("list", epilog="Example: holdfast dlq list --topic cart.requests.v1")(list_)
    dlq.command(epilog="Example: holdfast dlq show --topic inventory.requests.v1 --reason failed")(show)
    dlq.command(epilog="Example: holdfast dlq redrive --topic inventory.requests.v1 --reason failed")(redrive)
    dlq.command(epilog="Example: holdfast dlq drop --reason not_json")(drop)
    app.add_typer(dlq, name="dlq")
