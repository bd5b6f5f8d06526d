"""The checker of chaos runs passes a right history, and fails each history in which one promise is broken.

A checker that cannot fail proves nothing: every invariant has its violation here, and nothing else may be found in it.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from load.chaos.checks import availability, coverage
from load.chaos.checks.checker import check, check_holds
from load.chaos.checks.observed_state import (
    CartView,
    LedgerRow,
    ObservedState,
    PlantedRecord,
    PublishedOutcome,
    ReplayCheck,
)
from load.chaos.faults.nemesis import FAULTS
from load.chaos.history import NEMESIS, HistoryEntry, HistoryRecorder, excerpt, read_history
from load.chaos.scenarios import QUICK, REPLAYED_FAULTS, full_set, scenario_of

TEAPOT = "TEAPOT"
SECOND = 1_000_000_000


def held(version: int, line: int, quantity: int | None = None) -> dict[str, Any]:
    return {"type": "held", "product": TEAPOT, "quantity": quantity or line, "line_quantity": line, "version": version}


def frame(id_: str, outcome: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": id_, **outcome, **more}


def said(second: float, id_: str, user: str = "ann", f: str = "add") -> HistoryEntry:
    return HistoryEntry(int(second * SECOND), "shopper-1", "invoke", f, id=id_, user=user, product=TEAPOT)


def answered(second: float, id_: str, value: dict[str, Any], user: str = "ann", f: str = "add") -> HistoryEntry:
    at = int(second * SECOND)
    return HistoryEntry(
        at, "shopper-1", "ok", f, id=id_, user=user, product=TEAPOT, session="s1", value=frame(id_, value)
    )


def cart(version: int, **lines: int) -> dict[str, Any]:
    told = [{"product": product, "quantity": quantity} for product, quantity in lines.items()]
    return {"type": "cart", "version": version, "lines": told, "pending": []}


def struck(second: float, type_: Any, fault: str, **value: Any) -> HistoryEntry:
    return HistoryEntry(int(second * SECOND), NEMESIS, type_, fault, value=value)


REFUSED = {"type": "refused", "product": TEAPOT, "reason": "out_of_stock", "available": 2}
HISTORY = [
    said(1, "a1"),
    answered(2, "a1", held(1, 3)),
    said(3, "b1", "bob"),
    answered(4, "b1", REFUSED, "bob"),
    said(5, "a2", f="set"),
    HistoryEntry(6 * SECOND, "shopper-1", "info", "set", id="a2", user="ann"),
    answered(9, "a2", held(2, 1), f="set"),
    said(10, "c1", f="cart"),
    HistoryEntry(11 * SECOND, "shopper-1", "ok", "cart", id="c1", user="ann", session="s1", value=cart(2, TEAPOT=1)),
    said(12, "k1", "bob", f="check"),
    answered(13, "k1", {"type": "availability", "product": TEAPOT, "available": 4}, "bob", "check"),
]
LOG = {("ann", "a1"): held(1, 3), ("bob", "b1"): REFUSED, ("ann", "a2"): held(2, 1)}
TRUTH = ObservedState(
    ledger=(
        LedgerRow(TEAPOT, 1, None, None, "seed", 5, 0, 0),
        LedgerRow(TEAPOT, 2, "ann", "a1", "add", 0, 3, 0),
        LedgerRow(TEAPOT, 3, "ann", "a2", "set", 0, -2, 0),
    ),
    holds={"ann": {TEAPOT: 1}},
    revisions={"ann": 2, "bob": 0},
    log=LOG,
    accepted=frozenset(LOG),
    outcomes=tuple(
        PublishedOutcome(topic, user, id_, outcome)
        for (user, id_), outcome in LOG.items()
        for topic in ("inventory.responses.v1", "cart.responses.v1")
    ),
    planted=(PlantedRecord("cart.requests.v1", 3, 7, "not JSON"),),
    dead_letters=frozenset({("cart.requests.v1", 3, 7)}),
    carts={"ann": cart(2, TEAPOT=1), "bob": cart(0)},
    client_carts={"ann": CartView(2, {TEAPOT: 1}), "bob": CartView()},
    replay=ReplayCheck(300, "d", "d", 1.0),
    rest_seconds=1.0,
)


def test_nothing_is_wrong_with_a_right_history() -> None:
    assert check(HISTORY, TRUTH) == []


def but(**changes: Any) -> tuple[Sequence[HistoryEntry], ObservedState]:
    return HISTORY, dataclasses.replace(TRUTH, **changes)


def ledger(*rows: LedgerRow) -> tuple[LedgerRow, ...]:
    return (*TRUTH.ledger, *rows)


def replayed(**changes: Any) -> tuple[Sequence[HistoryEntry], ObservedState]:
    return but(replay=dataclasses.replace(TRUTH.replay or ReplayCheck(0, "", "", None), **changes))


def decided(
    history: Sequence[HistoryEntry], id_: str, outcome: dict[str, Any], **changes: Any
) -> tuple[list[HistoryEntry], ObservedState]:
    """Add one more decision about Ann's cart, which determines its version."""
    version = outcome["version"]
    told = [PublishedOutcome(topic, "ann", id_, outcome) for topic in ("inventory.responses.v1", "cart.responses.v1")]
    seen = {
        "log": {**LOG, ("ann", id_): outcome},
        "accepted": TRUTH.accepted | {("ann", id_)},
        "outcomes": (*TRUTH.outcomes, *told),
        "revisions": {**TRUTH.revisions, "ann": version},
        "carts": {**TRUTH.carts, "ann": cart(version, TEAPOT=1)},
        "client_carts": {**TRUTH.client_carts, "ann": CartView(version, {TEAPOT: 1})},
    }
    return [*HISTORY, *history], dataclasses.replace(TRUTH, **{**seen, **changes})


