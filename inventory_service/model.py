"""The rules of holding stock, on one page: what a batch of requests does to carts and shelves.

Everything here is plain computing over a `State` that the store has locked and read. `fold` decides requests in the
order of their arrival; `decide` says what one of them comes to, `evolve` makes it so. `now` is Postgres' clock, read
once for the whole batch; nothing is sent, stored or looked up from here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from inventory_service.content import Content, content
from inventory_service.messages import (
    MAX_LINES,
    MAX_QUANTITY,
    Available,
    BadField,
    Cart,
    Check,
    Clear,
    Expire,
    Expired,
    Fail,
    GivenUp,
    Held,
    Hold,
    IdReused,
    Line,
    LookedUp,
    Lookup,
    Money,
    Outcome,
    Refused,
    Remove,
    Removed,
    Request,
    Snapshot,
    SnapshotTaken,
    Stored,
    StoredOutcome,
)

EXPIRY_MARK: Final = "⏳"
"""Stands before an expiry's id in the log. No client's id can hold it, so nobody can take the id of a coming expiry
beforehand and so keep a cart alive for ever."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How long things last."""

    idle: timedelta = timedelta(minutes=15)
    """A cart lives this long after each granted add or set,"""
    longest: timedelta = timedelta(minutes=60)
    """and at most this long after its first."""
    remembered: timedelta = timedelta(days=7)
    """A request that the log doesn't know and that was accepted longer ago is no longer done."""
    ahead: timedelta = timedelta(minutes=5)
    """A request that was accepted further in the future than this can't be right."""


# ---- state ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Shelf:
    """The stock row of one product."""

    received: int
    held: int
    sold: int
    price: Money
    version: int
    for_sale: bool = True

    @property
    def available(self) -> int:
        """Units that are neither held nor sold."""
        return self.received - self.held - self.sold


@dataclass(slots=True)
class Holder:
    """One shopper's cart. `revision` grows by one with each request that changes it."""

    revision: int = 0
    first_held_at: datetime | None = None
    expires_at: datetime | None = None
    lines: dict[str, Line] = field(default_factory=dict)
    _view: Cart | None = None

    def cart(self) -> Cart:
        """The cart as it is; made once a revision, however many answers carry it."""
        if self._view is None or self._view.revision != self.revision:
            lines = tuple(line for _, line in sorted(self.lines.items()))
            self._view = Cart(revision=self.revision, expires_at=self.expires_at, lines=lines)
        return self._view


class Entry(NamedTuple):
    """What the log keeps of one request."""

    content: Content
    outcome: StoredOutcome


Key = tuple[str, str]
"""The place of a request in the log: shopper and id; an expiry's id is marked."""


class LedgerRow(NamedTuple):
    """A change of what is held of a product: `held` is the difference, `version` the product's after it."""

    product: str
    version: int
    key: Key
    cause: str
    held: int


@dataclass(slots=True)
class State:
    """What the locks cover, and what the fold has changed in it; each key is written once, however often it changed."""

    now: datetime
    holders: dict[str, Holder]
    shelves: dict[str, Shelf]
    log: dict[Key, Entry]
    expiry_ids: Mapping[str, str] = field(default_factory=dict)
    """The id of the expiry of each cart that is due, by shopper."""
    rules: Rules = field(default_factory=Rules)
    changed_holders: set[str] = field(default_factory=set)
    changed_lines: set[tuple[str, str]] = field(default_factory=set)
    ledger: list[LedgerRow] = field(default_factory=list)
    decided: list[tuple[Key, Entry, int]] = field(default_factory=list)


# ---- commands and events --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """A request with its id and the time of its first acceptance."""

    id: str
    accepted: datetime
    request: Request

    @property
    def key(self) -> Key:
        """Where the log keeps this request, if it keeps it."""
        mark = EXPIRY_MARK if isinstance(self.request, Expire) else ""
        return self.request.user_id, mark + self.id


class LineSet(NamedTuple):
    """From now on, the line of a product has this quantity; 0: it is gone."""

    product: str
    quantity: int


class Decision(NamedTuple):
    """What a request comes to: the outcome, the lines it changes, and when the cart then expires (none: as before)."""

    outcome: StoredOutcome
    changes: tuple[LineSet, ...] = ()
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to request `id`, which is not `command.id` when a request met a cart that was due."""

    command: Command
    id: str
    outcome: Outcome
    cart: Cart
    replayed: bool = False


def is_due(holder: Holder, now: datetime) -> bool:
    """Whether the cart has come to its end."""
    return holder.expires_at is not None and holder.expires_at <= now


# ---- decide and evolve ----------------------------------------------------------------------------------------------


def decide(state: State, holder: Holder, request: Hold | Remove | Clear | Fail, accepted: datetime) -> Decision:
    """What `request` comes to for a cart that isn't due; all or nothing."""
    product = getattr(request, "product", None)
    if state.now - accepted > state.rules.remembered:
        return Decision(Refused(product=product, reason="expired"))
    match request:
        case Hold(mode="set", quantity=0) | Remove() | Clear():
            gone = [*holder.lines] if product is None else [product] if product in holder.lines else []
            return Decision(
                Removed(product=product, version=holder.revision + bool(gone)), tuple(LineSet(each, 0) for each in gone)
            )
        case Hold():
            return _hold(state, holder, request)
        case Fail():
            return Decision(Refused(product=content(request).get("product"), reason="failed"))


