"""Proof that the shop cannot oversell: many buyers for one product, through the public contract.

1. Seed a new product with exactly K units, and connect N shoppers, each on a socket of its own.
2. All add one unit at the same instant and send the frame twice under one id: every other shopper at once, the rest
   after the answer. Exactly K may hold, N - K must be refused, and no request may be lost or get contradictory answers.
3. Half of the holders remove their unit. The refused shoppers retry with new requests and must get exactly the freed
   units.
4. All carts are emptied, and all K units must be available again. The product is withdrawn from the catalogue.

After each rush every shopper sends `check`, which is answered in order with its own requests: once it is answered, all
answers to the rush have arrived. Carts, catalogue and `holdfast audit` must then agree with the answers.
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
from load.http_client import Guest, ShopClient, ShopUnavailableError
from load.protocol import OUTCOMES, Frame
from load.verdict import Attempt, Finding, FindingKind, RushVerdict, judge_rush

ANSWER_TIMEOUT_SECONDS: Final = 30.0
CATALOGUE_TIMEOUT_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class ProofResult:
    """Result of a proof."""

    product: str
    rushes: tuple[RushVerdict, ...]
    findings: tuple[Finding, ...]
    """Errors found after the last rush."""
    spread_ms: float
    """Time between the first and the last frame sent in the first rush."""
    seconds: float

    @property
    def ok(self) -> bool:
        """True if there are no findings."""
        return not self.findings and all(rush.ok for rush in self.rushes)

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "ok": self.ok,
            "product": self.product,
            "rushes": [rush.as_json() for rush in self.rushes],
            "findings": [{"kind": str(finding.kind), "detail": finding.detail} for finding in self.findings],
            "spread_ms": round(self.spread_ms, 1),
            "seconds": round(self.seconds, 1),
        }


class Buyer:
    """Shopper who adds one unit and collects every answer."""

    def __init__(self, shop: ShopClient, guest: Guest) -> None:
        self.answers: defaultdict[str, list[Frame]] = defaultdict(list)
        self.shopper = Shopper(shop, guest, listener=self._on_frame)

    @property
    def user_id(self) -> str:
        """Owner of the cart."""
        return self.shopper.guest.user_id

    def _on_frame(self, frame: Frame) -> None:
        if frame.get("id") and (frame["type"] in OUTCOMES or frame["type"] == "error"):
            self.answers[frame["id"]].append(frame)

    async def buy(self, product: str, *, patient: bool, gate: asyncio.Event, sent: Callable[[], None]) -> str:
        """Add one unit, send the frame twice, and return the request id once all answers have arrived or timed out."""
        frame = {"id": new_id(), "type": "add", "product": product, "quantity": 1}
        await gate.wait()
        first = await self.shopper.send(frame)
        sent()
        if not patient:
            await self.shopper.send(frame)
        answers = [await _within(ANSWER_TIMEOUT_SECONDS, first)]
        if patient and answers[0]:
            answers.append(await _within(ANSWER_TIMEOUT_SECONDS, await self.shopper.send(frame)))
        await self.request("check", product=product)
        return str(frame["id"])

    async def request(self, type_: str, **fields: Any) -> Frame | None:
        """Return the answer to a frame, or `None` after the timeout."""
        try:
            return await self.shopper.request(type_, seconds=ANSWER_TIMEOUT_SECONDS, **fields)
        except TimeoutError:
            return None

    async def units_in_cart(self, product: str) -> int:
        """Return how many units of `product` are in the cart, according to the shop."""
        cart = await self.request("cart")
        lines = cart["lines"] if cart and cart["type"] == "cart" else []
        return sum(line["quantity"] for line in lines if line["product"] == product)


Audit = Callable[[], Awaitable[Sequence[str]]]


async def prove_oversell(  # noqa: PLR0913 - a shop, a size, and what is done to it
    shop: ShopClient,
    *,
    buyers: int,
    stock: int,
    seed: Callable[[str, int], Awaitable[None]],
    withdraw: Callable[[Sequence[str]], Awaitable[None]],
    audit: Audit,
    report_progress: Callable[[str], None] = lambda _: None,
) -> ProofResult:
    """Send `buyers` shoppers for `stock` units; `report_progress` is called with a sentence at each step.

    The product of the proof is withdrawn from the catalogue at the end, also after an error.
    Raise `ShopUnavailableError` if there is no shop to test.
    """
    started = time.perf_counter()
    product = f"PROOF-{secrets.token_hex(4).upper()}"
    run = _ProofRun(shop, product, audit)
    report_progress(f"{stock} units of {product}")
    try:
        await seed(product, stock)
        rushes, after, spread = await _run_proof(run, buyers, stock, report_progress)
    finally:
        report_progress(f"{product} is withdrawn from the catalogue")
        await withdraw([product])
    return ProofResult(product, rushes, tuple(after), spread * 1000, time.perf_counter() - started)


async def _run_proof(
    run: "_ProofRun", buyers: int, stock: int, report_progress: Callable[[str], None]
) -> tuple[tuple[RushVerdict, ...], list[Finding], float]:
    """Run the rushes; return their verdicts, the findings afterwards, and the spread of the first rush in seconds."""
    shop, product = run.shop, run.product
    if await run.wait_for_available(stock) != stock:
        raise ShopUnavailableError(
            f"{product} was seeded with {stock} units, but the catalogue does not show that quantity"
        )
    report_progress(f"{buyers} shoppers connect")
    async with _connected_buyers(shop, await shop.create_guests(buyers)) as clients:
        report_progress("all add one unit at once")
        first, holders, spread = await run.rush("rush", clients, stock)
        leaving, staying = holders[: len(holders) // 2], holders[len(holders) // 2 :]
        late = [buyer for buyer in clients if buyer not in holders]
        report_progress(f"{len(leaving)} holders remove their unit, {len(late)} refused shoppers retry")
        findings = await run.remove_all(leaving)
        second, late_holders, _ = await run.rush("after removal", late, stock - len(staying), findings)
        report_progress("all carts are emptied")
        after = await run.empty([*staying, *late_holders], stock)
    after += await run.audit_findings()
    return (first, second), after, spread


@dataclass(frozen=True, slots=True)
class _ProofRun:
    """Shop, product and audit of one proof."""

    shop: ShopClient
    product: str
    audit: Audit

    async def rush(
        self, name: str, clients: Sequence[Buyer], units: int, before: Iterable[Finding] = ()
    ) -> tuple[RushVerdict, list[Buyer], float]:
        """Let all `clients` buy at once.

        Return the verdict, the buyers that hold a unit, and the seconds between the first and the last frame sent.
        """
        gate = asyncio.Event()
        sent: list[float] = []
        buying = [
            asyncio.create_task(
                buyer.buy(
                    self.product, patient=number % 2 == 1, gate=gate, sent=lambda: sent.append(time.perf_counter())
                )
            )
            for number, buyer in enumerate(clients)
        ]
        await asyncio.sleep(0)  # every buyer waits at the gate
        gate.set()
        ids = await asyncio.gather(*buying)
        carts = await asyncio.gather(*(buyer.units_in_cart(self.product) for buyer in clients))

        attempts = [
            Attempt(buyer.user_id, id_, tuple(buyer.answers[id_]), due=1 + number % 2)
            for number, (buyer, id_) in enumerate(zip(clients, ids, strict=True))
        ]
        granted = [any(answer["type"] == "held" for answer in attempt.answers) for attempt in attempts]
        findings = [
            *before,
            *(
                Finding(
                    FindingKind.WRONG_CART, f"{buyer.user_id}: {quantity} units in the cart, but {int(grant)} granted"
                )
                for buyer, quantity, grant in zip(clients, carts, granted, strict=True)
                if quantity != int(grant)
            ),
            *await self.audit_findings(),
        ]
        available = await self.wait_for_available(units - sum(granted))
        verdict = judge_rush(name, attempts, product=self.product, units=units, available=available, others=findings)
        holders = [buyer for buyer, grant in zip(clients, granted, strict=True) if grant]
        return verdict, holders, max(sent, default=0.0) - min(sent, default=0.0)

    async def remove_all(self, holders: Sequence[Buyer]) -> list[Finding]:
        """Remove the product from the carts of `holders`; return findings about the answers."""
        return _not_removed(
            holders, await asyncio.gather(*(b.request("remove", product=self.product) for b in holders))
        )

    async def empty(self, holders: Sequence[Buyer], stock: int) -> list[Finding]:
        """Empty the carts of `holders` and check that all stock is available; return findings."""
        findings = _not_removed(holders, await asyncio.gather(*(buyer.request("clear") for buyer in holders)))
        if (available := await self.wait_for_available(stock)) != stock:
            findings.append(
                Finding(FindingKind.WRONG_STOCK, f"all carts are empty, but {available} of {stock} units are available")
            )
        return findings

    async def audit_findings(self) -> list[Finding]:
        """Run the audit and return its violations as findings."""
        return [Finding(FindingKind.AUDIT, violation) for violation in await self.audit()]

    async def wait_for_available(self, expected: int) -> int | None:
        """Return the available quantity in the catalogue, once it is `expected` or after a timeout."""
        end = time.monotonic() + CATALOGUE_TIMEOUT_SECONDS
        available = await self.shop.available_units(self.product)
        while available != expected and time.monotonic() < end:
            await asyncio.sleep(0.1)
            available = await self.shop.available_units(self.product)
        return available


def _not_removed(buyers: Sequence[Buyer], answers: Sequence[Frame | None]) -> list[Finding]:
    return [
        Finding(
            FindingKind.WRONG_ANSWER if answer else FindingKind.UNANSWERED,
            f"{buyer.user_id}: expected `removed`, got {answer}",
        )
        for buyer, answer in zip(buyers, answers, strict=True)
        if not answer or answer["type"] != "removed"
    ]


async def _within(seconds: float, answer: asyncio.Future[Frame]) -> Frame | None:
    try:
        return await asyncio.wait_for(asyncio.shield(answer), seconds)
    except TimeoutError:
        return None


@asynccontextmanager
async def _connected_buyers(shop: ShopClient, guests: Sequence[Guest]) -> AsyncIterator[list[Buyer]]:
    """Connect a buyer for each guest; `ShopClient.request_slots` limits how many connect at a time."""
    async with AsyncExitStack() as stack:
        buyers = [Buyer(shop, guest) for guest in guests]
        await asyncio.gather(*(stack.enter_async_context(buyer.shopper) for buyer in buyers))
        yield buyers