def set_again(line: int) -> tuple[list[HistoryEntry], ObservedState]:
    """Ann sets her line to its own quantity, which adds no ledger row, and gets the answer `line`."""
    told = held(3, line)
    return decided([said(14, "a3", f="set"), answered(15, "a3", told, f="set")], "a3", told)


def then_ordered(line: int) -> tuple[list[HistoryEntry], ObservedState]:
    """Ann orders one more unit without the cart, after a request answered with a line of `line`."""
    told, order = held(2, line), {"type": "committed", "order_id": "o", "version": 2}
    rows = ledger(LedgerRow(TEAPOT, 4, "ann", "o1", "checkout", 0, 1, 0))
    history, truth = decided([], "o1", order, ledger=rows, order_holds={"ann": {TEAPOT: 1}})
    return [
        answered(9, "a2", told, f="set") if entry.id == "a2" and entry.type == "ok" else entry for entry in history
    ], (dataclasses.replace(truth, log={**truth.log, ("ann", "a2"): told}, outcomes=told_as(truth, "a2", told)))


def told_as(truth: ObservedState, id_: str, outcome: dict[str, Any]) -> tuple[PublishedOutcome, ...]:
    return tuple(dataclasses.replace(told, content=outcome) if told.id == id_ else told for told in truth.outcomes)


