"""`holdfast shoppers`: a file of real orders walks into the shop again, at its own pace or many times faster.

Each invoice is a shopper of its own. At the end every unit that was asked for must have been either granted or refused,
and what was granted must be what Postgres granted: the stock ledger is asked, which keeps a grant even when the cart
has expired since.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from load.client import Shopper
from load.orders import Day, Visit, Want
from load.shop import Guest, Shop

ANSWER_SECONDS: Final = 120.0
"""A shopper whom the limits slow down, or whose shop restarts, goes on asking this long."""
EARLY_SECONDS: Final = 0.5
"""How long before its first frame a shopper comes in."""


@dataclass(slots=True)
class Demand:
    """What became of all that was asked of one product, in units."""

    asked: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By reason."""
    unanswered: int = 0
    in_ledger: int = 0
    """Granted to these shoppers, by the books."""

    @property
    def adds_up(self) -> bool:
        """Everything asked was answered, once, and the books say the same."""
        answered = self.accepted + self.refused.total()
        return self.asked == answered and not self.unanswered and self.accepted == self.in_ledger


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay came to."""

    shoppers: int
    skipped: int
    pace: float
    seconds: float
    products: Mapping[str, Demand]
    violations: Sequence[str]
    """Of the audit."""

    @property
    def ok(self) -> bool:
        """Every product adds up, and so do the books."""
        return not self.violations and all(demand.adds_up for demand in self.products.values())

    def as_json(self) -> dict[str, Any]:
        """For machines; quantities in units."""
        return {
            "ok": self.ok,
            "shoppers": self.shoppers,
            "skipped_lines": self.skipped,
            "pace": self.pace,
            "seconds": round(self.seconds, 1),
            "asked": sum(demand.asked for demand in self.products.values()),
            "accepted": sum(demand.accepted for demand in self.products.values()),
            "refused": sum(demand.refused.total() for demand in self.products.values()),
            "violations": list(self.violations),
            "products": {
                product: {
                    "asked": demand.asked,
                    "accepted": demand.accepted,
                    "refused": demand.refused.total(),
                    "reasons": dict(demand.refused),
                    "unanswered": demand.unanswered,
                    "in_ledger": demand.in_ledger,
                    "adds_up": demand.adds_up,
                }
                for product, demand in sorted(self.products.items())
            },
        }


async def replay(
    shop: Shop,
    day: Day,
    *,
    pace: float,
    granted: Callable[[Sequence[str]], Awaitable[Mapping[str, int]]],
    audit: Callable[[], Awaitable[Sequence[str]]],
    said: Callable[[], None] = lambda: None,
) -> Replay:
    """Replay `day` at `pace` times its own.

    `granted` tells the units by product that shoppers were ever granted; `said` is called for every answer.
    """
    begun = time.perf_counter()
    products: defaultdict[str, Demand] = defaultdict(Demand)
    guests = await shop.guests(len(day.visits))
    opening = time.monotonic() + EARLY_SECONDS
    async with asyncio.TaskGroup() as group:
        for visit, guest in zip(day.visits, guests, strict=True):
            group.create_task(_shop_for(shop, guest, visit, opening=opening, pace=pace, products=products, said=said))
    books = await granted([guest.user_id for guest in guests])
    for product in books.keys() | products.keys():
        products[product].in_ledger = books.get(product, 0)
    seconds = time.perf_counter() - begun
    return Replay(len(guests), day.skipped, pace, seconds, products, await audit())


async def _shop_for(  # noqa: PLR0913 - a shopper, its day, and where the answers go
    shop: Shop,
    guest: Guest,
    visit: Visit,
    *,
    opening: float,
    pace: float,
    products: defaultdict[str, Demand],
    said: Callable[[], None],
) -> None:
    """One shopper's visit: each frame at its time, whether or not the one before it has been answered."""

    async def ask(shopper: Shopper, want: Want) -> None:
        demand = products[want.product]
        demand.asked += want.quantity
        try:
            answer = await shopper.ask("add", product=want.product, quantity=want.quantity, seconds=ANSWER_SECONDS)
        except TimeoutError:
            demand.unanswered += want.quantity
        else:
            if answer["type"] == "held":
                demand.accepted += answer["quantity"]
            else:
                demand.refused[answer.get("reason") or f"error {answer.get('code')}"] += want.quantity
        said()

    async with AsyncExitStack() as stack:
        await _sleep_until(opening + visit.wants[0].at / pace - EARLY_SECONDS)
        shopper = await stack.enter_async_context(Shopper(shop, guest))
        async with asyncio.TaskGroup() as group:
            for want in visit.wants:
                await _sleep_until(opening + want.at / pace)
                group.create_task(ask(shopper, want))


async def _sleep_until(instant: float) -> None:
    await asyncio.sleep(max(0.0, instant - time.monotonic()))
