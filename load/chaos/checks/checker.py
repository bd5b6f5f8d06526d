"""Invariants that no fault may break. No I/O: a history and the observed state in, findings out.

Each function checks one invariant and is listed by name in `docs/chaos.md`. `tests/unit/test_chaos_checker.py` has a
history that violates each of them: a checker that cannot fail proves nothing.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from load.chaos.checks import availability, money, order_streams
from load.chaos.checks.observed_state import OUTCOME_TYPES, Key, LedgerRow, ObservedState, comparable_content
from load.chaos.checks.violation import Violation
from load.chaos.history import NEMESIS, HistoryEntry
from load.protocol import CHANGES

MAX_QUIESCENCE_SECONDS: Final = 15.0
NON_DISRUPTIVE_FAULTS: Final = frozenset({"expire", "cut-clients", "webhooks"})
"""Faults that do not keep any process from becoming ready."""


def check(
    history: Sequence[HistoryEntry], state: ObservedState, *, zombies: bool = False, clean: bool = False
) -> list[Violation]:
    """Return all violations.

    `zombies`: a process was frozen and resumed; clients ignore its late messages, so order is not checked. `clean`:
    only the shop and its shoppers have written to topics, so that no dead letter is expected.
    """
    findings = [
        *check_stock_balance(state),
        *check_outcomes(history, state),
        *check_holds(history, state),
        *check_nothing_pending(state),
        *check_replay(state),
        *check_views(state),
        *check_quiescence(history, state),
        *check_dead_letters(state, clean=clean),
        *check_availability(history, state),
        *money.check_money(state),
        *order_streams.check_order_streams(history, state),
        *check_webhooks(history),
        *(Violation("audit", violation) for violation in state.audit),
    ]
    return (
        findings
        if zombies
        else [*findings, *check_monotonic_reads(history), *order_streams.check_order_versions(history)]
    )


def check_stock_balance(state: ObservedState) -> Iterator[Violation]:
    """Check I1: held plus sold never exceeds received at any version, and finally held equals carts and orders."""
    for product, rows in groupby(sorted(state.ledger, key=lambda row: (row.product, row.version)), _product):
        received = held = sold = 0
        for number, row in enumerate(rows, 1):
            if row.version != number:
                yield Violation("I1", f"{product}: version {row.version}, expected {number}", (product,))
                break
            received, held, sold = received + row.received, held + row.held, sold + row.sold
            if held < 0 or sold < 0 or held + sold > received:
                numbers = f"received {received}, held {held}, sold {sold}"
                yield Violation("I1", f"{product} at version {number}: {numbers}", (product, row.id or ""))
        kept = sum(lines.get(product, 0) for each in (state.holds, state.order_holds) for lines in each.values())
        if kept != held:
            yield Violation("I1", f"{product}: {held} held by the ledger, {kept} by carts and orders", (product,))


def check_outcomes(history: Sequence[HistoryEntry], state: ObservedState) -> Iterator[Violation]:
    """Check I2: each accepted request has one outcome, the same in the log, on the topics and on every socket."""
    published: dict[Key, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for each in state.outcomes:
        published[each.key].append((each.topic, comparable_content(each.content)))
    answered = set()
    for key, frame in _answers(history):
        answered.add(key)
        published[key].append(("a socket", comparable_content(frame)))
    for key in {*state.accepted, *answered}:
        logged = state.log.get(key)
        if logged is None:
            yield Violation("I2", f"{key} was accepted but has no outcome", key)
            continue
        for where, reported in published[key]:
            if reported != comparable_content(logged):
                yield Violation("I2", f"{key}: {where} has {reported}, the log {comparable_content(logged)}", key)
                break
        if not any(where != "a socket" for where, _ in published[key]):
            yield Violation("I2", f"{key}: its outcome is missing on all topics", key)
    invoked = {(entry.user, entry.id) for entry in history if entry.type == "invoke" and entry.f in CHANGES}
    abandoned = {(entry.user, entry.id) for entry in history if entry.type == "info" and entry.value.get("gone")}
    for user, id_ in invoked - answered - abandoned:
        if user and id_:
            yield Violation("I2", f"{(user, id_)}: the shopper never received an outcome", (user, id_))


def _answers(history: Sequence[HistoryEntry]) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """Yield every outcome received on a socket, with its request."""
    for entry in history:
        type_ = entry.value.get("type")
        # Later statuses of an order have the id of its checkout, which may be another client's request.
        if (
            entry.user
            and entry.id
            and (
                (entry.type in {"ok", "heard"} and type_ in OUTCOME_TYPES) or (entry.type == "ok" and type_ == "order")
            )
        ):
            yield (entry.user, entry.id), entry.value


def check_holds(history: Sequence[HistoryEntry], state: ObservedState) -> Iterator[Violation]:
    """Check I3: each hold shown to a shopper is in the ledger, and each unit leaving a cart has a reason there."""
    line: dict[tuple[str, str], int] = defaultdict(int)
    after: dict[tuple[str, str, str], int] = {}
    for row in sorted(state.ledger, key=lambda row: (row.product, row.version)):
        if row.user is None or row.id is None:
            continue
        line[row.user, row.product] += row.held
        after[row.user, row.id, row.product] = line[row.user, row.product]
        if (row.user, row.id) not in state.log:
            yield Violation(
                "I3", f"{row.product} version {row.version}: {row.cause} has no decision in the log", (row.user, row.id)
            )
    for (user, product), quantity in line.items():
        holds = sum(each.get(user, {}).get(product, 0) for each in (state.holds, state.order_holds))
        if holds != quantity:
            yield Violation("I3", f"{user} holds {holds} of {product}, but {quantity} by the ledger", (user, product))
    yield from _reported_holds(history, state, after)


def _reported_holds(
    history: Sequence[HistoryEntry], state: ObservedState, after: Mapping[tuple[str, str, str], int]
) -> Iterator[Violation]:
    """Yield holds reported differently from the ledger. `after` is the quantity of the line after each request."""
    lines: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for (user, id_, product), quantity in after.items():
        if (version := state.log.get((user, id_), {}).get("version")) is not None:
            lines[user, product].append((version, quantity))
    ordered = _first_orders(state)
    for entry in history:
        if entry.type not in {"ok", "heard"} or entry.value.get("type") != "held" or not entry.user or not entry.id:
            continue
        product, reported, version = entry.value["product"], entry.value["line_quantity"], entry.value["version"]
        actual = after.get((entry.user, entry.id, product))
        # A shopper with an order may keep more than the line: the order has the rest.
        before_orders = version <= ordered.get(entry.user, math.inf)
        if entry.f == "add" and actual is None:
            yield Violation("I3", f"{entry.id} of {entry.user} was held, but is missing in the ledger", _of(entry))
        if entry.f == "set" and actual is None and before_orders:  # a `set` that changes nothing has no ledger row
            actual = _line_before(lines[entry.user, product], version)
        if actual is not None and (actual != reported if before_orders else actual < reported):
            yield Violation(
                "I3",
                f"{entry.id} of {entry.user}: reported a line of {reported}, by the ledger it was {actual}",
                _of(entry),
            )


def _first_orders(state: ObservedState) -> dict[str, int]:
    """Return, by shopper, the cart version at which the first order was committed.

    Outcomes up to this version were decided before: a checkout of the cart raises the version, and a checkout of items
    without the cart leaves it unchanged.
    """
    first: dict[str, int] = {}
    for (user, _), outcome in state.log.items():
        if outcome["type"] == "committed":
            first[user] = min(outcome["version"], first.get(user, outcome["version"]))
    return first


def _line_before(lines: Sequence[tuple[int, int]], version: int) -> int:
    """Return a line's quantity before a version, given its quantity at each version that changed it."""
    return max((each for each in lines if each[0] < version), default=(0, 0))[1]


