"""`holdfast bench`: start a temporary shop, run the named experiments, and write their pages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load.bench import report
from load.bench.experiments import EXPERIMENTS
from load.bench.processes import measured_shop
from load.bench.rounds import BenchContext, run_experiment

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
    report_progress("starting a temporary shop")
    async with measured_shop(MAIN_JOB_AND_ORDERS if "checkout" in order.names else MAIN_JOB) as shop:
        context = BenchContext(shop, order.seconds, order.quick, report_progress)
        for name in order.names:
            async for record in run_experiment(EXPERIMENTS[name], context, order.rounds):
                summaries[name] = report.summary(EXPERIMENTS[name], record)
                if order.output_folder is not None:
                    report.save(order.output_folder, record)
                    report.write(order.output_folder)
            summaries[name]["table"] = report.table(EXPERIMENTS[name], record)
    return summaries
