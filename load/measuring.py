"""`load`, `shoppers` and `bench` as commands of `python -m load`."""

import json
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn

import psycopg
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from infrastructure.settings import Settings
from load import books, commands
from load.bench.experiments import EXPERIMENTS
from load.bench.hop import HopError
from load.bench.run import Order
from load.bench.run import bench as run_bench
from load.figures import Measured, lines_of
from load.orders import Day, OrdersError, read_day
from load.peers.bare_hold import NoPgbenchError
from load.replay import Replay, replay
from load.schedule import Arrivals
from load.shop import Shop, ShopAwayError, TurnedAwayError
from load.visit import Telling, TooFewShoppersError, Wish, visit

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_DAY: Final = Path(__file__).with_name("online-retail-2010-12-01.csv")
AWAY: Final = (ShopAwayError, TurnedAwayError, psycopg.OperationalError, OSError)
SPARE_DESCRIPTORS: Final = 256
MOST_SOCKETS: Final = 12_000


def load(
    *,
    rate: Annotated[float, typer.Option(min=0.1, max=100_000, help="changes a second, all shoppers together")] = 50,
    seconds: Annotated[float, typer.Option(min=0.5, max=86_400, help="how long they are sent")] = 10,
    shoppers: Annotated[
        int | None, typer.Option(min=1, max=50_000, help="sockets; as many as the limits ask for if not given")
    ] = None,
    products: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000, help="bring this many along, LOAD-000001 and so on, with a million units each"
        ),
    ] = None,
    poisson: Annotated[bool, typer.Option("--poisson", help="at random instants, not at equal distances")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Send changes at a steady rate from many shoppers' sockets, and measure the answers from the intended instant.

    Each shopper fills a cart to three lines and then takes one out and puts one in, so stock lasts; without --products
    the shop's own catalogue is used. At the end the carts are emptied. Exit status 1 also when an answer was lost.
    """
    arrivals: Arrivals = "poisson" if poisson else "constant"
    wish = Wish(rate, seconds, shoppers, products, arrivals)
    try:
        with _progress() as telling:
            measured = uvloop.run(_visit(wish, telling))
    except TooFewShoppersError as error:
        die(error, 2)
    except AWAY as error:
        die(error)
    told = measured.as_json()
    typer.echo(json.dumps(told) if as_json else "\n".join(lines_of(told)))
    raise typer.Exit(0 if told["ok"] else 1)


async def _visit(wish: Wish, telling: Telling) -> Measured:
    room_for_sockets(wish.shoppers or 50_000)
    async with shop() as open_shop:
        return await visit(open_shop, wish, seed=commands.seed_all, telling=telling)


def shoppers(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, metavar="[FILE]", help="orders, as CSV; else the shipped day")
    ] = DEFAULT_DAY,
    *,
    pace: Annotated[float, typer.Option(min=0.1, max=1_000_000, help="how many times faster than the file")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Replay a file of real orders: each invoice is a shopper who asks for its lines at its minute.

    Fees, returns, cancellations and nameless lines are skipped, as docs/catalogue.md says. Exit status 1 unless every
    unit of every product was granted or refused, the stock ledger says the same, and the audit finds nothing.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            day = read_day(lines)
    except (OrdersError, UnicodeDecodeError) as error:
        die(f"{file}: {error}", 2)
    try:
        with _progress() as telling:
            done = uvloop.run(_replay(day, pace, telling))
    except* AWAY as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        die(first)
    if as_json:
        typer.echo(json.dumps(done.as_json()))
    else:
        _show(Console(), done)
    raise typer.Exit(0 if done.ok else 1)


async def _replay(day: Day, pace: float, telling: Telling) -> Replay:
    room_for_sockets(len(day.visits))
    settings = Settings()
    wants = sum(len(each.wants) for each in day.visits)
    telling.stage(f"{len(day.visits)} shoppers, {day.seconds / pace:.0f} s", wants)
    async with shop() as open_shop:
        return await replay(
            open_shop,
            day,
            pace=pace,
            granted=lambda users: books.granted(settings, users),
            audit=commands.audit,
            said=telling.step,
        )


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help=f"some of {', '.join(EXPERIMENTS)}; else all")
    ] = None,
    *,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="interleaved rounds; a ratio takes three")] = 3,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="of each measurement")] = 10,
    quick: Annotated[
        bool, typer.Option("--quick", help="see that it works: one round, small sizes, nothing written without --out")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="where tables, charts and raw records go")] = None,
) -> None:
    """Measure a shop of its own beside bare opponents, in interleaved rounds, and write docs/performance/.

    A ratio that could not be trusted (the base drifted, the driver was late) is not printed; the reason is.
    """
    unknown = [name for name in names or () if name not in EXPERIMENTS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(EXPERIMENTS)}")
    if quick:
        rounds, seconds = 1, min(seconds, 1.0)
    folder = out if out is not None or quick else Path("docs/performance")
    order = Order(names or [*EXPERIMENTS], rounds, seconds, quick, folder)
    room_for_sockets(MOST_SOCKETS)
    logging.getLogger("aiokafka").setLevel(
        logging.CRITICAL
    )  # new topics have no leader yet: it says so, and asks again
    try:
        told = uvloop.run(run_bench(order, lambda what: typer.echo(f"… {what}", err=True)))
    except (*AWAY, HopError, NoPgbenchError) as error:
        die(error)
    if as_json:
        typer.echo(json.dumps({"ok": True, "experiments": {n: {**t, "table": None} for n, t in told.items()}}))
        return
    for each in told.values():
        typer.echo("\n".join([f"## {each['title']}", "", *each["table"], ""]))
    if folder is not None:
        typer.echo(f"{folder / 'README.md'}")


def _show(console: Console, done: Replay) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("product")
    for heading in ("asked", "accepted", "refused", "unanswered", "in the ledger"):
        table.add_column(heading, justify="right")
    table.add_column("")
    totals = [0] * 5
    for product, demand in sorted(done.products.items()):
        row = (demand.asked, demand.accepted, demand.refused.total(), demand.unanswered, demand.in_ledger)
        totals = [total + each for total, each in zip(totals, row, strict=True)]
        table.add_row(product, *map(str, row), "" if demand.adds_up else "[red]does not add up")
    table.add_row(f"{len(done.products)} products", *map(str, totals), style="bold")
    console.print(table)
    for violation in done.violations:
        console.print(f"audit: {violation}", style="red", markup=False)
    verdict = "asked = accepted + refused for each" if done.ok else "the books do not balance"
    console.print(f"{done.shoppers} shoppers, {done.skipped} lines skipped, {done.seconds:.1f} s: {verdict}")


def shop() -> Shop:
    """The shop that the environment names."""
    return Shop(os.environ.get("HOLDFAST_HTTP_URL", DEFAULT_URL))


def die(error: object, status: int = 1) -> NoReturn:
    """One sentence on standard error, and an exit status."""
    typer.echo(f"holdfast: {' '.join(str(error).split()) or type(error).__name__}", err=True)
    raise typer.Exit(status)


def room_for_sockets(number: int) -> None:
    """One file descriptor a socket, as far as the system allows; many grant 1,024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


@contextmanager
def _progress() -> Iterator[Telling]:
    """A bar on standard error, one at a time; none when that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Telling()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bars:
        current: list[TaskID] = []

        def stage(name: str, total: int) -> None:
            if current:
                bars.remove_task(current.pop())
            current.append(bars.add_task(name, total=total))

        def step() -> None:
            bars.advance(current[-1])

        yield Telling(stage, step)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Example: holdfast load --rate 50 --seconds 10. Exit status: 0 done, 1 something was lost, 2 wrong use."
    )(load)
    app.command(epilog="Example: holdfast shoppers --pace 600. Exit status: 0 adds up, 1 does not, 2 wrong use.")(
        shoppers
    )
    app.command(epilog="Example: holdfast bench latency --seconds 10. Exit status: 0 measured, 1 failed, 2 wrong use.")(
        bench
    )
