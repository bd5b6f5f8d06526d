"""The rules of holding stock: what a batch of requests does to carts and shelves.

Everything here is plain computing over a `State` that the store has locked and read. `fold` decides requests in the
order of their arrival; `decide` says what one of them comes to, or `orders` if it is about one, and `evolve` makes it
so. `now` is Postgres' clock, read once for the whole batch; nothing is sent, stored or looked up from here.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from inventory_service import orders
from inventory_service.content import Content, Logged, content
from inventory_service.messages import (
    MAX_LINES,
    MAX_QUANTITY,
    Available,
    BadField,
    Check,
    Clear,
    Commit,
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
    ReadReservation,
    RefusalReason,
    Refused,
    ReleaseOrder,
    Remove,
    Removed,
    Restock,
    Sell,
    Snapshot,
    SnapshotTaken,
    Stored,
)
from inventory_service.state import (
    EXPIRY_MARK,
    Answer,
    Command,
    Decision,
    Due,
    Entry,
    Holder,
    Key,
    LedgerRow,
    LineSet,
    Moved,
    State,
    is_due,
    to_milliseconds,
)

# ---- decide and evolve ----------------------------------------------------------------------------------------------


def decide(  # noqa: PLR0911 - one per request
    state: State, holder: Holder, request: Logged, accepted: datetime
) -> Decision:
    """What `request` comes to for a cart that isn't due; all or nothing."""
    age = state.now - accepted
    if not -state.rules.ahead <= age <= state.rules.remembered and not orders.is_ageless(state, request):
        if age < timedelta(0):
            return Decision(BadField(field="time"))  # remembered: a replay, when its time has come, must not do it
        return Decision(_refused(request, "expired"))
    match request:  # the most frequent first: to find that a message is of another class is slow
        case Hold() if request.quantity:
            return _hold(state, holder, request)
        case Hold(product=product) | Remove(product=product):
            gone = [holder.lines[product]] if product in holder.lines else []
            return _given_back(gone, Removed(product=product, version=holder.revision + bool(gone)))
        case Clear():
            gone = [*holder.lines.values()]
            return _given_back(gone, Removed(version=holder.revision + bool(gone)))
        case Commit():
            return orders.commit(state, holder, request)
        case Sell() | ReleaseOrder() | Restock():
            return orders.step(state, holder, request)
        case Fail():
            return Decision(_refused(request, "failed"))


def _refused(request: Logged, reason: RefusalReason) -> Refused:
    meant = content(request)
    return Refused(product=meant.get("product"), reason=reason, order_id=meant.get("order_id"))


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
    held = Held(
        product=product,
        quantity=request.quantity,
        line_quantity=after,
        expires_at=holder.extended(state.now, state.rules),
        version=holder.revision + 1,
    )
    price = line.price if line else state.shelves[product].price  # a line keeps the price it was first granted at
    changed = LineSet(product, Line(product=product, quantity=after, price=price))
    moved = (Moved(product, held=after - before),) if after != before else ()
    return Decision(held, (changed,), moved, held.expires_at)


def _given_back(gone: Iterable[Line], outcome: Removed | Expired) -> Decision:
    return Decision(
        outcome,
        tuple(LineSet(line.product, None) for line in gone),
        tuple(Moved(line.product, held=-line.quantity) for line in gone),
    )


def evolve(state: State, key: Key, cause: str, decision: Decision) -> None:
    """Make a decision so: one revision up, however many lines of the cart it changes; none if it changes none."""
    reserved = decision.reserved
    if reserved is not None:
        if reserved.order_id not in state.reserved:
            state.new_orders.add(reserved.order_id)
        state.reserved[reserved.order_id] = reserved
        state.changed_orders.add(reserved.order_id)
    for product, received, held, sold in decision.stock:
        shelf = state.shelves[product]
        shelf.received += received
        shelf.held += held
        shelf.sold += sold
        shelf.version += 1
        order_id = reserved and reserved.order_id
        state.ledger.append(LedgerRow(product, shelf.version, key, cause, received, held, sold, order_id))
    if decision.lines:
        _change_cart(state, key[0], decision)


def _change_cart(state: State, user: str, decision: Decision) -> None:
    holder = state.holders[user]
    for product, line in decision.lines:
        before = holder.lines.pop(product, None)
        if line is not None:
            holder.lines[product] = line
        if line is None or before is None or line.quantity != before.quantity:
            state.changed_lines.add((user, product))
    if decision.until:
        holder.first_held_at = holder.first_held_at or to_milliseconds(state.now)
        holder.expires_at = decision.until
    if not holder.lines:
        holder.first_held_at = holder.expires_at = None
    holder.expired = False
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
        case Hold() | Remove() | Clear() | Commit() | Fail() | Sell() | ReleaseOrder() | Restock():
            yield _again(holder, command, request, known) if known else _first(state, holder, command, request)
        case Check(product=product):
            shelf = state.shelves.get(product)
            found = shelf.available if shelf and shelf.for_sale else None
            yield Answer(command, command.id, Available(product=product, available=found), holder.cart())
        case Snapshot():
            yield Answer(command, command.id, SnapshotTaken(), holder.cart())
        case Lookup(ids=ids):
            yield Answer(command, command.id, _look_up(state, user, ids), holder.cart())
        case ReadReservation(order_id=order_id):
            yield Answer(command, command.id, orders.reservation(state, user, order_id), holder.cart())
        case Expire():  # the cart, if it was due, has been expired above, under its own id
            if known is not None:
                yield Answer(command, command.id, known.outcome, holder.cart(), replayed=True)


def _first(state: State, holder: Holder, command: Command, request: Logged) -> Answer:
    decision = decide(state, holder, request, command.accepted)
    _note(state, command.key, content(request), decision)
    return Answer(command, command.id, decision.outcome, holder.cart())


def _again(holder: Holder, command: Command, request: Logged, known: Entry) -> Answer:
    if known.content == content(request):
        return Answer(command, command.id, known.outcome, holder.cart(), replayed=True)
    order_id = request.order_id if isinstance(request, Commit) else None
    return Answer(command, command.id, IdReused(order_id=order_id), holder.cart())


def _expire(state: State, holder: Holder, command: Command) -> Answer:
    """End a due cart, as a decision of its own that happens and is told once, whoever found it."""
    user, due = command.request.user_id, holder.expires_at or state.now
    lines = [*holder.lines.values()]
    gone = tuple(GivenUp(product=line.product, quantity=line.quantity) for line in lines)
    decision = _given_back(lines, Expired(lines=gone, version=holder.revision + 1))
    id_ = state.expiry_ids[user]
    if not isinstance(command.request, Expire):
        state.untold.append(Due(user, due, holder.revision))
    _note(state, (user, EXPIRY_MARK + id_), {"type": "expire", "due": due.astimezone(UTC).isoformat()}, decision)
    holder.expired = True
    return Answer(command, id_, decision.outcome, holder.cart())


def _look_up(state: State, user: str, ids: tuple[str, ...]) -> LookedUp:
    found = {id_: state.log[user, id_].outcome for id_ in ids if (user, id_) in state.log}
    return LookedUp(
        outcomes=tuple(Stored(id=id_, outcome=outcome) for id_, outcome in found.items()),
        unknown=tuple(id_ for id_ in dict.fromkeys(ids) if id_ not in found),
    )