def _hold(state: State, holder: Holder, request: Hold) -> Decision:
    product, shelf = request.product, state.shelves.get(request.product)
    line = holder.lines.get(product)
    before = line.quantity if line else 0
    after = request.quantity + (before if request.mode == "add" else 0)
    if after > before:  # to ask for no more than one has is always granted
        if shelf is None or not shelf.for_sale:
            return Decision(Refused(product=product, reason="unknown_product"))
        if after > MAX_QUANTITY or (not line and len(holder.lines) >= MAX_LINES):
            return Decision(Refused(product=product, reason="limit"))
        if after - before > shelf.available:
            return Decision(Refused(product=product, reason="out_of_stock", available=shelf.available))
    until = min(state.now + state.rules.idle, (holder.first_held_at or state.now) + state.rules.longest)
    until = _to_milliseconds(until)
    held = Held(
        product=product,
        quantity=request.quantity,
        line_quantity=after,
        expires_at=until,
        version=holder.revision + 1,
    )
    return Decision(held, (LineSet(product, after),), until)


def evolve(state: State, key: Key, cause: str, decision: Decision) -> None:
    """Make a decision so: one revision up, however many lines it changes; none if it changes nothing."""
    if not decision.changes:
        return
    user, holder = key[0], state.holders[key[0]]
    for product, quantity in decision.changes:
        shelf, line = state.shelves[product], holder.lines.pop(product, None)
        difference = quantity - (line.quantity if line else 0)
        if quantity:
            price = line.price if line else shelf.price  # a line keeps the price it was first granted at
            holder.lines[product] = Line(product=product, quantity=quantity, price=price)
        if difference:
            shelf.held += difference
            shelf.version += 1
            state.ledger.append(LedgerRow(product, shelf.version, key, cause, difference))
            state.changed_lines.add((user, product))
    if decision.until:
        holder.first_held_at = holder.first_held_at or _to_milliseconds(state.now)
        holder.expires_at = decision.until
    if not holder.lines:
        holder.first_held_at = holder.expires_at = None
    holder.revision += 1
    state.changed_holders.add(user)


def _note(state: State, key: Key, noted: Content, decision: Decision) -> None:
    evolve(state, key, noted["type"], decision)
    entry = state.log[key] = Entry(noted, decision.outcome)
    state.decided.append((key, entry, state.holders[key[0]].revision))


# ---- a batch --------------------------------------------------------------------------------------------------------


def fold(state: State, batch: Iterable[Command]) -> list[Answer]:
    """Decide a batch in the order of its arrival; the answers in the order in which they came true.

    A request that meets a due cart is preceded by the answer that the cart has expired. A knock that finds nothing
    due, and was not answered before, has no answer.
    """
    return [answer for command in batch for answer in _answers(state, command)]


def _answers(state: State, command: Command) -> Iterator[Answer]:
    request, user = command.request, command.request.user_id
    holder, known = state.holders[user], state.log.get(command.key)
    # A failed request touches nothing but the log: what made it fail may be this very cart.
    if is_due(holder, state.now) and not isinstance(request, Fail):
        yield _expire(state, holder, command)
    match request:
        case Check(product=product):
            shelf = state.shelves.get(product)
            found = shelf.available if shelf and shelf.for_sale else None
            yield Answer(command, command.id, Available(product=product, available=found), holder.cart())
        case Snapshot():
            yield Answer(command, command.id, SnapshotTaken(), holder.cart())
        case Lookup(ids=ids):
            yield Answer(command, command.id, _look_up(state, user, ids), holder.cart())
        case Expire():  # the cart, if it was due, has been expired above, under its own id
            if known is not None:
                yield Answer(command, command.id, known.outcome, holder.cart(), replayed=True)
        case _:
            yield _change(state, holder, command, request, known)


def _change(
    state: State, holder: Holder, command: Command, request: Hold | Remove | Clear | Fail, known: Entry | None
) -> Answer:
    asked = content(request)
    if known is not None:
        same = known.content == asked
        return Answer(command, command.id, known.outcome if same else IdReused(), holder.cart(), replayed=same)
    if command.accepted - state.now > state.rules.ahead:
        decision = Decision(BadField(field="time"))  # remembered: a replay, when its time has come, must not do it
    else:
        decision = decide(state, holder, request, command.accepted)
    _note(state, command.key, asked, decision)
    return Answer(command, command.id, decision.outcome, holder.cart())


def _expire(state: State, holder: Holder, command: Command) -> Answer:
    """End a due cart, as a decision of its own that happens and is told once, whoever found it."""
    user, due = command.request.user_id, holder.expires_at or state.now
    gone = tuple(GivenUp(product=line.product, quantity=line.quantity) for line in holder.lines.values())
    decision = Decision(
        Expired(lines=gone, version=holder.revision + 1), tuple(LineSet(line.product, 0) for line in gone)
    )
    id_ = state.expiry_ids[user]
    _note(state, (user, EXPIRY_MARK + id_), {"type": "expire", "due": due.astimezone(UTC).isoformat()}, decision)
    return Answer(command, id_, decision.outcome, holder.cart())


def _look_up(state: State, user: str, ids: tuple[str, ...]) -> LookedUp:
    found = {id_: state.log[user, id_].outcome for id_ in ids if (user, id_) in state.log}
    return LookedUp(
        outcomes=tuple(Stored(id=id_, outcome=outcome) for id_, outcome in found.items()),
        unknown=tuple(id_ for id_ in dict.fromkeys(ids) if id_ not in found),
    )


def _to_milliseconds(moment: datetime) -> datetime:
    """Times are told in milliseconds, so they are kept in milliseconds: what a shopper sees is what is stored."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
