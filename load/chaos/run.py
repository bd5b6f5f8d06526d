"""A scenario from its start to its verdict: shop, break, come to rest, read everything, judge."""

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from psycopg import Error as PostgresError

from load.chaos import checker, figures, money, reading, records, scenarios
from load.chaos.checkouts import deal
from load.chaos.finding import Finding
from load.chaos.history import NEMESIS, Entry, Recorder, about
from load.chaos.nemesis import FAULTS, strike
from load.chaos.provider import charges
from load.chaos.scenarios import Scenario
from load.chaos.scene import Scene
from load.chaos.shoppers import EAGERNESS, Witness
from load.chaos.stage import Stage
from load.chaos.truth import Basket, OrderEvent, Replay, Truth
from load.shop import Shop, ShopAwayError

UNITS: Final = (6, 12, 24, 48, 200, 20_000)
"""Of each product: some run out at once, some never."""
WARM_SECONDS: Final = 1.0
COOL_SECONDS: Final = 1.5
TRIES_SECONDS: Final = 60.0
"""How much longer a fault tries that was always in the ruins of another."""
REST_SECONDS: Final = 40.0
ORDERS_SECONDS: Final = 90.0
"""How long orders may take to end, after the last of them was begun and the last fault is over."""
ASKED_AGAIN_SECONDS: Final = 10.0
"""How long carts may still name requests as pending that are decided: a zombie's late write to the table is taken for
the truth by who takes over its partitions, until what it names is asked again."""
SHOWN_SECONDS: Final = 20.0
"""How long what shoppers read, or their clients show, may lag behind what is true: a client may be calling again, and
what a zombie hid is seen again when it was asked about."""
FED_A_SECOND: Final = 200
"""Of records that are fed back, at least so many are read in a second, beside what is patience anyway."""
GRACE_SECONDS: Final = 2.0
"""How old something must be for the last audit to judge it. At rest nothing is on its way; only the looks of those who
wait for a row to be due, twice a second, may still be to come."""
SELDOM: Final = 15
"""So many times less often come other faults beside one that takes every process in turn."""
SHOWN_ENTRIES: Final = 20
EXPLAINED: Final = 3
"""Findings whose lines of the history are shown; what follows is mostly more of the same."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one scenario."""

    scenario: Scenario
    findings: tuple[Finding, ...]
    counts: dict[str, int]
    waits: figures.Waits
    requests: int
    seconds: float
    rest_seconds: float | None
    history: Path
    balance: money.Balance
    end: tuple[Entry, ...]
    """The lines of the history that have to do with the findings; none without findings."""

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "scenario": self.scenario.name,
            "faults": list(self.scenario.faults),
            "ok": self.ok,
            "requests": self.requests,
            "silence_seconds": round(self.waits.silence, 2),
            "longest_wait_seconds": round(self.waits.longest, 2),
            "median_wait_seconds": round(self.waits.median, 3),
            "rest_seconds": None if self.rest_seconds is None else round(self.rest_seconds, 1),
            "seconds": round(self.seconds, 1),
            "money": asdict(self.balance),
            "sometimes": self.counts,
            "findings": [finding.as_json() for finding in self.findings],
            "history": str(self.history),
        }


Tell = Callable[[str], None]


def products_of(scenario: Scenario) -> dict[str, int]:
    """The codes of a scenario's own products, with their stock."""
    stem = "CHAOS-" + re.sub(r"[^A-Z]+", "-", scenario.name.upper())[:40]
    return {f"{stem}-{units}": units for units in UNITS}


async def play(stage: Stage, scenario: Scenario, *, seed: int, folder: Path, tell: Tell) -> Result:
    """One scenario in a running shop that has its products."""
    began = time.monotonic()
    name = re.sub(r"[^a-z0-9]+", "-", scenario.name)
    recorder = Recorder(folder / f"{name}.jsonl")
    try:
        truth = await _Play(stage, scenario, seed, recorder, tell).run()
    finally:
        recorder.close()
    history = recorder.entries
    findings = checker.check(history, truth, zombies=scenario.zombies, clean=scenario.clean)
    counts = figures.sometimes(history, truth)
    findings += [Finding("never", f"{need!r} never happened") for need in scenario.needs if not counts[need]]
    words = [word for finding in findings[:EXPLAINED] for word in finding.words]
    return Result(
        scenario,
        tuple(findings),
        dict(sorted(counts.items())),
        figures.waits(history),
        sum(entry.type == "invoke" and entry.proc.startswith("shopper") for entry in history),
        time.monotonic() - began,
        truth.rest_seconds,
        recorder.path,
        money.balance(truth),
        tuple(about(history, words=words, last=SHOWN_ENTRIES)) if findings else (),
    )