def check_nothing_pending(state: ObservedState) -> Iterator[Violation]:
    """Check I4: nothing is pending and no lock is left when the shop is quiescent."""
    for user, cart in state.carts.items():
        if cart["pending"]:
            ids = [pending["id"] for pending in cart["pending"]]
            yield Violation("I4", f"{user} still has pending requests: {', '.join(ids)}", (user, *ids))
    for lock in state.locks:
        yield Violation("I4", f"the lock {lock} was never released")


def check_replay(state: ObservedState) -> Iterator[Violation]:
    """Check I5: a replay leaves stock, holds and decisions unchanged. I10 checks that the replay was consumed."""
    replay = state.replay
    if replay and not replay.records:
        yield Violation("I5", "the replay contained no records, so it tested nothing")
    if replay and replay.digest_before != replay.digest_after:
        yield Violation(
            "I5", f"the replay changed the digest from {replay.digest_before[:12]} to {replay.digest_after[:12]}"
        )


def check_views(state: ObservedState) -> Iterator[Violation]:
    """Check I8: the cart a shopper reads, and the one its client built from frames, equal Postgres at its revision."""
    for user, cart in state.carts.items():
        lines = {line["product"]: line["quantity"] for line in cart["lines"]}
        holds = dict(state.holds.get(user, {}))
        if lines != holds:
            yield Violation("I8", f"{user} reads {lines}, but holds {holds}", (user,))
        if cart["version"] != state.revisions.get(user, 0):
            revision = state.revisions.get(user, 0)
            yield Violation("I8", f"{user} reads version {cart['version']}, but the revision is {revision}", (user,))
    for user, shown in state.client_carts.items():
        holds, revision = dict(state.holds.get(user, {})), state.revisions.get(user, 0)
        if (shown.version, dict(shown.lines)) != (revision, holds):
            shows = f"shows {dict(shown.lines)} at version {shown.version}"
            yield Violation("I8", f"the client of {user} {shows}, but held is {holds} at revision {revision}", (user,))


