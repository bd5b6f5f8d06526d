"""Define the commands `load`, `shoppers` and `bench` of `python -m load`."""

import io
import json
import logging
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

from infrastructure.local.commands.output import SafeConsole
from infrastructure.local.state import find_http_url
from infrastructure.process.settings import Settings
from infrastructure.storage.csv_file import CsvFileError, read_text
from infrastructure.storage.retail_file import FALLBACK_ENCODING
from load import holdfast_commands, ledger
from load.baselines.bare_hold import PgbenchError
from load.bench.experiments import EXPERIMENTS
from load.bench.inventory_drain import InventoryDrainError
from load.bench.run import BenchPlan
from load.bench.run import bench as run_bench
from load.http_client import ConnectionRejectedError, ShopClient, ShopUnavailableError
from load.load_run import LoadProfile, ProgressReporter, TooFewShoppersError, run_load
from load.measurements import Measurement, format_measurement
from load.order_file import OrderFile, read_order_file
from load.order_replay import ReplayResult, replay_orders
from load.schedule import Arrivals

DEFAULT_ORDER_FILE: Final = Path(__file__).with_name("online-retail-2010-12-01.csv")
UNAVAILABLE_ERRORS: Final = (ShopUnavailableError, ConnectionRejectedError, psycopg.OperationalError, OSError)
SPARE_DESCRIPTORS: Final = 256
MAX_SOCKETS: Final = 12_000


def load(
    *,
    rate: Annotated[float, typer.Option(min=0.1, max=100_000, help="changes per second, over all shoppers")] = 50,
    seconds: Annotated[float, typer.Option(min=0.5, max=86_400, help="how long to send")] = 10,
    shoppers: Annotated[
        int | None,
        typer.Option(min=1, max=50_000, help="number of sockets; default: as many as the rate limits require"),
    ] = None,
    products: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="add this many products for the run, LOAD-000001 and so on, with a million units each",
        ),
    ] = None,
    poisson: Annotated[bool, typer.Option("--poisson", help="random send times instead of equal intervals")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Send changes at a steady rate over many WebSockets, and measure answers from the intended send time.

    Each shopper fills a cart to three lines, then alternately removes one and adds one, so that stock lasts. Without
    --products the shop's own catalogue is used. The carts are emptied at the end. Exit status 1 also if an answer was
    lost.
    """
    arrivals: Arrivals = "poisson" if poisson else "constant"
    profile = LoadProfile(rate, seconds, shoppers, products, arrivals)
    try:
        with _progress() as progress:
            measured = uvloop.run(_connect_and_run(profile, progress))
    except TooFewShoppersError as error:
        exit_with_error(error, 2)
    except UNAVAILABLE_ERRORS as error:
        exit_with_error(error)
    result = measured.as_json()
    typer.echo(json.dumps(result) if as_json else "\n".join(format_measurement(result)))
    raise typer.Exit(0 if result["ok"] else 1)


async def _connect_and_run(profile: LoadProfile, progress: ProgressReporter) -> Measurement:
    raise_descriptor_limit(profile.shoppers or 50_000)
    async with open_shop_client() as open_shop:
        return await run_load(
            open_shop,
            profile,
            seed=holdfast_commands.seed_products,
            withdraw=holdfast_commands.withdraw_products,
            progress=progress,
        )


def shoppers(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, metavar="[FILE]", help="orders as CSV; default: the file in this repository"
        ),
    ] = DEFAULT_ORDER_FILE,
    *,
    pace: Annotated[
        float, typer.Option(min=0.1, max=1_000_000, help="speed, as a multiple of the file's own pace")
    ] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Replay a file of real orders: each invoice is a shopper who adds its lines in its minute.

    Fees, returns, cancellations and lines without a name are skipped (see docs/catalogue.md). Exit status 1 unless
    every unit of every product was granted or refused, the stock ledger agrees, and the audit finds no violation.
    """
    try:
        day = read_order_file(io.StringIO(read_text(file, fallback=FALLBACK_ENCODING), newline=""))
    except CsvFileError as error:
        exit_with_error(f"{file}: {error}", 2)
    try:
        with _progress() as progress:
            outcome = uvloop.run(_replay(day, pace, progress))
    except* UNAVAILABLE_ERRORS as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        exit_with_error(first)
    if as_json:
        typer.echo(json.dumps(outcome.as_json()))
    else:
        _show(SafeConsole(), outcome)
    raise typer.Exit(0 if outcome.ok else 1)


async def _replay(day: OrderFile, pace: float, progress: ProgressReporter) -> ReplayResult:
    raise_descriptor_limit(len(day.shoppers))
    settings = Settings()
    wants = sum(len(each.adds) for each in day.shoppers)
    progress.begin(f"{len(day.shoppers)} shoppers, {day.seconds / pace:.0f} s", wants)
    async with open_shop_client() as open_shop:
        return await replay_orders(
            open_shop,
            day,
            pace=pace,
            granted_units=lambda users: ledger.granted_units(settings, users),
            audit=holdfast_commands.run_audit,
            on_answer=progress.advance,
        )


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]…", help=f"experiments, of {', '.join(EXPERIMENTS)}; default: all"),
    ] = None,
    *,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="interleaved rounds; a ratio needs three")] = 3,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="duration of each measurement")] = 10,
    quick: Annotated[
        bool, typer.Option("--quick", help="smoke test: one round, small sizes, writes nothing without --out")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="directory for tables, charts and raw records")
    ] = None,
) -> None:
    """Measure a temporary shop against bare baselines, in interleaved rounds, and write docs/performance/.

    A ratio that is not trustworthy (the base drifted, the driver was late) is replaced by the reason.
    """
    unknown = [name for name in names or () if name not in EXPERIMENTS]
    if unknown:
        raise typer.BadParameter(f"there is no experiment {unknown[0]!r}; choose from {', '.join(EXPERIMENTS)}")
    if quick:
        rounds, seconds = 1, min(seconds, 1.0)
    folder = out if out is not None or quick else Path("docs/performance")
    order = BenchPlan(names or [*EXPERIMENTS], rounds, seconds, quick, folder)
    raise_descriptor_limit(MAX_SOCKETS)
    # New topics have no leader yet: aiokafka logs that and retries.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        summaries = uvloop.run(run_bench(order, lambda text: typer.echo(f"… {text}", err=True)))
    except (*UNAVAILABLE_ERRORS, InventoryDrainError, PgbenchError) as error:
        exit_with_error(error)
    if as_json:
        typer.echo(
            json.dumps({"ok": True, "experiments": {name: {**each, "table": None} for name, each in summaries.items()}})
        )
        return
    for each in summaries.values():
        typer.echo("\n".join([f"## {each['title']}", "", *each["table"], ""]))
    if folder is not None:
        typer.echo(f"{folder / 'README.md'}")


