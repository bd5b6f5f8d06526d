"""`holdfast bench`: start a temporary shop, run the named experiments, and write their pages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load.bench import report
from load.bench.experiments import EXPERIMENTS
from load.bench.rounds import Bench, conduct
from load.bench.stack import own_shop

MAIN_JOB: Final = "edge,cart,inventory"
"""Services that an add-to-cart needs. The others consume the same topics and would use part of the two cores."""
AND_ORDERS: Final = f"{MAIN_JOB},orders,payment,delivery,provider"


@dataclass(frozen=True, slots=True)
class Order:
    """Experiments to run and how thoroughly; `out` `None` saves nothing."""

    names: Sequence[str]
    rounds: int
    seconds: float
    quick: bool
    out: Path | None


async def bench(order: Order, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run the experiments and return their summaries; records are saved after each round."""
    summaries: dict[str, Any] = {}
    tell("starting a temporary shop")
    async with own_shop(AND_ORDERS if "checkout" in order.names else MAIN_JOB) as shop:
        context = Bench(shop, order.seconds, order.quick, tell)
        for name in order.names:
            async for record in conduct(EXPERIMENTS[name], context, order.rounds):
                summaries[name] = report.summary(EXPERIMENTS[name], record)
                if order.out is not None:
                    report.save(order.out, record)
                    report.write(order.out)
            summaries[name]["table"] = report.table(EXPERIMENTS[name], record)
    return summaries