def check_monotonic_reads(history: Sequence[HistoryEntry]) -> Iterator[Violation]:
    """Check I9: a read is not older than versions seen before on the socket, and one version is one change."""
    newest: dict[str, int] = defaultdict(int)
    at_ask: dict[Key, tuple[str, int]] = {}
    session: dict[str, str] = {}
    changes: dict[tuple[str, int], tuple[str | None, str]] = {}
    for entry in history:
        if entry.user is None:
            continue
        if entry.session:
            session[entry.user] = entry.session
        if entry.type == "invoke" and entry.f == "cart" and entry.id:
            now = session.get(entry.user, "")
            at_ask[entry.user, entry.id] = (now, newest[now])
        version = entry.value.get("version")
        if version is None or not entry.session or entry.type == "invoke":
            continue
        type_ = entry.value.get("type")
        if entry.f == "cart" and entry.type == "ok" and entry.id:
            asked_on, least = at_ask.get((entry.user, entry.id), ("", 0))
            if asked_on == entry.session and version < least:
                yield Violation("I9", f"{entry.user} had seen version {least} and then read {version}", _of(entry))
        if type_ in {"held", "expired"}:
            change = (entry.id, str(type_))
            if changes.setdefault((entry.user, version), change) != change:
                yield Violation("I9", f"version {version} of {entry.user}'s cart belongs to two changes", _of(entry))
        newest[entry.session] = max(newest[entry.session], version)


def check_quiescence(history: Sequence[HistoryEntry], state: ObservedState) -> Iterator[Violation]:
    """Check I10: everything is ready, consumed and answered 15 s after the last fault, and after a replay.

    Each fault waits for the processes it hit, so their time is over by then.
    """
    yield from _missing(history)
    if state.replay and state.replay.rest_seconds is None:
        yield Violation("I10", f"the replay was not consumed completely: {state.replay.unrest_reason}")
    if state.rest_seconds is None:
        yield Violation("I10", f"the shop never became quiescent: {state.unrest_reason}")
    elif state.rest_seconds > MAX_QUIESCENCE_SECONDS:
        yield Violation(
            "I10",
            f"the shop became quiescent only after {state.rest_seconds:.1f} s; last reason: {state.unrest_reason}",
        )


def _missing(history: Sequence[HistoryEntry]) -> Iterator[Violation]:
    """Yield processes that did not return in time after a fault, while no other fault could have kept them."""
    disturbed: dict[str, bool] = {}
    for entry in history:
        if entry.proc != NEMESIS or entry.type == "heard" or entry.f in NON_DISRUPTIVE_FAULTS:
            continue
        if entry.type == "invoke":
            disturbed = dict.fromkeys(disturbed, True) | {entry.f: bool(disturbed)}
        elif not disturbed.pop(entry.f, True):
            for name in entry.value.get("missing", ()):
                yield Violation("I10", f"{name} did not become ready again after {entry.f}", (name,))


def check_dead_letters(state: ObservedState, *, clean: bool = False) -> Iterator[Violation]:
    """Check I11: every record was processed or dead-lettered, only invalid ones were, and the shop wrote none."""
    bad = {(each.topic, each.partition, each.offset): each.description for each in state.planted}
    for (topic, partition, offset), description in bad.items():
        if (topic, partition, offset) not in state.dead_letters:
            yield Violation(
                "I11", f"{topic} {partition}/{offset} ({description}) was neither processed nor dead-lettered"
            )
    for topic, partition, offset in sorted(state.dead_letters - bad.keys()) if clean else ():
        yield Violation("I11", f"{topic} {partition}/{offset} was dead-lettered, although it is valid")
    for position in state.undecodable:
        yield Violation("I11", f"{position} is a response that cannot be decoded")
    on_carts = {outcome.key for outcome in state.outcomes if outcome.topic.startswith("cart.")}
    for outcome in state.outcomes:
        if outcome.topic.startswith("inventory.") and outcome.key not in on_carts:
            yield Violation("I11", f"{outcome.key}: inventory published its outcome, the cart did not", outcome.key)


def check_webhooks(history: Sequence[HistoryEntry]) -> Iterator[Violation]:
    """Check that no webhook with a foreign signature or an old timestamp was accepted."""
    for entry in history:
        for answer, number in entry.value.items() if entry.proc == NEMESIS else ():
            if answer in {"forged 202", "stale 202"}:
                yield Violation("forged", f"{number} {answer.partition(' ')[0]} webhooks were accepted")


def check_availability(history: Sequence[HistoryEntry], state: ObservedState) -> Iterator[Violation]:
    """Check that each available quantity reported lies between the bounds of what can have been held then."""
    for broken in availability.impossible_reports(history, state):
        yield Violation("bounds", broken.detail, (broken.product, broken.id))


def _product(row: LedgerRow) -> str:
    return row.product


def _of(entry: HistoryEntry) -> tuple[str, ...]:
    return tuple(filter(None, (entry.user, entry.id)))
