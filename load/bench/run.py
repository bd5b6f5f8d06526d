"""`holdfast bench`: start a temporary shop, run the named experiments, and write their pages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from load.bench import report
from load.bench.experiments import EXPERIMENTS
from load.bench.processes import MeasuredShop, measured_shop, temporary_root
from load.bench.rounds import BenchContext, Experiment, run_experiment
from load.driver_client import driver_process

MAIN_JOB: Final = "edge,cart,inventory"
"""Services that an add-to-cart needs. The others consume the same topics and would use part of the two cores."""
MAIN_JOB_AND_ORDERS: Final = f"{MAIN_JOB},orders,payment,delivery,provider"


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """Experiments to run and how thoroughly; `output_folder` `None` saves nothing."""

    names: Sequence[str]
    rounds: int
    seconds: float
    quick: bool
    output_folder: Path | None


async def bench(order: BenchPlan, report_progress: Callable[[str], None]) -> dict[str, Any]:
    """Run the experiments and return their summaries; records are saved after each round."""
    summaries: dict[str, Any] = {}
    own_shop = [name for name in order.names if EXPERIMENTS[name].own_shop]
    shared_shop = [name for name in order.names if name not in own_shop]
    async with driver_process() as driver:
        context = partial(
            BenchContext, driver=driver, seconds=order.seconds, quick=order.quick, report_progress=report_progress
        )
        if shared_shop:
            report_progress("starting a temporary shop")
            async with measured_shop(MAIN_JOB_AND_ORDERS if "checkout" in order.names else MAIN_JOB) as shop:
                for name in shared_shop:
                    summaries[name] = await _run(EXPERIMENTS[name], context(shop), order)
        for name in own_shop:
            async with temporary_root() as root:
                summaries[name] = await _run(EXPERIMENTS[name], context(MeasuredShop(root, {}, {})), order)
    return {name: summaries[name] for name in order.names}


async def _run(experiment: Experiment, context: BenchContext, order: BenchPlan) -> dict[str, Any]:
    """Run one experiment, save its record after each round, and return its summary with its table."""
    summary: dict[str, Any] = {}
    async for record in run_experiment(experiment, context, order.rounds):
        summary = {**report.summary(experiment, record), "table": report.tables(experiment, record)}
        if order.output_folder is not None:
            report.save(order.output_folder, record)
            report.write(order.output_folder)
    return summary