BROKEN: dict[str, tuple[str, Callable[[], tuple[Sequence[HistoryEntry], ObservedState]]]] = {
    "more held than received, for a moment": (
        "I1",
        lambda: but(
            ledger=(
                TRUTH.ledger[0],
                LedgerRow(TEAPOT, 2, "ann", "a1", "add", 0, 6, 0),
                LedgerRow(TEAPOT, 3, "ann", "a2", "set", 0, -5, 0),
            )
        ),
    ),
    "a version of a product is missing": ("I1", lambda: but(ledger=(*TRUTH.ledger[:2],))),
    "units that are held by no cart": (
        "I1",
        lambda: but(ledger=ledger(LedgerRow(TEAPOT, 4, None, None, "somebody's hand", 0, 1, 0))),
    ),
    "an accepted request without an outcome": ("I2", lambda: but(accepted=TRUTH.accepted | {("bob", "lost")})),
    "a topic that tells another outcome": (
        "I2",
        lambda: but(
            outcomes=(*TRUTH.outcomes, PublishedOutcome("cart.responses.v1", "bob", "b1", {**REFUSED, "available": 1}))
        ),
    ),
    "a socket that hears another outcome": (
        "I2",
        lambda: ([*HISTORY, answered(14, "b1", {"type": "removed", "version": 3}, "bob")], TRUTH),
    ),
    "an outcome that only a socket heard": (
        "I2",
        lambda: but(outcomes=tuple(told for told in TRUTH.outcomes if told.id != "b1")),
    ),
    "a shopper who was never told": ("I2", lambda: ([*HISTORY, said(14, "b2", "bob")], TRUTH)),
    "a hold that the ledger does not know": (
        "I3",
        lambda: but(
            ledger=(
                TRUTH.ledger[0],
                LedgerRow(TEAPOT, 2, "ann", "other", "add", 0, 3, 0),
                TRUTH.ledger[2],
            )
        ),
    ),
    "a line that was told longer than it was": (
        "I3",
        lambda: but(
            ledger=(
                TRUTH.ledger[0],
                LedgerRow(TEAPOT, 2, "ann", "a1", "add", 0, 2, 0),
                LedgerRow(TEAPOT, 3, "ann", "a2", "set", 0, -1, 0),
            )
        ),
    ),
    "a line that was told as changed, and stayed as it was": ("I3", lambda: set_again(2)),
    "a line that was told shorter than it was, before there was an order": ("I3", lambda: then_ordered(0)),
    "a unit that left a cart without a decision": (
        "I3",
        lambda: but(
            ledger=ledger(
                LedgerRow(TEAPOT, 4, "ann", "why", "remove", 0, -1, 0),
                LedgerRow(TEAPOT, 5, "ann", "a2", "set", 0, 1, 0),
            )
        ),
    ),
    "a request that is pending for ever": (
        "I4",
        lambda: but(carts={**TRUTH.carts, "bob": {**cart(0), "pending": [{"id": "b1"}]}}),
    ),
    "a lock that nobody owns": ("I4", lambda: but(locks=("lock:TEAPOT",))),
    "a replay that changed something": ("I5", lambda: replayed(digest_after="e")),
    "a replay of nothing": ("I5", lambda: replayed(records=0)),
    "a replay that was not read": ("I10", lambda: replayed(rest_seconds=None, unrest_reason="7 by cart")),
    "a cart that is not what is held": ("I8", lambda: but(carts={**TRUTH.carts, "ann": cart(2, TEAPOT=3)})),
    "a cart at an old version": ("I8", lambda: but(carts={**TRUTH.carts, "ann": cart(1, TEAPOT=1)})),
    "a client that was led astray": ("I8", lambda: but(client_carts={**TRUTH.client_carts, "ann": CartView(2)})),
    "a client that was never told": (
        "I8",
        lambda: but(client_carts={**TRUTH.client_carts, "ann": CartView(1, {TEAPOT: 1})}),
    ),
    "a client that was told of what never was": (
        "I8",
        lambda: but(client_carts={**TRUTH.client_carts, "bob": CartView(1)}),
    ),
    "a read older than what was told before": (
        "I9",
        lambda: (
            [
                *HISTORY,
                said(14, "c2", f="cart"),
                HistoryEntry(15 * SECOND, "shopper-1", "ok", "cart", id="c2", user="ann", session="s1", value=cart(1)),
            ],
            TRUTH,
        ),
    ),
    "two changes at one version": (
        "I9",
        lambda: (
            [
                *HISTORY,
                HistoryEntry(
                    14 * SECOND,
                    "shopper-1",
                    "heard",
                    "expired",
                    user="ann",
                    session="s1",
                    value={"type": "expired", "version": 2},
                ),
            ],
            TRUTH,
        ),
    ),
    "no rest": ("I10", lambda: but(rest_seconds=None, unrest_reason="3 records not acknowledged")),
    "rest too late": ("I10", lambda: but(rest_seconds=15.5)),
    "a process that did not come back": (
        "I10",
        lambda: (
            [*HISTORY, struck(14, "invoke", "kill-cart"), struck(75, "ok", "kill-cart", missing=["cart-1"])],
            TRUTH,
        ),
    ),
    "a record that was stepped over": ("I11", lambda: but(dead_letters=frozenset())),
    "a response that nobody can read": ("I11", lambda: but(undecodable=("cart.responses.v1 3/9",))),
    "a decision that no cart told": (
        "I11",
        lambda: but(
            outcomes=(*TRUTH.outcomes, PublishedOutcome("inventory.responses.v1", "bob", "b9", REFUSED)),
            log={**TRUTH.log, ("bob", "b9"): REFUSED},
        ),
    ),
    "a number that cannot have been": (
        "bounds",
        lambda: (
            [
                *HISTORY,
                said(14, "k2", "bob", "check"),
                answered(15, "k2", {"type": "availability", "product": TEAPOT, "available": 2}, "bob", "check"),
            ],
            TRUTH,
        ),
    ),
    "an audit that finds something": ("audit", lambda: but(audit=("stock of TEAPOT differs",))),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_promise_is_found(what: str) -> None:
    invariant, broken = BROKEN[what]
    assert {finding.invariant for finding in check(*broken())} >= {invariant}


@pytest.mark.parametrize("what", [what for what, (invariant, _) in BROKEN.items() if invariant not in {"I1", "I3"}])
def test_and_only_that_one(what: str) -> None:
    invariant, broken = BROKEN[what]
    assert {finding.invariant for finding in check(*broken())} == {invariant}


def test_holds_that_are_right_are_not_found() -> None:
    assert check(*set_again(1)) == []  # there was nothing to change
    assert list(check_holds(*then_ordered(1))) == []  # changes of the line by an order are not a violation


def test_a_good_record_is_not_dead_lettered_without_bad_ones() -> None:
    assert check(HISTORY, TRUTH, clean=True) == []
    history, truth = but(dead_letters=TRUTH.dead_letters | {("cart.requests.v1", 3, 8)})
    assert check(history, truth) == []
    assert [finding.invariant for finding in check(history, truth, clean=True)] == ["I11"]


@pytest.mark.parametrize(("second", "ended"), [(13, 20), (20, 30), (74, 80)])
def test_a_process_that_another_fault_may_delay_is_not_missing(second: float, ended: float) -> None:
    missing = [struck(14, "invoke", "kill-cart"), struck(75, "info", "kill-cart", missing=["cart-1"])]
    between = [struck(second, "invoke", "kill-kafka"), struck(ended, "ok", "kill-kafka")]
    history = sorted([*HISTORY, *missing, *between], key=lambda entry: entry.t_ns)
    assert check(history, TRUTH) == []
    gentle = [dataclasses.replace(entry, f="expire") if entry.f == "kill-kafka" else entry for entry in history]
    assert [finding.detail for finding in check(gentle, TRUTH)] == ["cart-1 did not become ready again after kill-cart"]


def test_late_reads_of_a_zombie_are_ignored() -> None:
    history, truth = BROKEN["a read older than what was told before"][1]()
    assert check(history, truth, zombies=True) == []


# ---- bounds ---------------------------------------------------------------------------------------------------------


def test_honest_answers_are_always_possible() -> None:
    """A true register, random windows around each effect, questions at random: the bound never cries wolf."""
    for seed in range(200):
        chance = random.Random(seed)
        history, truth = _honest(chance)
        assert list(availability.impossible_reports(history, truth)) == []


def test_a_wrong_answer_while_nothing_moves_is_never_possible() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        history, truth = _honest(chance)
        lines = sum(truth.holds["total"].values())
        wrong = 100 - lines + chance.choice((-2, -1, 1, 2))
        late = [said(1000, "q", "eve", "check"), answered(1001, "q", _available(wrong), "eve", "check")]
        assert [each.id for each in availability.impossible_reports([*history, *late], truth)] == ["q"]


def _available(number: int) -> dict[str, Any]:
    return {"type": "availability", "product": TEAPOT, "available": number}


def _honest(chance: random.Random) -> tuple[list[HistoryEntry], ObservedState]:
    entries: list[HistoryEntry] = []
    log: dict[tuple[str, str], dict[str, Any]] = {}
    rows = [LedgerRow(TEAPOT, 1, None, None, "seed", 100, 0, 0)]
    lines = {"ann": 0, "bob": 0}
    for number in range(30):
        effect = 10.0 * number + 50
        begun, done = effect - chance.uniform(0, 40), effect + chance.uniform(0, 40)
        user, id_ = chance.choice(("ann", "bob")), f"r{number}"
        if chance.random() < 0.4:
            entries.append(said(begun, id_, "eve", "check"))
            entries.append(answered(done, id_, _available(100 - sum(lines.values())), "eve", "check"))
            continue
        before, lines[user] = lines[user], chance.randint(0, 9)
        rows.append(LedgerRow(TEAPOT, len(rows) + 1, user, id_, "set", 0, lines[user] - before, 0))
        outcome = held(len(rows), lines[user]) if lines[user] else {"type": "removed", "version": len(rows)}
        log[user, id_] = outcome
        entries.append(said(begun, id_, user, "set"))
        if chance.random() < 0.8:  # else nobody hears the answer
            entries.append(answered(done, id_, outcome, user, "set"))
        if lines[user] and chance.random() < 0.2:  # and some of it is sold, which frees nothing
            rows.append(LedgerRow(TEAPOT, len(rows) + 1, user, f"{id_}/sell", "sell", 0, -1, 1))
    entries.sort(key=lambda entry: entry.t_ns)
    heard = {(entry.user, entry.id) for entry in entries if entry.type == "ok"}
    for (user, id_), outcome in log.items():
        if (user, id_) not in heard:  # finally every outcome arrives, so that the last lines are certain
            entries.append(answered(900, id_, outcome, user, "set"))
    return entries, ObservedState(ledger=rows, log=log, holds={"total": lines})


# ---- figures, history, scenarios ------------------------------------------------------------------------------------


def test_outcomes_are_counted() -> None:
    killed = struck(7, "ok", "kill-cart", victim="cart-1", restarts=2)
    counts = coverage.count_events([*HISTORY, killed], TRUTH)
    assert (counts["held"], counts["refused"], counts["known later"], counts["restarts"]) == (2, 1, 1, 2)
    assert (counts["kill-cart"], counts["dead letters"], counts["expired"]) == (1, 1, 0)


def test_waits_are_measured() -> None:
    assert coverage.measure_waits(HISTORY) == coverage.WaitTimes(silence=5.0, longest=4.0, median=1.0)
    closed = HistoryEntry(8 * SECOND, NEMESIS, "heard", coverage.CLOSING)
    history = sorted([*HISTORY, closed], key=lambda entry: entry.t_ns)
    assert coverage.measure_waits(history).silence == 4.0  # answers after the end of the load do not count


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    ticks = iter(range(100))
    recorder = HistoryRecorder(tmp_path / "history.jsonl", clock=lambda: next(ticks))
    recorder.record("shopper-1", "invoke", "add", id="a1", user="ann", product=TEAPOT, quantity=2)
    recorder.record(NEMESIS, "ok", "kill-cart", value={"victim": "cart-1"})
    recorder.close()
    assert read_history(recorder.path) == recorder.entries
    assert [entry.t_ns for entry in recorder.entries] == [1, 2]


def test_an_excerpt_of_a_history_is_about_the_fault() -> None:
    history = sorted([*HISTORY, struck(7, "ok", "kill-cart")], key=lambda entry: entry.t_ns)
    shown = excerpt(history, words=("b1",), last=20)
    assert [(entry.proc, entry.id) for entry in shown] == [("shopper-1", "b1"), ("shopper-1", "b1"), (NEMESIS, None)]
    assert [(entry.type, entry.id) for entry in excerpt(history, words=(), last=2)] == [("info", "a2"), ("ok", None)]


def test_every_fault_stands_in_the_full_set_and_a_seed_repeats_it() -> None:
    *once, _ = full_set(1)
    assert sorted(fault for scenario in once for fault in scenario.faults) == sorted(FAULTS)
    assert {scenario.name for scenario in once if scenario.replays_records} == {
        scenario.name for scenario in once if not REPLAYED_FAULTS.isdisjoint(scenario.faults)
    }
    for scenario in once:
        assert not (scenario.is_clean and scenario.replays_records)
    assert {scenario.name for scenario in once if not scenario.is_clean} == {"records", "orders again"}
    assert full_set(7) == full_set(7)
    assert len({full_set(seed)[-1].faults for seed in range(10)}) > 5
    for scenario in (*QUICK, scenario_of(["expire"], 5)):
        assert set(scenario.required_events) > {"held", "refused", "delivered", *scenario.faults}
