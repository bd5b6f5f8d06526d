"""Run one scenario: load and faults, wait until the shop is quiescent, collect its state, check."""

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
"""Stock of each product: some sell out at once, some never."""
WARM_SECONDS: Final = 1.0
COOL_SECONDS: Final = 1.5
TRIES_SECONDS: Final = 60.0
"""Extra time for a fault that had no effect so far, because other faults were in the way."""
REST_SECONDS: Final = 40.0
"""Timeout for the shop to become quiescent."""
ORDERS_SECONDS: Final = 90.0
"""Timeout for orders to end, after the last one was placed and the last fault is over."""
ASKED_AGAIN_SECONDS: Final = 10.0
"""Time for which carts may still list decided requests as pending. The late table write of a zombie is taken over by
the worker that gets its partitions, until the requests in it are retried."""
SHOWN_SECONDS: Final = 20.0
"""Timeout for the views of shoppers and their clients to become current: a client may be reconnecting, and a change
hidden by a zombie reappears when its request is retried."""
FED_A_SECOND: Final = 200
"""Minimum rate at which replayed records must be consumed, in addition to the usual timeout."""
GRACE_SECONDS: Final = 2.0
"""Minimum age of rows that the last audit checks. A quiescent shop has no message in flight; only the pollers for
due rows, which run twice per second, may still act."""
SELDOM: Final = 15
"""Factor by which other faults are less frequent next to one that hits every process in turn."""
SHOWN_ENTRIES: Final = 20
EXPLAINED: Final = 3
"""Number of findings whose history entries are shown; further ones are mostly repetitions."""


@dataclass(frozen=True, slots=True)
class Result:
    """Result of one scenario."""

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
    """Last entries of the history related to the findings; empty without findings."""

    @property
    def ok(self) -> bool:
        """True if there are no findings."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
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
    """Return the codes of a scenario's own products and their stock."""
    stem = "CHAOS-" + re.sub(r"[^A-Z]+", "-", scenario.name.upper())[:40]
    return {f"{stem}-{units}": units for units in UNITS}


async def play(stage: Stage, scenario: Scenario, *, seed: int, folder: Path, tell: Tell) -> Result:
    """Run one scenario in a running shop that has its products, and return the result."""
    began = time.monotonic()
    name = re.sub(r"[^a-z0-9]+", "-", scenario.name)
    recorder = Recorder(folder / f"{name}.jsonl")
    try:
        state = await _Play(stage, scenario, seed, recorder, tell).run()
    finally:
        recorder.close()
    history = recorder.entries
    findings = checker.check(history, state, zombies=scenario.zombies, clean=scenario.clean)
    counts = figures.sometimes(history, state)
    findings += [Finding("never", f"{need!r} never occurred") for need in scenario.needs if not counts[need]]
    words = [word for finding in findings[:EXPLAINED] for word in finding.words]
    return Result(
        scenario,
        tuple(findings),
        dict(sorted(counts.items())),
        figures.waits(history),
        sum(entry.type == "invoke" and entry.proc.startswith("shopper") for entry in history),
        time.monotonic() - began,
        state.rest_seconds,
        recorder.path,
        money.balance(state),
        tuple(about(history, words=words, last=SHOWN_ENTRIES)) if findings else (),
    )


async def _carts(witnesses: Sequence[Witness]) -> list[Mapping[str, Any] | None]:
    """Return every shopper's cart. One written by a zombie is retried five seconds after it was found."""
    end = time.monotonic() + ASKED_AGAIN_SECONDS
    while True:
        carts = await asyncio.gather(*(witness.cart(10) for witness in witnesses))
        if time.monotonic() > end or not any(cart and cart["pending"] for cart in carts):
            return carts
        await asyncio.sleep(1)


