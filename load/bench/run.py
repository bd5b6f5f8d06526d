"""`holdfast bench`: a shop of its own, the experiments that were named, and the pages about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load.bench import report
from load.bench.experiments import EXPERIMENTS
from load.bench.rounds import Bench, conduct
from load.bench.stack import own_shop

MAIN_JOB: Final = "edge,cart,inventory"
"""What an add-to-cart passes. The other services listen to the same topics, and would take their part of two cores."""
AND_ORDERS: Final = f"{MAIN_JOB},orders,payment,delivery,provider"


@dataclass(frozen=True, slots=True)
class Order:
    """What to measure and how thoroughly; `out` None keeps nothing."""

    names: Sequence[str]
    rounds: int
    seconds: float
    quick: bool
    out: Path | None


async def bench(order: Order, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and return what each experiment says; records are kept after each round."""
    told: dict[str, Any] = {}
    tell("starting a shop to measure")
    async with own_shop(AND_ORDERS if "checkout" in order.names else MAIN_JOB) as shop:
        context = Bench(shop, order.seconds, order.quick, tell)
        for name in order.names:
            async for record in conduct(EXPERIMENTS[name], context, order.rounds):
                told[name] = report.summary(EXPERIMENTS[name], record)
                if order.out is not None:
                    report.save(order.out, record)
                    report.write(order.out)
            told[name]["table"] = report.table(EXPERIMENTS[name], record)
    return told
