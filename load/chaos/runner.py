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

from load.chaos import collect, scenarios
from load.chaos.checks import checker, coverage, money
from load.chaos.checks.observed_state import CartView, ObservedState, OrderEvent, ReplayCheck
from load.chaos.checks.violation import Violation
from load.chaos.clients.checkouts import assign_cards
from load.chaos.clients.payment_provider import charges_by_payment
from load.chaos.clients.recording_client import BACKOFF_DIVISOR, RecordingClient
from load.chaos.faults import records
from load.chaos.faults.context import FaultContext
from load.chaos.faults.nemesis import FAULTS, inject
from load.chaos.history import NEMESIS, HistoryEntry, HistoryRecorder, excerpt
from load.chaos.scenarios import Scenario
from load.chaos.shop_under_test import ShopUnderTest
from load.http_client import ShopClient, ShopUnavailableError

UNITS: Final = (6, 12, 24, 48, 200, 20_000)
"""Stock of each product: some sell out at once, some never."""
WARM_SECONDS: Final = 1.0
COOL_SECONDS: Final = 1.5
EXTRA_RETRY_SECONDS: Final = 60.0
"""Extra time for a fault that had no effect so far, because other faults were in the way."""
QUIESCENCE_TIMEOUT_SECONDS: Final = 40.0
"""Timeout for the shop to become quiescent."""
ORDERS_TIMEOUT_SECONDS: Final = 90.0
"""Timeout for orders to end, after the last one was placed and the last fault is over."""
PENDING_TIMEOUT_SECONDS: Final = 10.0
"""Time for which carts may still list decided requests as pending. The late table write of a zombie is taken over by
the worker that gets its partitions, until the requests in it are retried."""
VIEW_TIMEOUT_SECONDS: Final = 20.0
"""Timeout for the views of shoppers and their clients to become current: a client may be reconnecting, and a change
hidden by a zombie reappears when its request is retried."""
MIN_REPLAY_RATE: Final = 200
"""Minimum rate at which replayed records must be consumed, in addition to the usual timeout."""
GRACE_SECONDS: Final = 2.0
"""Minimum age of rows that the last audit checks. A quiescent shop has no message in flight; only the pollers for
due rows, which run twice per second, may still act."""
OTHER_FAULTS_FACTOR: Final = 15
"""Factor by which other faults are less frequent next to one that hits every process in turn."""
SHOWN_ENTRIES: Final = 20
EXPLAINED_FINDINGS: Final = 3
"""Number of findings whose history entries are shown; further ones are mostly repetitions."""


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """Result of one scenario."""

    scenario: Scenario
    findings: tuple[Violation, ...]
    counts: dict[str, int]
    waits: coverage.WaitTimes
    requests: int
    seconds: float
    rest_seconds: float | None
    history: Path
    balance: money.Balance
    end: tuple[HistoryEntry, ...]
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


ReportProgress = Callable[[str], None]


def scenario_products(scenario: Scenario) -> dict[str, int]:
    """Return the codes of a scenario's own products and their stock."""
    stem = "CHAOS-" + re.sub(r"[^A-Z]+", "-", scenario.name.upper())[:40]
    return {f"{stem}-{units}": units for units in UNITS}


async def run_scenario(
    shop: ShopUnderTest, scenario: Scenario, *, seed: int, folder: Path, report_progress: ReportProgress
) -> ScenarioResult:
    """Run one scenario in a running shop that has its products, and return the result."""
    started = time.monotonic()
    name = re.sub(r"[^a-z0-9]+", "-", scenario.name)
    recorder = HistoryRecorder(folder / f"{name}.jsonl")
    try:
        state = await _ScenarioRun(shop, scenario, seed, recorder, report_progress).run()
    finally:
        recorder.close()
    history = recorder.entries
    findings = checker.check(history, state, zombies=scenario.has_zombies, clean=scenario.is_clean)
    counts = coverage.count_events(history, state)
    findings += [
        Violation("never", f"{need!r} never occurred") for need in scenario.required_events if not counts[need]
    ]
    words = [word for finding in findings[:EXPLAINED_FINDINGS] for word in finding.words]
    return ScenarioResult(
        scenario,
        tuple(findings),
        dict(sorted(counts.items())),
        coverage.measure_waits(history),
        sum(entry.type == "invoke" and entry.proc.startswith("shopper") for entry in history),
        time.monotonic() - started,
        state.rest_seconds,
        recorder.path,
        money.sum_balance(state),
        tuple(excerpt(history, words=words, last=SHOWN_ENTRIES)) if findings else (),
    )