def _show(console: Console, outcome: ReplayResult) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("product")
    for heading in ("asked", "accepted", "refused", "unanswered", "in the ledger"):
        table.add_column(heading, justify="right")
    table.add_column("")
    totals = [0] * 5
    for product, demand in sorted(outcome.products.items()):
        row = (demand.requested, demand.accepted, demand.refused.total(), demand.unanswered, demand.in_ledger)
        totals = [total + each for total, each in zip(totals, row, strict=True)]
        table.add_row(product, *map(str, row), "" if demand.is_balanced else "[red]not balanced")
    table.add_row(f"{len(outcome.products)} products", *map(str, totals), style="bold")
    console.print(table)
    for violation in outcome.violations:
        console.print(f"audit: {violation}", style="red", markup=False)
    verdict = "asked = accepted + refused for each product" if outcome.ok else "the totals do not balance"
    console.print(
        f"{outcome.shoppers} shoppers, {outcome.skipped_lines} lines skipped, {outcome.seconds:.1f} s: {verdict}"
    )


def open_shop_client() -> ShopClient:
    """Return a client for the shop at `HOLDFAST_HTTP_URL`, else for the one that runs here."""
    return ShopClient(find_http_url())


def exit_with_error(error: object, status: int = 1) -> NoReturn:
    """Print one sentence on standard error and exit with `status`."""
    typer.echo(f"holdfast: {' '.join(str(error).split()) or type(error).__name__}", err=True)
    raise typer.Exit(status)


def raise_descriptor_limit(number: int) -> None:
    """Raise the limit of open files to one per socket, as far as permitted; many systems default to 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


@contextmanager
def _progress() -> Iterator[ProgressReporter]:
    """Yield a progress bar on standard error, or nothing visible if that is not a terminal."""
    console = SafeConsole(stderr=True)
    if not console.is_terminal:
        yield ProgressReporter()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bars:
        current: list[TaskID] = []

        def begin(name: str, total: int) -> None:
            if current:
                bars.remove_task(current.pop())
            current.append(bars.add_task(name, total=total))

        def advance() -> None:
            bars.advance(current[-1])

        yield ProgressReporter(begin, advance)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(
        epilog="Example: holdfast load --rate 50 --seconds 10. Exit status: 0 done, 1 answers were lost, 2 usage error."
    )(load)
    app.command(
        epilog="Example: holdfast shoppers --pace 600. Exit status: 0 balanced, 1 not balanced, 2 usage error."
    )(shoppers)
    app.command(
        epilog="Example: holdfast bench latency --seconds 10. Exit status: 0 measured, 1 failed, 2 usage error."
    )(bench)
