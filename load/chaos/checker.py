"""The invariants: what no fault may break. Pure; a history and the truth in, findings out.

Each function checks one and is called by its name in `docs/chaos.md`. `tests/unit/test_chaos_checker.py` shows each of
them a history that breaks it: a checker that cannot fail proves nothing.
"""

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


def check(history: Sequence[Entry], truth: Truth, *, zombies: bool = False) -> list[Finding]:
    """Everything that is wrong. With `zombies`, a process was frozen and went on: what it says late, clients ignore."""
    findings = [
        *oversold(truth),
        *outcomes(history, truth),
        *lost_holds(history, truth),
        *ghosts(truth),
        *replays(truth),
        *views(truth),
        *rest(truth),
        *skipped(truth),
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
    ordering = {user for (user, _), outcome in truth.log.items() if outcome["type"] == "committed"}
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
    for entry in history:
        if entry.type in {"ok", "heard"} and entry.value.get("type") == "held" and entry.user and entry.id:
            stands = after.get((entry.user, entry.id, entry.value["product"]))
            said = entry.value["line_quantity"]
            if entry.f == "add" and stands is None:
                yield Finding("I3", f"{entry.id} of {entry.user} was held, the ledger knows nothing of it", _of(entry))
            # Who has made an order may keep more than the line: the order has it.
            if stands is not None and (stands < said if entry.user in ordering else stands != said):
                yield Finding("I3", f"{entry.id} of {entry.user}: told a line of {said}, it was {stands}", _of(entry))


def ghosts(truth: Truth) -> Iterator[Finding]:
    """I4: at rest nothing is pending and no lock is left."""
    for user, cart in truth.carts.items():
        if cart["pending"]:
            ids = [pending["id"] for pending in cart["pending"]]
            yield Finding("I4", f"{user} still waits for {', '.join(ids)}", (user, *ids))
    for lock in truth.locks:
        yield Finding("I4", f"the lock {lock} has no owner")


def replays(truth: Truth) -> Iterator[Finding]:
    """I5: a replay of everything leaves stock, holds and decisions as they were."""
    if truth.digests and truth.digests[0] != truth.digests[1]:
        yield Finding("I5", f"a replay changed the digest from {truth.digests[0][:12]} to {truth.digests[1][:12]}")


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
        if user in truth.shown and dict(truth.shown[user]) != holds:
            yield Finding("I8", f"the client of {user} shows {dict(truth.shown[user])}, held is {holds}", (user,))


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


def rest(truth: Truth) -> Iterator[Finding]:
    """I10: fifteen seconds after the last fault everything is ready, read and answered."""
    if truth.rest_seconds is None:
        yield Finding("I10", f"it never came to rest: {truth.restless}")
    elif truth.rest_seconds > REST_SECONDS:
        yield Finding("I10", f"it came to rest after {truth.rest_seconds:.1f} s; last: {truth.restless}")


def skipped(truth: Truth) -> Iterator[Finding]:
    """I11: every record was acted on or lies among the dead letters."""
    for bad in truth.bad:
        if (bad.topic, bad.partition, bad.offset) not in truth.dead:
            place = f"{bad.topic} {bad.partition}/{bad.offset}"
            yield Finding("I11", f"{place} ({bad.what}) was neither acted on nor put aside")
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
