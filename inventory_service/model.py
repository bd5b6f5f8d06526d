"""The rules of holding stock: the effects of a batch of requests on carts and stock.

All functions are pure, and work on a `State` that the store has locked and read. `fold` decides requests in the order
of arrival. For each request, `decide` (or `orders`, for requests about orders) makes a decision and `evolve` applies
it. `now` is Postgres' clock, read once for the whole batch.
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
    state: State, cart: Holder, request: Logged, accepted: datetime
) -> Decision:
    """Decide `request` for a cart that is not due; all or nothing."""
    age = state.now - accepted
    if not -state.rules.ahead <= age <= state.rules.remembered and not orders.is_ageless(state, request):
        if age < timedelta(0):
            return Decision(BadField(field="time"))  # logged, so that a later replay does not execute it
        return Decision(_refusal(request, "expired"))
    match request:  # the most frequent first: a failed class pattern is slow
        case Hold() if request.quantity:
            return _decide_hold(state, cart, request)
        case Hold(product=product) | Remove(product=product):
            released = [cart.lines[product]] if product in cart.lines else []
            return _release_lines(released, Removed(product=product, version=cart.revision + bool(released)))
        case Clear():
            released = [*cart.lines.values()]
            return _release_lines(released, Removed(version=cart.revision + bool(released)))
        case Commit():
            return orders.commit(state, cart, request)
        case Sell() | ReleaseOrder() | Restock():
            return orders.step(state, cart, request)
        case Fail():
            return Decision(_refusal(request, "failed"))


def _refusal(request: Logged, reason: RefusalReason) -> Refused:
    command = content(request)
    return Refused(product=command.get("product"), reason=reason, order_id=command.get("order_id"))


def _decide_hold(state: State, cart: Holder, request: Hold) -> Decision:
    product, stock = request.product, state.shelves.get(request.product)
    line = cart.lines.get(product)
    before = line.quantity if line else 0
    after = request.quantity + (before if request.mode == "add" else 0)
    if after > before:  # a request that does not raise the quantity is always granted
        if stock is None or not stock.for_sale:
            return Decision(Refused(product=product, reason="unknown_product"))
        if after > MAX_QUANTITY or (not line and len(cart.lines) >= MAX_LINES):
            return Decision(Refused(product=product, reason="limit"))
        if after - before > stock.available:
            return Decision(Refused(product=product, reason="out_of_stock", available=stock.available))
    held = Held(
        product=product,
        quantity=request.quantity,
        line_quantity=after,
        expires_at=cart.extended(state.now, state.rules),
        version=cart.revision + 1,
    )
    price = line.price if line else state.shelves[product].price  # a line keeps the price it was first granted at
    changed = LineSet(product, Line(product=product, quantity=after, price=price))
    deltas = (Moved(product, held=after - before),) if after != before else ()
    return Decision(held, (changed,), deltas, held.expires_at)


def _release_lines(released: Iterable[Line], outcome: Removed | Expired) -> Decision:
    return Decision(
        outcome,
        tuple(LineSet(line.product, None) for line in released),
        tuple(Moved(line.product, held=-line.quantity) for line in released),
    )


def evolve(state: State, key: Key, cause: str, decision: Decision) -> None:
    """Apply a decision. The cart's revision grows by one if any of its lines changes, else not at all."""
    reserved = decision.reserved
    if reserved is not None:
        if reserved.order_id not in state.reserved:
            state.new_orders.add(reserved.order_id)
        state.reserved[reserved.order_id] = reserved
        state.changed_orders.add(reserved.order_id)
    for product, received, held, sold in decision.stock:
        stock = state.shelves[product]
        stock.received += received
        stock.held += held
        stock.sold += sold
        stock.version += 1
        order_id = reserved and reserved.order_id
        state.ledger.append(LedgerRow(product, stock.version, key, cause, received, held, sold, order_id))
    if decision.lines:
        _change_cart(state, key[0], decision)