class _Play:
    """Run of one scenario."""

    def __init__(self, stage: Stage, scenario: Scenario, seed: int, recorder: Recorder, tell: Tell) -> None:
        self.stage, self.scenario, self.recorder, self.tell = stage, scenario, recorder, tell
        # Seeded by faults and seed: a scenario behaves the same alone as within a set.
        self.chance = random.Random(f"{seed} {' '.join(scenario.faults)}")  # noqa: S311 - reproducible, not secret
        self.products = list(products_of(scenario))

    async def run(self) -> Truth:
        await self._ready()
        settings = self.stage.settings
        since = await records.ends(settings)
        letters = await records.ends(settings, reading.LETTERS)
        async with Shop(self.stage.stack.http, chance=lambda: self.chance.random() / EAGERNESS) as shop:
            guests = await shop.guests(self.scenario.shoppers)
            cards = deal(self.chance)
            chances = [random.Random(self.chance.random()) for _ in guests]  # noqa: S311 - reproducible, not secret
            witnesses = [
                Witness(f"shopper-{number}", shop, guest, self.recorder, chance, cards)
                for number, (guest, chance) in enumerate(zip(guests, chances, strict=True))
            ]
            try:
                await asyncio.gather(*(witness.shopper.__aenter__() for witness in witnesses))
                scene = Scene(self.stage, self.recorder, witnesses, self.products, self.chance, since)
                await self._shop(scene)
                rest_seconds, restless = await self._rest(witnesses)
                replay = await self._replay(scene) if self.scenario.replayed else None
                shown = await self._shown(witnesses)
                carts = await _carts(witnesses)
            finally:
                await asyncio.gather(*(witness.leave() for witness in witnesses))
            self.tell("collecting state")
            users = [witness.user for witness in witnesses]
            (from_topics, orders), (violations, digest) = await asyncio.gather(
                self._topics_and_orders(shop, witnesses, since), self.stage.audit(self._grace())
            )
        unanswered = [
            f"{user} cannot read the cart: no answer" for user, cart in zip(users, carts, strict=True) if cart is None
        ]
        tables = await reading.books(self.stage, users, self.products)
        return Truth(
            ledger=tables.ledger,
            holds=tables.holds,
            reserved=tables.order_holds,
            revisions=tables.revisions,
            log=tables.log,
            accepted=from_topics.accepted,
            told=from_topics.outcomes,
            garbled=from_topics.unreadable,
            duplicates_counted=from_topics.duplicates,
            events=from_topics.events,
            payments=from_topics.payments,
            orders=orders,
            charges=charges(await self.stage.provider.history(), set(orders)),
            bad=scene.bad,
            dead=await reading.dead_letters(settings, letters, since),
            carts={user: cart for user, cart in zip(users, carts, strict=True) if cart is not None},
            shown=shown,
            audit=[*violations, *unanswered],
            locks=await reading.locks(self.stage),
            replay=Replay(replay.records, replay.before, digest, replay.rest_seconds, replay.restless)
            if replay
            else None,
            rest_seconds=rest_seconds,
            restless=restless,
        )

    async def _ready(self) -> None:
        end = time.monotonic() + REST_SECONDS
        while self.stage.unready():
            if time.monotonic() > end:
                raise ShopAwayError(f"the shop under test did not recover: {await self.stage.why_unready()}")
            await asyncio.sleep(0.2)

    async def _shop(self, scene: Scene) -> None:
        """Run load and faults; return when the last fault has ended."""
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
        """Run the given number of checkouts at a steady rate, and faults for as long as that takes."""
        tickets = list(range(self.scenario.checkouts))
        pause = len(scene.witnesses) / self.scenario.rate
        buying = asyncio.gather(*(witness.buy(self.products, tickets, pause) for witness in scene.witnesses))

        async def repeat_until_done(name: str) -> None:
            await asyncio.sleep(WARM_SECONDS)
            while not buying.done() or 0 < scene.turns < len(self.stage.services()):
                await strike(name, scene)
                self.tell(f"{name}; {len(tickets)} checkouts to go")
                wait = FAULTS[name].pause * (1 if name in scenarios.IN_TURN else SELDOM)
                await asyncio.sleep(self.chance.uniform(0.5, 1.5) * wait)

        try:
            await asyncio.gather(buying, *(repeat_until_done(name) for name in self.scenario.faults))
        finally:
            buying.cancel()
        self.recorder.note(NEMESIS, "heard", figures.CLOSING)

    async def _again_and_again(self, name: str, scene: Scene, end: float) -> None:
        """Inject a fault until the time is over, and at least until it took effect once."""
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
        """Wait until the shop is quiescent; return the seconds it took (`None` if it never was) and the last reason.

        Clients that reconnect and orders in progress are also waited for, but their time does not count as the shop's.
        """
        self.tell("waiting until quiescent")
        began, why = time.monotonic(), ""
        rest_seconds: float | None = None
        while (passed := time.monotonic() - began) < (
            patience if rest_seconds is None else max(patience, ORDERS_SECONDS)
        ):
            # Check before and after: work that ends while the lag is read has produced records that the lag does not
            # include.
            busy, problem = await self._busy(witnesses), await self._restless()
            busy = busy or await self._busy(witnesses)
            if problem and not (busy and rest_seconds is not None):
                why, rest_seconds = problem, None
            elif rest_seconds is None:
                rest_seconds = passed
            if not problem and not busy:
                break
            await asyncio.sleep(0.1)
        return rest_seconds, why

    async def _busy(self, witnesses: Sequence[Witness]) -> bool:
        """Return True if shoppers, their orders or the consequences of these are still in progress."""
        if any(witness.busy for witness in witnesses):
            return True
        try:
            return bool(await self.stage.under_way())
        except PostgresError:
            return True

    async def _shown(self, witnesses: Sequence[Witness]) -> dict[str, Basket]:
        """Return the cart shown by each client, once all equal Postgres or after a timeout.

        No request is sent meanwhile: its answer would deliver updates that the client should have received before.
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
        """Return the last audit's grace period: the default after zombies, which may write to the cart table late."""
        return None if self.scenario.zombies else GRACE_SECONDS

    async def _topics_and_orders(
        self, shop: Shop, witnesses: Sequence[Witness], since: records.Offsets
    ) -> tuple[reading.TopicRecords, dict[str, Mapping[str, Any]]]:
        users = frozenset(witness.user for witness in witnesses)
        from_topics = await reading.topics(self.stage.settings, since, users)
        return from_topics, await self._orders(shop, witnesses, from_topics.events)

    async def _orders(
        self, shop: Shop, witnesses: Sequence[Witness], events: Sequence[OrderEvent]
    ) -> dict[str, Mapping[str, Any]]:
        """Return every order as its shopper reads it, once all are as new as their events or after a timeout."""
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
        except Exception as error:  # noqa: BLE001 - a restarting broker makes its clients raise anything
            return f"the lag is unknown ({type(error).__name__})"
        behind = ", ".join(f"{number} by {consumer}" for consumer, number in lag.items())
        return f"records not committed: {behind}" if lag else ""

    async def _replay(self, scene: Scene) -> Replay:
        """Replay all records and wait until they are consumed. The digest afterwards is not known yet."""
        self.tell("replaying all records")
        _, digest = await self.stage.audit()
        self.recorder.note(NEMESIS, "invoke", "replay", value={"all": True})
        number = await records.replay(self.stage.settings, scene.since)
        self.recorder.note(NEMESIS, "ok", "replay", value={"replayed": number})
        rest_seconds, restless = await self._rest(scene.witnesses, REST_SECONDS + number / FED_A_SECOND)
        return Replay(number, digest, "", rest_seconds, restless)
