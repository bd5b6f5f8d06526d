"""`holdfast shoppers`: replay a file of real orders, at its own pace or many times faster.

Each invoice is a shopper of its own. In the end every requested unit must have been granted or refused, and the grants
must equal those in Postgres. They are read from the stock ledger, which keeps a grant even if the cart has expired
since.
"""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from load.client import Shopper
from load.http_client import ConnectionRejectedError, Guest, ShopClient, ShopUnavailableError
from load.order_file import OrderFile, PlannedAdd, PlannedShopper

ANSWER_TIMEOUT_SECONDS: Final = 120.0
"""Timeout for one answer; long, because rate limits or a restart of the shop delay answers."""
CONNECT_LEAD_SECONDS: Final = 0.5
"""Time before its first frame at which a shopper connects."""


@dataclass(slots=True)
class ProductTotals:
    """Units of one product requested, by result."""

    requested: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Units refused, by reason."""
    unanswered: int = 0
    in_ledger: int = 0
    """Units granted to these shoppers according to the stock ledger."""

    @property
    def is_balanced(self) -> bool:
        """True if every unit was answered once and the ledger agrees."""
        answered = self.accepted + self.refused.total()
        return self.requested == answered and not self.unanswered and self.accepted == self.in_ledger


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Result of a replay."""

    shoppers: int
    skipped_lines: int
    pace: float
    seconds: float
    products: Mapping[str, ProductTotals]
    violations: Sequence[str]
    """Violations found by the audit."""

    @property
    def ok(self) -> bool:
        """True if every product balances and the audit found no violation."""
        return not self.violations and all(demand.is_balanced for demand in self.products.values())

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values; quantities are in units."""
        return {
            "ok": self.ok,
            "shoppers": self.shoppers,
            "skipped_lines": self.skipped_lines,
            "pace": self.pace,
            "seconds": round(self.seconds, 1),
            "asked": sum(demand.requested for demand in self.products.values()),
            "accepted": sum(demand.accepted for demand in self.products.values()),
            "refused": sum(demand.refused.total() for demand in self.products.values()),
            "violations": list(self.violations),
            "products": {
                product: {
                    "asked": demand.requested,
                    "accepted": demand.accepted,
                    "refused": demand.refused.total(),
                    "reasons": dict(demand.refused),
                    "unanswered": demand.unanswered,
                    "in_ledger": demand.in_ledger,
                    "adds_up": demand.is_balanced,
                }
                for product, demand in sorted(self.products.items())
            },
        }


async def replay_orders(
    shop: ShopClient,
    day: OrderFile,
    *,
    pace: float,
    granted_units: Callable[[Sequence[str]], Awaitable[Mapping[str, int]]],
    audit: Callable[[], Awaitable[Sequence[str]]],
    on_answer: Callable[[], None] = lambda: None,
) -> ReplayResult:
    """Replay `day` at `pace` times its own pace.

    `granted_units` returns the units per product ever granted to some users; `on_answer` is called after every answer.
    """
    started = time.perf_counter()
    products: defaultdict[str, ProductTotals] = defaultdict(ProductTotals)
    guests = await shop.create_guests(len(day.shoppers))
    opening = time.monotonic() + CONNECT_LEAD_SECONDS
    async with asyncio.TaskGroup() as group:
        for plan, guest in zip(day.shoppers, guests, strict=True):
            group.create_task(
                _replay_shopper(shop, guest, plan, opening=opening, pace=pace, products=products, on_answer=on_answer)
            )
    ledger = await granted_units([guest.user_id for guest in guests])
    for product in ledger.keys() | products.keys():
        products[product].in_ledger = ledger.get(product, 0)
    seconds = time.perf_counter() - started
    violations = await audit()
    await asyncio.gather(*(_empty_cart(shop, guest) for guest in guests))
    return ReplayResult(len(guests), day.skipped_lines, pace, seconds, products, violations)


async def _empty_cart(shop: ShopClient, guest: Guest) -> None:
    """Return what a shopper holds, so that the shop's own shoppers can have it; the cart expires if that fails."""
    with contextlib.suppress(TimeoutError, OSError, ShopUnavailableError, ConnectionRejectedError):
        async with Shopper(shop, guest) as shopper:
            await shopper.request("clear", seconds=ANSWER_TIMEOUT_SECONDS)


async def _replay_shopper(  # noqa: PLR0913 - a shopper, its plan, and where the answers go
    shop: ShopClient,
    guest: Guest,
    plan: PlannedShopper,
    *,
    opening: float,
    pace: float,
    products: defaultdict[str, ProductTotals],
    on_answer: Callable[[], None],
) -> None:
    """Replay one shopper: send each frame at its time, whether or not the previous one has been answered."""

    async def add(shopper: Shopper, planned: PlannedAdd) -> None:
        demand = products[planned.product]
        demand.requested += planned.quantity
        try:
            answer = await shopper.request(
                "add", product=planned.product, quantity=planned.quantity, seconds=ANSWER_TIMEOUT_SECONDS
            )
        except TimeoutError:
            demand.unanswered += planned.quantity
        else:
            if answer["type"] == "held":
                demand.accepted += answer["quantity"]
            else:
                demand.refused[answer.get("reason") or f"error {answer.get('code')}"] += planned.quantity
        on_answer()

    async with AsyncExitStack() as stack:
        await _sleep_until(opening + plan.adds[0].at / pace - CONNECT_LEAD_SECONDS)
        shopper = await stack.enter_async_context(Shopper(shop, guest))
        async with asyncio.TaskGroup() as group:
            for planned in plan.adds:
                await _sleep_until(opening + planned.at / pace)
                group.create_task(add(shopper, planned))


async def _sleep_until(instant: float) -> None:
    await asyncio.sleep(max(0.0, instant - time.monotonic()))
