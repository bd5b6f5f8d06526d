"""`holdfast chaos`: choose scenarios, run them in a temporary shop, and print the results."""

import asyncio
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from infrastructure.local.commands.output import SafeConsole
from load.chaos.checks import rare_outcomes
from load.chaos.faults.nemesis import FAULTS
from load.chaos.runner import ScenarioResult, run_scenario, scenario_products
from load.chaos.scenarios import QUICK, Scenario, full_set, scenario_of
from load.chaos.shop_under_test import ShopUnderTest
from load.http_client import ShopUnavailableError

SHOWN_FINDINGS: Final = 12


def chaos(  # noqa: PLR0913 - a parameter for each option
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="only the most revealing faults, within three minutes")
    ] = False,
    fault: Annotated[
        list[str] | None, typer.Option("--fault", metavar="NAME", help="only this fault; repeatable")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of all random choices; default: a random one")] = None,
    seconds: Annotated[float | None, typer.Option(min=3, help="duration of the load with --fault")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep the shop's directory and logs")] = False,
    list_faults: Annotated[bool, typer.Option("--list", help="list the names and descriptions of all faults")] = False,
) -> None:
    """Inject faults into a shop while shoppers use it, and check that no guarantee was violated.

    A temporary shop is started for this. Every request, answer and fault is recorded; a failure prints the end of that
    history and the command that repeats the scenario.
    """
    if list_faults:
        width = max(map(len, FAULTS))
        typer.echo("\n".join(f"{name:<{width}}  {each.description}" for name, each in FAULTS.items()))
        return
    for name in fault or ():
        if name not in FAULTS:
            raise typer.BadParameter(f"there is no fault {name!r}; choose from {', '.join(FAULTS)}")
    if seconds is not None and not fault:
        raise typer.BadParameter("--seconds requires --fault: the scenarios of a set have fixed durations")
    chosen = seed if seed is not None else secrets.randbelow(10_000)
    scenarios = [scenario_of(fault, seconds)] if fault else list(QUICK) if quick else full_set(chosen)
    folder = Path(tempfile.mkdtemp(prefix="holdfast-chaos-"))
    started = time.monotonic()
    results: list[ScenarioResult] = []
    away = None
    try:
        asyncio.run(_run(scenarios, chosen, folder, results))
    except ShopUnavailableError as error:
        away = f"{error}; repeat: {repeat_command(scenarios[len(results)], chosen)}"
    missing = [] if fault or away else missing_rare_outcomes(results)
    ok = not (missing or away) and all(result.ok for result in results)
    _print_results(results, chosen, time.monotonic() - started, missing, away=away, as_json=as_json)
    if ok and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        typer.echo(f"histories and logs are in {folder}", err=True)
    raise typer.Exit(0 if ok else 1)


async def _run(scenarios: Sequence[Scenario], seed: int, folder: Path, results: list[ScenarioResult]) -> None:
    shop = ShopUnderTest(folder / "root")
    console = SafeConsole(stderr=True, highlight=False)
    try:
        await shop.start(sys.stderr)
        await shop.seed({code: units for each in scenarios for code, units in scenario_products(each).items()})
        for number, scenario in enumerate(scenarios, 1):
            label = f"{number}/{len(scenarios)} {scenario.name}"
            console.print(f"… {label}", style="dim")
            report_progress = partial(_print_progress, console, label)
            result = await run_scenario(shop, scenario, seed=seed, folder=folder, report_progress=report_progress)
            results.append(result)
            console.print(f"  {'ok' if result.ok else 'FAILED'} after {result.seconds:.0f} s", style="dim")
    finally:
        await shop.stop()


def _print_progress(console: Console, label: str, text: str) -> None:
    console.print(f"  {label}: {text}", style="dim")


def repeat_command(scenario: Scenario, seed: int) -> str:
    """Return the command that repeats this scenario alone."""
    if scenario.checkouts:
        return f"holdfast prove orders --orders {scenario.checkouts} --rate {scenario.rate:g} --seed {seed}"
    faults = " ".join(f"--fault {name}" for name in scenario.faults)
    return f"holdfast chaos --seed {seed} --seconds {scenario.seconds:g} {faults}"


def missing_rare_outcomes(results: Sequence[ScenarioResult]) -> list[str]:
    """Return the rare outcomes that did not occur in any scenario: a set without one of them has not tested it."""
    return [name for name in rare_outcomes.RARE_OUTCOMES if not any(result.counts.get(name) for result in results)]


def _print_results(
    results: Sequence[ScenarioResult],
    seed: int,
    seconds: float,
    missing: Sequence[str] = (),
    *,
    away: str | None = None,
    as_json: bool,
) -> None:
    """Print all results, also if the shop under test failed before the end; `away` is then the reason."""
    ok = not (missing or away) and all(result.ok for result in results)
    if as_json:
        scenarios = [{**r.as_json(), "repeat": repeat_command(r.scenario, seed)} for r in results]
        summary = {"ok": ok, "seed": seed, "seconds": round(seconds, 1), "never": missing, "away": away}
        typer.echo(json.dumps({**summary, "scenarios": scenarios}))
    else:
        console = SafeConsole(highlight=False, width=None if sys.stdout.isatty() else 160)
        console.print(_table(results))
    for result in results:
        if not result.ok:
            print_failure(result, seed)
    for name in missing:
        typer.echo(
            f"did not occur in any scenario of seed {seed}: {name} ({rare_outcomes.RARE_OUTCOMES[name]})", err=True
        )
    if away:
        typer.echo(f"holdfast: {away}", err=True)
    if not as_json:
        requests = sum(result.requests for result in results)
        verdict = "No violations" if ok else "Violated"
        typer.echo(f"{verdict}: {len(results)} scenarios, {requests} requests, {seconds:.0f} s, seed {seed}.")


def _table(results: Sequence[ScenarioResult]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scenario")
    for heading in (
        "requests",
        "held",
        "refused",
        "orders",
        "repeated",
        "expired",
        "late outcomes",
        "restarts",
        "silence s",
        "longest wait s",
        "quiescent after s",
    ):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for result in results:
        counts = result.counts
        numbers = (
            counts.get(name, 0)
            for name in ("held", "refused", "orders", "answered again", "expired", "known later", "restarts")
        )
        rest = "never" if result.rest_seconds is None else f"{result.rest_seconds:.1f}"
        table.add_row(
            result.scenario.name,
            str(result.requests),
            *map(str, numbers),
            f"{result.waits.silence:.1f}",
            f"{result.waits.longest:.1f}",
            rest,
            "[green]ok" if result.ok else "[red]" + ", ".join(sorted({f.invariant for f in result.findings})),
        )
    return table


def print_failure(result: ScenarioResult, seed: int) -> None:
    """Print on standard error the findings, the related end of the history, and the command to repeat the scenario."""
    console = SafeConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"\n{result.scenario.name}:", style="bold red")
    for finding in result.findings[:SHOWN_FINDINGS]:
        console.print(f"  {finding.invariant}: {finding.detail}", style="red")
    if len(result.findings) > SHOWN_FINDINGS:
        console.print(f"  … and {len(result.findings) - SHOWN_FINDINGS} more")
    console.print(f"  the end of {result.history}:", style="dim")
    for entry in result.end:
        console.print(f"    {entry.encode()}"[:400], style="dim")
    console.print(f"  repeat: {repeat_command(result.scenario, seed)}")