async def _carts(clients: Sequence[RecordingClient]) -> list[Mapping[str, Any] | None]:
    """Return every shopper's cart. One written by a zombie is retried five seconds after it was found."""
    end = time.monotonic() + PENDING_TIMEOUT_SECONDS
    while True:
        carts = await asyncio.gather(*(client.read_cart(10) for client in clients))
        if time.monotonic() > end or not any(cart and cart["pending"] for cart in carts):
            return carts
        await asyncio.sleep(1)


class _ScenarioRun:
    """Run of one scenario."""

    def __init__(
        self,
        shop: ShopUnderTest,
        scenario: Scenario,
        seed: int,
        recorder: HistoryRecorder,
        report_progress: ReportProgress,
    ) -> None:
        self.shop, self.scenario, self.recorder, self.report_progress = shop, scenario, recorder, report_progress
        # Seeded by faults and seed: a scenario behaves the same alone as within a set.
        self.chance = random.Random(f"{seed} {' '.join(scenario.faults)}")  # noqa: S311 - reproducible, not secret
        self.products = list(scenario_products(scenario))

    async def run(self) -> ObservedState:
        await self._ready()
        settings = self.shop.settings
        since = await records.end_offsets(settings)
        dead_letter_offsets = await records.end_offsets(settings, collect.DEAD_LETTER_TOPICS)
        async with ShopClient(self.shop.stack.http, chance=lambda: self.chance.random() / BACKOFF_DIVISOR) as http:
            guests = await http.create_guests(self.scenario.shoppers)
            cards = assign_cards(self.chance)
            chances = [random.Random(self.chance.random()) for _ in guests]  # noqa: S311 - reproducible, not secret
            clients = [
                RecordingClient(f"shopper-{number}", http, guest, self.recorder, chance, cards)
                for number, (guest, chance) in enumerate(zip(guests, chances, strict=True))
            ]
            try:
                await asyncio.gather(*(client.shopper.__aenter__() for client in clients))
                context = FaultContext(self.shop, self.recorder, clients, self.products, self.chance, since)
                await self._run_load_and_faults(context)
                rest_seconds, restless = await self._wait_until_quiescent(clients)
                replay = await self._replay_records(context) if self.scenario.replays_records else None
                shown = await self._wait_for_views(clients)
                carts = await _carts(clients)
            finally:
                await asyncio.gather(*(client.close() for client in clients))
            self.report_progress("collecting state")
            users = [client.user for client in clients]
            (from_topics, orders), (violations, digest) = await asyncio.gather(
                self._topics_and_orders(http, clients, since), self.shop.audit(self._audit_grace())
            )
        unanswered = [
            f"{user} cannot read the cart: no answer" for user, cart in zip(users, carts, strict=True) if cart is None
        ]
        tables = await collect.read_inventory_tables(self.shop, users, self.products)
        return ObservedState(
            ledger=tables.ledger,
            holds=tables.holds,
            order_holds=tables.order_holds,
            revisions=tables.revisions,
            log=tables.log,
            accepted=from_topics.accepted,
            outcomes=from_topics.outcomes,
            undecodable=from_topics.unreadable,
            duplicates_counted=from_topics.duplicates,
            events=from_topics.events,
            payments=from_topics.payments,
            orders=orders,
            charges=charges_by_payment(await self.shop.provider.history(), set(orders)),
            planted=context.planted,
            dead_letters=await collect.read_dead_letters(settings, dead_letter_offsets, since),
            carts={user: cart for user, cart in zip(users, carts, strict=True) if cart is not None},
            client_carts=shown,
            audit=[*violations, *unanswered],
            locks=await collect.find_stale_locks(self.shop),
            replay=ReplayCheck(replay.records, replay.digest_before, digest, replay.rest_seconds, replay.unrest_reason)
            if replay
            else None,
            rest_seconds=rest_seconds,
            unrest_reason=restless,
        )

    async def _ready(self) -> None:
        end = time.monotonic() + QUIESCENCE_TIMEOUT_SECONDS
        while self.shop.unready_services():
            if time.monotonic() > end:
                raise ShopUnavailableError(f"the shop under test did not recover: {await self.shop.describe_unready()}")
            await asyncio.sleep(0.2)

    async def _run_load_and_faults(self, context: FaultContext) -> None:
        """Run load and faults; return when the last fault has ended."""
        if self.scenario.checkouts:
            await self._run_checkouts(context)
            return
        closing = asyncio.Event()
        shopping = [asyncio.create_task(client.shop_until(self.products, closing)) for client in context.clients]
        end = time.monotonic() + self.scenario.seconds
        try:
            await asyncio.sleep(WARM_SECONDS)
            await asyncio.gather(*(self._repeat_fault(name, context, end) for name in self.scenario.faults))
            await asyncio.sleep(max(COOL_SECONDS, end - time.monotonic()))
        finally:
            closing.set()
            self.recorder.record(NEMESIS, "heard", coverage.CLOSING)
            await asyncio.gather(*shopping)

    async def _run_checkouts(self, context: FaultContext) -> None:
        """Run the given number of checkouts at a steady rate, and faults for as long as that takes."""
        tickets = list(range(self.scenario.checkouts))
        pause = len(context.clients) / self.scenario.rate
        buying = asyncio.gather(
            *(client.check_out_repeatedly(self.products, tickets, pause) for client in context.clients)
        )

        async def repeat_until_done(name: str) -> None:
            await asyncio.sleep(WARM_SECONDS)
            while not buying.done() or 0 < context.turns < len(self.shop.services()):
                await inject(name, context)
                self.report_progress(f"{name}; {len(tickets)} checkouts to go")
                wait = FAULTS[name].mean_pause * (1 if name in scenarios.ROUND_ROBIN_FAULTS else OTHER_FAULTS_FACTOR)
                await asyncio.sleep(self.chance.uniform(0.5, 1.5) * wait)

        try:
            await asyncio.gather(buying, *(repeat_until_done(name) for name in self.scenario.faults))
        finally:
            buying.cancel()
        self.recorder.record(NEMESIS, "heard", coverage.CLOSING)

    async def _repeat_fault(self, name: str, context: FaultContext, end: float) -> None:
        """Inject a fault until the time is over, and at least until it took effect once."""
        pause, done = FAULTS[name].mean_pause, False
        while True:
            self.report_progress(name)
            done = await inject(name, context) or done
            wait = self.chance.uniform(0.5, 1.5) * pause
            over = time.monotonic() + wait - end
            if over > -COOL_SECONDS if done else over > EXTRA_RETRY_SECONDS:
                return
            await asyncio.sleep(wait)

    async def _wait_until_quiescent(
        self, clients: Sequence[RecordingClient], timeout_seconds: float = QUIESCENCE_TIMEOUT_SECONDS
    ) -> tuple[float | None, str]:
        """Wait until the shop is quiescent; return the seconds it took (`None` if it never was) and the last reason.

        Clients that reconnect and orders in progress are also waited for, but their time does not count as the shop's.
        """
        self.report_progress("waiting until quiescent")
        started, reason = time.monotonic(), ""
        rest_seconds: float | None = None
        while (passed := time.monotonic() - started) < (
            timeout_seconds if rest_seconds is None else max(timeout_seconds, ORDERS_TIMEOUT_SECONDS)
        ):
            # Check before and after: work that ends while the lag is read has produced records that the lag does not
            # include.
            busy, problem = await self._is_busy(clients), await self._unrest_reason()
            busy = busy or await self._is_busy(clients)
            if problem and not (busy and rest_seconds is not None):
                reason, rest_seconds = problem, None
            elif rest_seconds is None:
                rest_seconds = passed
            if not problem and not busy:
                break
            await asyncio.sleep(0.1)
        return rest_seconds, reason

    async def _is_busy(self, clients: Sequence[RecordingClient]) -> bool:
        """Return True if shoppers, their orders or the consequences of these are still in progress."""
        if any(client.is_busy for client in clients):
            return True
        try:
            return bool(await self.shop.count_open_work())
        except PostgresError:
            return True

    async def _wait_for_views(self, clients: Sequence[RecordingClient]) -> dict[str, CartView]:
        """Return the cart shown by each client, once all equal Postgres or after a timeout.

        No request is sent meanwhile: its answer would deliver updates that the client should have received before.
        """
        end = time.monotonic() + VIEW_TIMEOUT_SECONDS
        users = [client.user for client in clients]
        while True:
            held = await collect.read_carts(self.shop, users)
            shown = {client.user: client.cart_view for client in clients}
            if shown == held or time.monotonic() > end:
                return shown
            await asyncio.sleep(0.2)

    def _audit_grace(self) -> float | None:
        """Return the last audit's grace period: the default after zombies, which may write to the cart table late."""
        return None if self.scenario.has_zombies else GRACE_SECONDS

    async def _topics_and_orders(
        self, http: ShopClient, clients: Sequence[RecordingClient], since: records.Offsets
    ) -> tuple[collect.TopicRecords, dict[str, Mapping[str, Any]]]:
        users = frozenset(client.user for client in clients)
        from_topics = await collect.read_topics(self.shop.settings, since, users)
        return from_topics, await self._orders(http, clients, from_topics.events)

    async def _orders(
        self, http: ShopClient, clients: Sequence[RecordingClient], events: Sequence[OrderEvent]
    ) -> dict[str, Mapping[str, Any]]:
        """Return every order as its shopper reads it, once all are as new as their events or after a timeout."""
        newest: dict[str, int] = {}
        for event in events:
            newest[event.order] = max(event.version, newest.get(event.order, 0))
        end = time.monotonic() + VIEW_TIMEOUT_SECONDS
        while True:
            tokens = [client.shopper.guest.token for client in clients]
            lists = await asyncio.gather(*(http.list_all("/v1/orders?limit=100", token) for token in tokens))
            read = {order["order_id"]: order for each in lists for order in each}
            behind = [
                order for order, version in newest.items() if read.get(order, {}).get("order_version", 0) < version
            ]
            if not behind or time.monotonic() > end:
                return read
            await asyncio.sleep(0.5)

    async def _unrest_reason(self) -> str:
        if self.shop.unready_services() and (unready := await self.shop.describe_unready()):
            return unready
        try:
            lag = await collect.read_lag(self.shop.settings)
        except Exception as error:  # noqa: BLE001 - a restarting broker makes its clients raise anything
            return f"the lag is unknown ({type(error).__name__})"
        behind = ", ".join(f"{number} by {consumer}" for consumer, number in lag.items())
        return f"records not committed: {behind}" if lag else ""

    async def _replay_records(self, context: FaultContext) -> ReplayCheck:
        """Replay all records and wait until they are consumed. The digest afterwards is not known yet."""
        self.report_progress("replaying all records")
        _, digest = await self.shop.audit()
        self.recorder.record(NEMESIS, "invoke", "replay", value={"all": True})
        number = await records.replay_records(self.shop.settings, context.since)
        self.recorder.record(NEMESIS, "ok", "replay", value={"replayed": number})
        rest_seconds, restless = await self._wait_until_quiescent(
            context.clients, QUIESCENCE_TIMEOUT_SECONDS + number / MIN_REPLAY_RATE
        )
        return ReplayCheck(number, digest, "", rest_seconds, restless)
