"""The proof that the shop cannot sell what it does not have: a crowd at one product, through the front door.

1. A fresh product with exactly K units; N shoppers, each on a socket of their own.
2. All add one unit at the same instant, and each says its frame twice under one id: every other one at once, the rest
   after the answer. Exactly K may hold, N - K must be refused, none may be lost or answered in two ways.
3. Half of the holders take theirs out; those who were refused come back with new requests, and must get exactly what
   was freed.
4. Everyone empties their cart, and all K units are there again.

After each rush every shopper asks inventory with `check`, in order with its own requests: when that is answered, every
answer to the rush is in. Then carts, catalogue and `holdfast audit` must agree with the answers.
"""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from load.client import Guest, Shop, ShopAwayError, Shopper, new_id
from load.protocol import OUTCOMES, Frame
from load.verdict import Attempt, Finding, Kind, Verdict, judge

ANSWER_SECONDS: Final = 30.0
CATALOGUE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof found."""

    product: str
    rushes: tuple[Verdict, ...]
    findings: tuple[Finding, ...]
    """What was wrong after the last rush."""
    spread_ms: float
    """From the first frame of the first rush to the last, as this process sent them."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Nothing is wrong anywhere."""
        return not self.findings and all(rush.ok for rush in self.rushes)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "ok": self.ok,
            "product": self.product,
            "rushes": [rush.as_json() for rush in self.rushes],
            "findings": [{"kind": str(finding.kind), "detail": finding.detail} for finding in self.findings],
            "spread_ms": round(self.spread_ms, 1),
            "seconds": round(self.seconds, 1),
        }


class Buyer:
    """A shopper who wants one unit, and every answer it hears."""

    def __init__(self, shop: Shop, guest: Guest) -> None:
        self.heard: defaultdict[str, list[Frame]] = defaultdict(list)
        self.shopper = Shopper(shop, guest, listener=self._hear)

    @property
    def user_id(self) -> str:
        """Whose cart it is."""
        return self.shopper.guest.user_id

    def _hear(self, frame: Frame) -> None:
        if frame.get("id") and (frame["type"] in OUTCOMES or frame["type"] == "error"):
            self.heard[frame["id"]].append(frame)

    async def buy(self, product: str, *, patient: bool, gate: asyncio.Event, sent: Callable[[], None]) -> str:
        """Add one unit, say it twice, and return the request's id when all is answered or nobody answers."""
        frame = {"id": new_id(), "type": "add", "product": product, "quantity": 1}
        await gate.wait()
        first = await self.shopper.say(frame)
        sent()
        if not patient:
            await self.shopper.say(frame)
        answers = [await _within(ANSWER_SECONDS, first)]
        if patient and answers[0]:
            answers.append(await _within(ANSWER_SECONDS, await self.shopper.say(frame)))
        await self.ask("check", product=product)
        return str(frame["id"])

    async def ask(self, type_: str, **fields: Any) -> Frame | None:
        """The answer to a frame, none when nobody answers."""
        try:
            return await self.shopper.ask(type_, seconds=ANSWER_SECONDS, **fields)
        except TimeoutError:
            return None

    async def has(self, product: str) -> int:
        """How many units of `product` the shop says are in this cart."""
        cart = await self.ask("cart")
        lines = cart["lines"] if cart and cart["type"] == "cart" else []
        return sum(line["quantity"] for line in lines if line["product"] == product)


