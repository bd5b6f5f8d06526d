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

from load.client import Shopper, new_id
from load.protocol import OUTCOMES, Frame
from load.shop import Guest, Shop, ShopAwayError
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


Audit = Callable[[], Awaitable[Sequence[str]]]


async def prove_oversell(
    shop: Shop,
    *,
    buyers: int,
    stock: int,
    seed: Callable[[str, int], Awaitable[None]],
    audit: Audit,
    tell: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Send `buyers` shoppers at `stock` units; `tell` hears what is being done.

    Raises `ShopAwayError` when there is no shop to prove anything about.
    """
    begun = time.perf_counter()
    product = f"PROOF-{secrets.token_hex(4).upper()}"
    proving = _Proving(shop, product, audit)
    tell(f"{stock} units of {product}")
    await seed(product, stock)
    if await proving.shown(stock) != stock:
        raise ShopAwayError(f"{product} was seeded with {stock} units, but the catalogue does not show them")
    tell(f"{buyers} shoppers come in")
    async with _crowd(shop, await shop.guests(buyers)) as crowd:
        tell("all at once")
        first, holders, spread = await proving.rush("rush", crowd, stock)
        leaving, staying = holders[: len(holders) // 2], holders[len(holders) // 2 :]
        late = [buyer for buyer in crowd if buyer not in holders]
        tell(f"{len(leaving)} holders let go, {len(late)} come back")
        findings = await proving.let_go(leaving)
        second, late_holders, _ = await proving.rush("after removal", late, stock - len(staying), findings)
        tell("everyone empties the cart")
        after = await proving.empty([*staying, *late_holders], stock)
    after += await proving.audited()
    return Proof(product, (first, second), tuple(after), spread * 1000, time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class _Proving:
    """One proof's shop, product and audit."""

    shop: Shop
    product: str
    audit: Audit

    async def rush(
        self, name: str, crowd: Sequence[Buyer], units: int, before: Iterable[Finding] = ()
    ) -> tuple[Verdict, list[Buyer], float]:
        """All of `crowd` buy at once: the verdict, who holds a unit, and the seconds the first frames took to leave."""
        gate = asyncio.Event()
        sent: list[float] = []
        buying = [
            asyncio.create_task(
                buyer.buy(
                    self.product, patient=number % 2 == 1, gate=gate, sent=lambda: sent.append(time.perf_counter())
                )
            )
            for number, buyer in enumerate(crowd)
        ]
        await asyncio.sleep(0)  # every buyer is at the gate
        gate.set()
        ids = await asyncio.gather(*buying)
        carts = await asyncio.gather(*(buyer.has(self.product) for buyer in crowd))

        attempts = [
            Attempt(buyer.user_id, id_, tuple(buyer.heard[id_]), due=1 + number % 2)
            for number, (buyer, id_) in enumerate(zip(crowd, ids, strict=True))
        ]
        granted = [any(answer["type"] == "held" for answer in attempt.answers) for attempt in attempts]
        findings = [
            *before,
            *(
                Finding(Kind.WRONG_CART, f"{buyer.user_id}: {quantity} in the cart, {int(grant)} granted")
                for buyer, quantity, grant in zip(crowd, carts, granted, strict=True)
                if quantity != int(grant)
            ),
            *await self.audited(),
        ]
        available = await self.shown(units - sum(granted))
        verdict = judge(name, attempts, product=self.product, units=units, available=available, others=findings)
        holders = [buyer for buyer, grant in zip(crowd, granted, strict=True) if grant]
        return verdict, holders, max(sent, default=0.0) - min(sent, default=0.0)

    async def let_go(self, holders: Sequence[Buyer]) -> list[Finding]:
        """These take the product out of their carts; what is wrong with the answers."""
        return _not_removed(holders, await asyncio.gather(*(b.ask("remove", product=self.product) for b in holders)))

    async def empty(self, holders: Sequence[Buyer], stock: int) -> list[Finding]:
        """These empty their carts, and all of the stock must be there again; what is wrong."""
        findings = _not_removed(holders, await asyncio.gather(*(buyer.ask("clear") for buyer in holders)))
        if (available := await self.shown(stock)) != stock:
            findings.append(Finding(Kind.WRONG_STOCK, f"all carts are empty, and {available} of {stock} are available"))
        return findings

    async def audited(self) -> list[Finding]:
        """What the audit finds."""
        return [Finding(Kind.AUDIT, violation) for violation in await self.audit()]

    async def shown(self, expected: int) -> int | None:
        """What the catalogue shows, once that is `expected` or its time is over."""
        end = time.monotonic() + CATALOGUE_SECONDS
        available = await self.shop.available(self.product)
        while available != expected and time.monotonic() < end:
            await asyncio.sleep(0.1)
            available = await self.shop.available(self.product)
        return available


def _not_removed(buyers: Sequence[Buyer], answers: Sequence[Frame | None]) -> list[Finding]:
    return [
        Finding(Kind.WRONG_ANSWER if answer else Kind.UNANSWERED, f"{buyer.user_id}: a removal was answered {answer}")
        for buyer, answer in zip(buyers, answers, strict=True)
        if not answer or answer["type"] != "removed"
    ]


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