def _change_cart(state: State, user: str, decision: Decision) -> None:
    cart = state.holders[user]
    for product, line in decision.lines:
        before = cart.lines.pop(product, None)
        if line is not None:
            cart.lines[product] = line
        if line is None or before is None or line.quantity != before.quantity:
            state.changed_lines.add((user, product))
    if decision.until:
        cart.first_held_at = cart.first_held_at or to_milliseconds(state.now)
        cart.expires_at = decision.until
    if not cart.lines:
        cart.first_held_at = cart.expires_at = None
    cart.expired = False
    cart.revision += 1
    state.changed_holders.add(user)


def _record(state: State, key: Key, command: Content, decision: Decision) -> None:
    evolve(state, key, command["type"], decision)
    entry = state.log[key] = Entry(command, decision.outcome)
    state.decided.append((key, entry, state.holders[key[0]].revision))


# ---- a batch --------------------------------------------------------------------------------------------------------


def fold(state: State, batch: Iterable[Command]) -> list[Answer]:
    """Decide a batch in the order of arrival, and return the replies in the order in which they became true.

    If a request finds its cart due, the reply that the cart has expired comes first. An expiry request that finds
    nothing due, and was not decided before, gets no reply.
    """
    return [answer for command in batch for answer in _process(state, command)]


def _process(state: State, command: Command) -> Iterator[Answer]:
    request, user = command.request, command.request.user_id
    cart, logged = state.holders[user], state.log.get(command.key)
    # A failed request changes only the log, because the cart itself may be the cause of the failure.
    if is_due(cart, state.now) and not isinstance(request, Fail):
        yield _expire(state, cart, command)
    match request:
        case Hold() | Remove() | Clear() | Commit() | Fail() | Sell() | ReleaseOrder() | Restock():
            yield _replay(cart, command, request, logged) if logged else _execute(state, cart, command, request)
        case Check(product=product):
            stock = state.shelves.get(product)
            available = stock.available if stock and stock.for_sale else None
            yield Answer(command, command.id, Available(product=product, available=available), cart.cart())
        case Snapshot():
            yield Answer(command, command.id, SnapshotTaken(), cart.cart())
        case Lookup(ids=ids):
            yield Answer(command, command.id, _look_up(state, user, ids), cart.cart())
        case ReadReservation(order_id=order_id):
            yield Answer(command, command.id, orders.reservation(state, user, order_id), cart.cart())
        case Expire():  # a due cart has been expired above, under the expiry's own id
            if logged is not None:
                yield Answer(command, command.id, logged.outcome, cart.cart(), replayed=True)


def _execute(state: State, cart: Holder, command: Command, request: Logged) -> Answer:
    decision = decide(state, cart, request, command.accepted)
    _record(state, command.key, content(request), decision)
    return Answer(command, command.id, decision.outcome, cart.cart())


def _replay(cart: Holder, command: Command, request: Logged, logged: Entry) -> Answer:
    if logged.content == content(request):
        return Answer(command, command.id, logged.outcome, cart.cart(), replayed=True)
    order_id = request.order_id if isinstance(request, Commit) else None
    return Answer(command, command.id, IdReused(order_id=order_id), cart.cart())


def _expire(state: State, cart: Holder, command: Command) -> Answer:
    """Expire a due cart, as a decision of its own that is made once, whichever request found the cart due."""
    user, due = command.request.user_id, cart.expires_at or state.now
    lines = [*cart.lines.values()]
    released = tuple(GivenUp(product=line.product, quantity=line.quantity) for line in lines)
    decision = _release_lines(lines, Expired(lines=released, version=cart.revision + 1))
    id_ = state.expiry_ids[user]
    if not isinstance(command.request, Expire):
        state.untold.append(Due(user, due, cart.revision))
    _record(state, (user, EXPIRY_MARK + id_), {"type": "expire", "due": due.astimezone(UTC).isoformat()}, decision)
    cart.expired = True
    return Answer(command, id_, decision.outcome, cart.cart())


def _look_up(state: State, user: str, ids: tuple[str, ...]) -> LookedUp:
    outcomes = {id_: state.log[user, id_].outcome for id_ in ids if (user, id_) in state.log}
    return LookedUp(
        outcomes=tuple(Stored(id=id_, outcome=outcome) for id_, outcome in outcomes.items()),
        unknown=tuple(id_ for id_ in dict.fromkeys(ids) if id_ not in outcomes),
    )