async def _carts(witnesses: Sequence[Witness]) -> list[Mapping[str, Any] | None]:
    """Every shopper's cart. One that a zombie wrote is asked about again, five seconds after it was found."""
    end = time.monotonic() + ASKED_AGAIN_SECONDS
    while True:
        carts = await asyncio.gather(*(witness.cart(10) for witness in witnesses))
        if time.monotonic() > end or not any(cart and cart["pending"] for cart in carts):
            return carts
        await asyncio.sleep(1)


class _Play:
    def __init__(self, stage: Stage, scenario: Scenario, seed: int, recorder: Recorder, tell: Tell) -> None:
        self.stage, self.scenario, self.recorder, self.tell = stage, scenario, recorder, tell
        # By name and seed: a scenario is the same alone as among others.
        self.chance = random.Random(f"{seed} {' '.join(scenario.faults)}")  # noqa: S311 - to be repeated, not secret
        self.products = list(products_of(scenario))

    async def run(self) -> Truth:
        await self._ready()
        settings = self.stage.settings
        since = await records.ends(settings)
        letters = await records.ends(settings, reading.LETTERS)
        async with Shop(self.stage.stack.http, chance=lambda: self.chance.random() / EAGERNESS) as shop:
            guests = await shop.guests(self.scenario.shoppers)
            cards = deal(self.chance)
            witnesses = [
                Witness(f"shopper-{number}", shop, guest, self.recorder, random.Random(self.chance.random()), cards)  # noqa: S311
                for number, guest in enumerate(guests)
            ]
            try:
                await asyncio.gather(*(witness.shopper.__aenter__() for witness in witnesses))
                scene = Scene(self.stage, self.recorder, witnesses, self.products, self.chance, since)
                await self._shop(scene)
                rested, restless = await self._rest(witnesses)
                replay = await self._replay(scene) if self.scenario.replayed else None
                shown = await self._shown(witnesses)
                carts = await _carts(witnesses)
            finally:
                await asyncio.gather(*(witness.leave() for witness in witnesses))
            self.tell("reading")
            users = [witness.user for witness in witnesses]
            (told, orders), (violations, digest) = await asyncio.gather(
                self._topics_and_orders(shop, witnesses, since), self.stage.audit(self._grace())
            )
        unanswered = [f"nobody answers {user}" for user, cart in zip(users, carts, strict=True) if cart is None]
        return Truth(
            **await reading.books(self.stage, users, self.products),
            **told,
            orders=orders,
            charges=charges(await self.stage.provider.history(), set(orders)),
            bad=scene.bad,
            dead=await reading.dead_letters(settings, letters, since),
            carts={user: cart for user, cart in zip(users, carts, strict=True) if cart is not None},
            shown=shown,
            audit=[*violations, *unanswered],
            locks=await reading.locks(self.stage),
            replay=replace(replay, after=digest) if replay else None,
            rest_seconds=rested,
            restless=restless,
        )

    async def _ready(self) -> None:
        end = time.monotonic() + REST_SECONDS
        while self.stage.unready():
            if time.monotonic() > end:
                raise ShopAwayError(f"the shop under test does not last: {await self.stage.why_unready()}")
            await asyncio.sleep(0.2)

    async def _shop(self, scene: Scene) -> None:
        """Load and faults together; returns when the last fault has ended."""
        if self.scenario.checkouts:
            await self._sell_out(scene)
            return
        closing = asyncio.Event()
        shopping = [asyncio.create_task(witness.live(self.products, closing)) for witness in scene.witnesses]
        end = time.monotonic() + self.scenario.seconds
        try:
            await asyncio.sleep(WARM_SECONDS)
            await asyncio.gather(*(self._again_and_again(name, scene, end) for name in self.scenario.faults))
            await asyncio.sleep(max(COOL_SECONDS, end - time.monotonic()))
        finally:
            closing.set()
            self.recorder.note(NEMESIS, "heard", figures.CLOSING)
            await asyncio.gather(*shopping)

    async def _sell_out(self, scene: Scene) -> None:
        """So many checkouts at a steady pace, and faults for as long as that takes."""
        tickets = list(range(self.scenario.checkouts))
        pause = len(scene.witnesses) / self.scenario.rate
        buying = asyncio.gather(*(witness.buy(self.products, tickets, pause) for witness in scene.witnesses))

        async def strikes(name: str) -> None:
            await asyncio.sleep(WARM_SECONDS)
            while not buying.done() or 0 < scene.turns < len(self.stage.services()):
                await strike(name, scene)
                self.tell(f"{name}; {len(tickets)} checkouts to go")
                wait = FAULTS[name].pause * (1 if name in scenarios.IN_TURN else SELDOM)
                await asyncio.sleep(self.chance.uniform(0.5, 1.5) * wait)

        try:
            await asyncio.gather(buying, *(strikes(name) for name in self.scenario.faults))
        finally:
            buying.cancel()
        self.recorder.note(NEMESIS, "heard", figures.CLOSING)

    async def _again_and_again(self, name: str, scene: Scene, end: float) -> None:
        """A fault once at least, if others let it, and as often as there is time for."""
        pause, done = FAULTS[name].pause, False
        while True:
            self.tell(name)
            done = await strike(name, scene) or done
            wait = self.chance.uniform(0.5, 1.5) * pause
            over = time.monotonic() + wait - end
            if over > -COOL_SECONDS if done else over > TRIES_SECONDS:
                return
            await asyncio.sleep(wait)

    async def _rest(self, witnesses: Sequence[Witness], patience: float = REST_SECONDS) -> tuple[float | None, str]:
        """How long the shop took to come to rest, and what was waited for last; none when it never did.

        Shoppers who were cut off call again in their own time, and orders take theirs: both are waited for, but that is
        not the shop's restlessness.
        """
        self.tell("coming to rest")
        began, why = time.monotonic(), ""
        rested: float | None = None
        while (passed := time.monotonic() - began) < (patience if rested is None else max(patience, ORDERS_SECONDS)):
            # Asked before and after: what ends while the lag is looked at has left records that the look has not seen.
            busy, problem = await self._busy(witnesses), await self._restless()
            busy = busy or await self._busy(witnesses)
            if problem and not (busy and rested is not None):
                why, rested = problem, None
            elif rested is None:
                rested = passed
            if not problem and not busy:
                break
            await asyncio.sleep(0.1)
        return rested, why

    async def _busy(self, witnesses: Sequence[Witness]) -> bool:
        """Whether shoppers, their orders or what follows from these are still at something."""
        if any(witness.busy for witness in witnesses):
            return True
        try:
            return bool(await self.stage.under_way())
        except PostgresError:
            return True

    async def _shown(self, witnesses: Sequence[Witness]) -> dict[str, Basket]:
        """What each client shows, as soon as that is what Postgres holds, or its time is over.

        Nobody asks for anything meanwhile: an answer would bring what the client should have been told before.
        """
        end = time.monotonic() + SHOWN_SECONDS
        users = [witness.user for witness in witnesses]
        while True:
            held = await reading.carts(self.stage, users)
            shown = {witness.user: witness.shows for witness in witnesses}
            if shown == held or time.monotonic() > end:
                return shown
            await asyncio.sleep(0.2)

    def _grace(self) -> float | None:
        """That of the last audit; as ever where a zombie may have written to the table of carts, late but lawfully."""
        return None if self.scenario.zombies else GRACE_SECONDS

    async def _topics_and_orders(
        self, shop: Shop, witnesses: Sequence[Witness], since: records.Offsets
    ) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
        users = frozenset(witness.user for witness in witnesses)
        told = await reading.topics(self.stage.settings, since, users)
        return told, await self._orders(shop, witnesses, told["events"])

    async def _orders(
        self, shop: Shop, witnesses: Sequence[Witness], events: Sequence[OrderEvent]
    ) -> dict[str, Mapping[str, Any]]:
        """Every order as its shopper reads it, once that is not behind its events any more, or its time is over."""
        newest: dict[str, int] = {}
        for event in events:
            newest[event.order] = max(event.version, newest.get(event.order, 0))
        end = time.monotonic() + SHOWN_SECONDS
        while True:
            tokens = [witness.shopper.guest.token for witness in witnesses]
            lists = await asyncio.gather(*(shop.every("/v1/orders?limit=100", token) for token in tokens))
            read = {order["order_id"]: order for each in lists for order in each}
            behind = [
                order for order, version in newest.items() if read.get(order, {}).get("order_version", 0) < version
            ]
            if not behind or time.monotonic() > end:
                return read
            await asyncio.sleep(0.5)

    async def _restless(self) -> str:
        if self.stage.unready() and (unready := await self.stage.why_unready()):
            return unready
        try:
            lag = await reading.lag(self.stage.settings)
        except Exception as error:  # noqa: BLE001 - whatever a broker that is coming back makes its clients raise
            return f"the broker does not tell its lag ({type(error).__name__})"
        behind = ", ".join(f"{number} by {of}" for of, number in lag.items())
        return f"records not acknowledged: {behind}" if lag else ""

    async def _replay(self, scene: Scene) -> Replay:
        """Feed everything back and wait until it is read; the digest from afterwards is not known yet."""
        self.tell("replaying all of it")
        _, digest = await self.stage.audit()
        self.recorder.note(NEMESIS, "invoke", "replay", value={"all": True})
        number = await records.replay(self.stage.settings, scene.since)
        self.recorder.note(NEMESIS, "ok", "replay", value={"replayed": number})
        rested, restless = await self._rest(scene.witnesses, REST_SECONDS + number / FED_A_SECOND)
        return Replay(number, digest, "", rested, restless)