async def prove_oversell(
    shop: Shop,
    *,
    buyers: int,
    stock: int,
    seed: Callable[[str, int], Awaitable[None]],
    audit: Callable[[], Awaitable[Sequence[str]]],
    tell: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Send `buyers` shoppers at `stock` units; `tell` hears what is being done.

    Raises `ShopAwayError` when there is no shop to prove anything about.
    """
    begun = time.perf_counter()
    product = f"PROOF-{secrets.token_hex(4).upper()}"
    tell(f"{stock} units of {product}")
    await seed(product, stock)
    if await _shown(shop, product, stock) != stock:
        raise ShopAwayError(f"{product} was seeded with {stock} units, but the catalogue does not show them")
    tell(f"{buyers} shoppers come in")
    async with _crowd(shop, await shop.guests(buyers)) as crowd:
        tell("all at once")
        first, holders, spread = await _rush("rush", shop, crowd, product, stock, audit)
        leaving, staying = holders[: len(holders) // 2], holders[len(holders) // 2 :]
        late = [buyer for buyer in crowd if buyer not in holders]
        tell(f"{len(leaving)} holders let go, {len(late)} come back")
        findings = await _let_go(leaving, product)
        units = stock - len(staying)
        second, late_holders, _ = await _rush("after removal", shop, late, product, units, audit, findings)
        tell("everyone empties the cart")
        after = await _empty(shop, [*staying, *late_holders], product, stock)
    after += await _audited(audit)
    return Proof(product, (first, second), tuple(after), spread * 1000, time.perf_counter() - begun)


async def _rush(
    name: str,
    shop: Shop,
    crowd: Sequence[Buyer],
    product: str,
    units: int,
    audit: Callable[[], Awaitable[Sequence[str]]],
    before: Iterable[Finding] = (),
) -> tuple[Verdict, list[Buyer], float]:
    """All of `crowd` buy at once: the verdict, who holds a unit, and how many seconds the first frames took to leave."""
    gate = asyncio.Event()
    sent: list[float] = []
    buying = [
        asyncio.create_task(
            buyer.buy(product, patient=number % 2 == 1, gate=gate, sent=lambda: sent.append(time.perf_counter()))
        )
        for number, buyer in enumerate(crowd)
    ]
    await asyncio.sleep(0)  # every buyer is at the gate
    gate.set()
    ids = await asyncio.gather(*buying)
    carts = await asyncio.gather(*(buyer.has(product) for buyer in crowd))

    attempts = [
        Attempt(buyer.user_id, id_, tuple(buyer.heard[id_]), due=1 + number % 2)
        for number, (buyer, id_) in enumerate(zip(crowd, ids, strict=True))
    ]
    granted = [any(answer["type"] == "held" for answer in attempt.answers) for attempt in attempts]
    held = sum(granted)
    findings = [
        *before,
        *(
            Finding(Kind.WRONG_CART, f"{buyer.user_id}: {quantity} in the cart, {int(grant)} granted")
            for buyer, quantity, grant in zip(crowd, carts, granted, strict=True)
            if quantity != int(grant)
        ),
        *await _audited(audit),
    ]
    available = await _shown(shop, product, units - held)
    verdict = judge(name, attempts, product=product, units=units, available=available, others=findings)
    holders = [buyer for buyer, grant in zip(crowd, granted, strict=True) if grant]
    return verdict, holders, max(sent, default=0.0) - min(sent, default=0.0)


async def _let_go(leaving: Sequence[Buyer], product: str) -> list[Finding]:
    answers = await asyncio.gather(*(buyer.ask("remove", product=product) for buyer in leaving))
    return _not_removed(leaving, answers)


async def _empty(shop: Shop, holders: Sequence[Buyer], product: str, stock: int) -> list[Finding]:
    answers = await asyncio.gather(*(buyer.ask("clear") for buyer in holders))
    findings = _not_removed(holders, answers)
    if (available := await _shown(shop, product, stock)) != stock:
        findings.append(Finding(Kind.WRONG_STOCK, f"all carts are empty, and {available} of {stock} are available"))
    return findings


def _not_removed(buyers: Sequence[Buyer], answers: Sequence[Frame | None]) -> list[Finding]:
    return [
        Finding(Kind.WRONG_ANSWER if answer else Kind.UNANSWERED, f"{buyer.user_id}: a removal was answered {answer}")
        for buyer, answer in zip(buyers, answers, strict=True)
        if not answer or answer["type"] != "removed"
    ]


async def _audited(audit: Callable[[], Awaitable[Sequence[str]]]) -> list[Finding]:
    return [Finding(Kind.AUDIT, violation) for violation in await audit()]


async def _shown(shop: Shop, product: str, expected: int) -> int | None:
    """What the catalogue shows once it shows `expected`, or at the end of its time."""
    end = time.monotonic() + CATALOGUE_SECONDS
    while (available := await shop.available(product)) != expected and time.monotonic() < end:
        await asyncio.sleep(0.1)
    return available


async def _within(seconds: float, answer: asyncio.Future[Frame]) -> Frame | None:
    try:
        return await asyncio.wait_for(asyncio.shield(answer), seconds)
    except TimeoutError:
        return None


@asynccontextmanager
async def _crowd(shop: Shop, guests: Sequence[Guest]) -> AsyncIterator[list[Buyer]]:
    """Buyers on open sockets; the shop's door paces how fast they come in."""
    async with AsyncExitStack() as stack:
        buyers = [Buyer(shop, guest) for guest in guests]
        await asyncio.gather(*(stack.enter_async_context(buyer.shopper) for buyer in buyers))
        yield buyers
