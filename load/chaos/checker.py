"""The invariants: what no fault may break. Pure; a history and the truth in, findings out.

Each function checks one and is called by its name in `docs/chaos.md`. `tests/unit/test_chaos_checker.py` shows each of
them a history that breaks it: a checker that cannot fail proves nothing.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from load.chaos import bounds, money, streams
from load.chaos.finding import Finding
from load.chaos.history import NEMESIS, Entry
from load.chaos.truth import DECIDED, Change, Key, Truth, content
from load.protocol import CHANGES

REST_SECONDS: Final = 15.0
GENTLE: Final = frozenset({"expire", "cut-clients", "webhooks"})
"""Faults that keep no process from getting ready."""


def check(history: Sequence[Entry], truth: Truth, *, zombies: bool = False, clean: bool = False) -> list[Finding]:
    """Everything that is wrong.

    With `zombies`, a process was frozen and went on: what it says late, clients ignore. With `clean`, nobody but the
    shop and its shoppers has put anything on a topic, so that nothing is to be put aside.
    """
    findings = [
        *oversold(truth),
        *outcomes(history, truth),
        *lost_holds(history, truth),
        *ghosts(truth),
        *replays(truth),
        *views(truth),
        *rest(history, truth),
        *skipped(truth, clean=clean),
        *bounds_broken(history, truth),
        *money.balanced(truth),
        *streams.whole(history, truth),
        *forged(history),
        *(Finding("audit", violation) for violation in truth.audit),
    ]
    return findings if zombies else [*findings, *backwards(history), *streams.never_back(history)]


def oversold(truth: Truth) -> Iterator[Finding]:
    """I1: at every version of a product, what is held and sold is there; at the end, it is what carts hold."""
    for product, rows in groupby(sorted(truth.ledger, key=lambda row: (row.product, row.version)), _product):
        received = held = sold = 0
        for number, row in enumerate(rows, 1):
            if row.version != number:
                yield Finding("I1", f"{product}: version {row.version} where {number} should be", (product,))
                break
            received, held, sold = received + row.received, held + row.held, sold + row.sold
            if held < 0 or sold < 0 or held + sold > received:
                numbers = f"received {received}, held {held}, sold {sold}"
                yield Finding("I1", f"{product} at version {number}: {numbers}", (product, row.id or ""))
        kept = sum(lines.get(product, 0) for each in (truth.holds, truth.reserved) for lines in each.values())
        if kept != held:
            yield Finding("I1", f"{product}: the ledger says {held} are held, carts and orders hold {kept}", (product,))


def outcomes(history: Sequence[Entry], truth: Truth) -> Iterator[Finding]:
    """I2: each accepted request has one outcome, the same in the log, on the topics and on every socket."""
    told: dict[Key, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for each in truth.told:
        told[each.key].append((each.topic, content(each.content)))
    answered = set()
    for key, frame in _answers(history):
        answered.add(key)
        told[key].append(("a socket", content(frame)))
    for key in {*truth.accepted, *answered}:
        kept = truth.log.get(key)
        if kept is None:
            yield Finding("I2", f"{key} was accepted and has no outcome", key)
            continue
        for where, telling in told[key]:
            if telling != content(kept):
                yield Finding("I2", f"{key}: {where} says {telling}, the log {content(kept)}", key)
                break
        if not any(where != "a socket" for where, _ in told[key]):
            yield Finding("I2", f"{key}: its outcome is on no topic", key)
    invoked = {(entry.user, entry.id) for entry in history if entry.type == "invoke" and entry.f in CHANGES}
    given_up = {(entry.user, entry.id) for entry in history if entry.type == "info" and entry.value.get("gone")}
    for user, id_ in invoked - answered - given_up:
        if user and id_:
            yield Finding("I2", f"{(user, id_)}: its shopper waited for it, and was never told", (user, id_))


def _answers(history: Sequence[Entry]) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """Every outcome that came on a socket, with the request it is of."""
    for entry in history:
        told = entry.value.get("type")
        # An order moves on under the id of its checkout, and may answer other ids than one's own.
        if (
            entry.user
            and entry.id
            and ((entry.type in {"ok", "heard"} and told in DECIDED) or (entry.type == "ok" and told == "order"))
        ):
            yield (entry.user, entry.id), entry.value


def lost_holds(history: Sequence[Entry], truth: Truth) -> Iterator[Finding]:
    """I3: a hold that a shopper saw stands in the ledger, and every unit that left a cart again has a reason there."""
    line: dict[tuple[str, str], int] = defaultdict(int)
    after: dict[tuple[str, str, str], int] = {}
    for row in sorted(truth.ledger, key=lambda row: (row.product, row.version)):
        if row.user is None or row.id is None:
            continue
        line[row.user, row.product] += row.held
        after[row.user, row.id, row.product] = line[row.user, row.product]
        if (row.user, row.id) not in truth.log:
            yield Finding(
                "I3", f"{row.product} version {row.version}: {row.cause} without a decision", (row.user, row.id)
            )
    for (user, product), quantity in line.items():
        holds = sum(each.get(user, {}).get(product, 0) for each in (truth.holds, truth.reserved))
        if holds != quantity:
            yield Finding("I3", f"{user} holds {holds} of {product}, its ledger comes to {quantity}", (user, product))
    yield from _told_holds(history, truth, after)


def _told_holds(history: Sequence[Entry], truth: Truth, after: Mapping[tuple[str, str, str], int]) -> Iterator[Finding]:
    """Holds that were told otherwise than they stand in the ledger. `after`: the line after each of its requests."""
    lines: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for (user, id_, product), quantity in after.items():
        if (version := truth.log.get((user, id_), {}).get("version")) is not None:
            lines[user, product].append((version, quantity))
    ordered = _first_orders(truth)
    for entry in history:
        if entry.type not in {"ok", "heard"} or entry.value.get("type") != "held" or not entry.user or not entry.id:
            continue
        product, said, version = entry.value["product"], entry.value["line_quantity"], entry.value["version"]
        stands = after.get((entry.user, entry.id, product))
        # Who has made an order may keep more than the line: the order has it.
        before_orders = version <= ordered.get(entry.user, math.inf)
        if entry.f == "add" and stands is None:
            yield Finding("I3", f"{entry.id} of {entry.user} was held, the ledger knows nothing of it", _of(entry))
        if entry.f == "set" and stands is None and before_orders:  # where it changed nothing, no row says so
            stands = _line_before(lines[entry.user, product], version)
        if stands is not None and (stands != said if before_orders else stands < said):
            yield Finding("I3", f"{entry.id} of {entry.user}: told a line of {said}, it was {stands}", _of(entry))


def _first_orders(truth: Truth) -> dict[str, int]:
    """Shopper → the version of the cart with which they had an order for the first time.

    Whatever the cart was told at up to this version was decided before: an order takes the cart, which raises the
    version, or units from the shelves, which leaves it.
    """
    first: dict[str, int] = {}
    for (user, _), outcome in truth.log.items():
        if outcome["type"] == "committed":
            first[user] = min(outcome["version"], first.get(user, outcome["version"]))
    return first


def _line_before(lines: Sequence[tuple[int, int]], version: int) -> int:
    """How long a line was before the cart came to a version, given the line at those versions that changed it."""
    return max((each for each in lines if each[0] < version), default=(0, 0))[1]


def ghosts(truth: Truth) -> Iterator[Finding]:
    """I4: at rest nothing is pending and no lock is left."""
    for user, cart in truth.carts.items():
        if cart["pending"]:
            ids = [pending["id"] for pending in cart["pending"]]
            yield Finding("I4", f"{user} still waits for {', '.join(ids)}", (user, *ids))
    for lock in truth.locks:
        yield Finding("I4", f"the lock {lock} has no owner")


def replays(truth: Truth) -> Iterator[Finding]:
    """I5: a replay of everything leaves stock, holds and decisions as they were. That it was read is asked by I10."""
    replay = truth.replay
    if replay and not replay.records:
        yield Finding("I5", "nothing was fed back, so nothing is known of replays")
    if replay and replay.before != replay.after:
        yield Finding("I5", f"a replay changed the digest from {replay.before[:12]} to {replay.after[:12]}")


def views(truth: Truth) -> Iterator[Finding]:
    """I8: what a shopper reads, and what their client made of the frames, is what Postgres holds, at its revision."""
    for user, cart in truth.carts.items():
        lines = {line["product"]: line["quantity"] for line in cart["lines"]}
        holds = dict(truth.holds.get(user, {}))
        if lines != holds:
            yield Finding("I8", f"{user} reads {lines} and holds {holds}", (user,))
        if cart["version"] != truth.revisions.get(user, 0):
            revision = truth.revisions.get(user, 0)
            yield Finding("I8", f"{user} reads version {cart['version']}, the revision is {revision}", (user,))
    for user, shown in truth.shown.items():
        holds, revision = dict(truth.holds.get(user, {})), truth.revisions.get(user, 0)
        if (shown.version, dict(shown.lines)) != (revision, holds):
            shows = f"shows {dict(shown.lines)} at version {shown.version}"
            yield Finding("I8", f"the client of {user} {shows}, held is {holds} at {revision}", (user,))


def backwards(history: Sequence[Entry]) -> Iterator[Finding]:
    """I9: who was told of a version on a socket, and then asks, reads none older; and one version is one change."""
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
        told = entry.value.get("type")
        if entry.f == "cart" and entry.type == "ok" and entry.id:
            asked_on, least = at_ask.get((entry.user, entry.id), ("", 0))
            if asked_on == entry.session and version < least:
                yield Finding("I9", f"{entry.user} was told of {least}, asked, and read {version}", _of(entry))
        if told in {"held", "expired"}:
            change = (entry.id, str(told))
            if changes.setdefault((entry.user, version), change) != change:
                yield Finding("I9", f"version {version} of {entry.user} is two changes", _of(entry))
        newest[entry.session] = max(newest[entry.session], version)


def rest(history: Sequence[Entry], truth: Truth) -> Iterator[Finding]:
    """I10: fifteen seconds after the last fault everything is ready, read and answered, and so is all that is fed back.

    Who was hit and did not come back is told by the fault itself, which waits for them: their time is over by then.
    """
    yield from _missing(history)
    if truth.replay and truth.replay.rest_seconds is None:
        yield Finding("I10", f"what was fed back was not read to its end: {truth.replay.restless}")
    if truth.rest_seconds is None:
        yield Finding("I10", f"it never came to rest: {truth.restless}")
    elif truth.rest_seconds > REST_SECONDS:
        yield Finding("I10", f"it came to rest after {truth.rest_seconds:.1f} s; last: {truth.restless}")


def _missing(history: Sequence[Entry]) -> Iterator[Finding]:
    """Processes that did not come back in time after a fault, while there was no other that could have kept them."""
    disturbed: dict[str, bool] = {}
    for entry in history:
        if entry.proc != NEMESIS or entry.type == "heard" or entry.f in GENTLE:
            continue
        if entry.type == "invoke":
            disturbed = dict.fromkeys(disturbed, True) | {entry.f: bool(disturbed)}
        elif not disturbed.pop(entry.f, True):
            for name in entry.value.get("missing", ()):
                yield Finding("I10", f"{name} was not ready again long after {entry.f}", (name,))


def skipped(truth: Truth, *, clean: bool = False) -> Iterator[Finding]:
    """I11: every record was acted on or lies among the dead letters, bad ones alone, and none of the bad is ours."""
    bad = {(each.topic, each.partition, each.offset): each.what for each in truth.bad}
    for (topic, partition, offset), what in bad.items():
        if (topic, partition, offset) not in truth.dead:
            yield Finding("I11", f"{topic} {partition}/{offset} ({what}) was neither acted on nor put aside")
    for topic, partition, offset in sorted(truth.dead - bad.keys()) if clean else ():
        yield Finding("I11", f"{topic} {partition}/{offset} was put aside, though nothing is wrong with it")
    for place in truth.garbled:
        yield Finding("I11", f"{place} is a response that nobody can read")
    on_carts = {told.key for told in truth.told if told.topic.startswith("cart.")}
    for told in truth.told:
        if told.topic.startswith("inventory.") and told.key not in on_carts:
            yield Finding("I11", f"{told.key}: inventory told its outcome, no cart did", told.key)


def forged(history: Sequence[Entry]) -> Iterator[Finding]:
    """No webhook is taken that a stranger signed, or that is of another day."""
    for entry in history:
        for answer, number in entry.value.items() if entry.proc == NEMESIS else ():
            if answer in {"forged 202", "stale 202"}:
                yield Finding("forged", f"{number} webhooks were taken that are {answer.partition(' ')[0]}")


def bounds_broken(history: Sequence[Entry], truth: Truth) -> Iterator[Finding]:
    """What anybody was told is available must lie between the most and the least that can have been held then."""
    for broken in bounds.broken(history, truth):
        yield Finding("bounds", broken.detail, (broken.product, broken.id))


def _product(row: Change) -> str:
    return row.product


def _of(entry: Entry) -> tuple[str, ...]:
    return tuple(filter(None, (entry.user, entry.id)))
