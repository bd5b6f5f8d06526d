"""The rules of holding stock: the effects of a batch of requests on carts and stock.

All functions are pure, and work on a `State` that the store has locked and read. `fold` decides requests in the order
of arrival. For each request, `decide` (or `order_rules`, for requests about orders) makes a decision and `evolve`
applies it. `now` is Postgres' clock, read once for the whole batch.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from contracts.inventory import (
    MAX_LINES,
    MAX_QUANTITY,
    Available,
    BadField,
    Check,
    Clear,
    Commit,
    Committed,
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
    Reservation,
    Restock,
    Sell,
    Snapshot,
    SnapshotTaken,
    Stored,
    StoredOutcome,
)
from inventory_service import order_rules
from inventory_service.fingerprint import Fingerprint, LoggedRequest, fingerprint
from inventory_service.state import (
    EXPIRY_PREFIX,
    CartState,
    Command,
    Decision,
    DueCart,
    LedgerRow,
    LineChange,
    LogEntry,
    LogKey,
    Reply,
    State,
    StockDelta,
    is_due,
    pending_units,
    truncate_to_milliseconds,
)

# ---- decide and evolve ----------------------------------------------------------------------------------------------


def decide(  # noqa: PLR0911 - one per request
    state: State, cart: CartState, request: LoggedRequest, accepted: datetime
) -> Decision:
    """Decide `request` for a cart that is not due; all or nothing."""
    age = state.now - accepted
    if not -state.time_limits.max_skew <= age <= state.time_limits.max_age and not order_rules.has_no_age_limit(
        state, request
    ):
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
            return order_rules.decide_commit(state, cart, request)
        case Sell() | ReleaseOrder() | Restock():
            return order_rules.decide_step(state, cart, request)
        case Fail():
            return Decision(_refusal(request, "failed"))


def _refusal(request: LoggedRequest, reason: RefusalReason) -> Refused:
    command = fingerprint(request)
    return Refused(product=command.get("product"), reason=reason, order_id=command.get("order_id"))


def _decide_hold(state: State, cart: CartState, request: Hold) -> Decision:
    product, stock = request.product, state.stock_levels.get(request.product)
    line = cart.lines.get(product)
    before = line.quantity if line else 0
    after = request.quantity + (before if request.mode == "add" else 0)
    if after > before:  # a request that does not raise the quantity is always granted
        if stock is None or not stock.for_sale:
            return Decision(Refused(product=product, reason="unknown_product"))
        if line is None and not cart.can_hold(stock.price.currency):
            return Decision(Refused(product=product, reason="other_currency"))
        if after > MAX_QUANTITY or (not line and len(cart.lines) >= MAX_LINES):
            return Decision(Refused(product=product, reason="limit"))
        if after - before > stock.available:
            return Decision(Refused(product=product, reason="out_of_stock", available=stock.available))
        if after + state.pending_units[request.user_id, product] > state.holding_limits.most(stock):
            return Decision(Refused(product=product, reason="limit"))
    held = Held(
        product=product,
        quantity=request.quantity,
        line_quantity=after,
        expires_at=cart.extended_expiry(state.now, state.time_limits),
        version=cart.revision + 1,
    )
    price = line.price if line else state.stock_levels[product].price  # a line keeps the price it was first granted at
    changed = LineChange(product, Line(product=product, quantity=after, price=price))
    deltas = (StockDelta(product, held=after - before),) if after != before else ()
    return Decision(held, (changed,), deltas, held.expires_at)


def _release_lines(released: Iterable[Line], outcome: Removed | Expired) -> Decision:
    return Decision(
        outcome,
        tuple(LineChange(line.product, None) for line in released),
        tuple(StockDelta(line.product, held=-line.quantity) for line in released),
    )


def evolve(state: State, key: LogKey, cause: str, decision: Decision) -> None:
    """Apply a decision. The cart's revision grows by one if any of its lines changes, else not at all."""
    reserved = decision.order_holds
    if reserved is not None:
        before = state.order_holds.get(reserved.order_id)
        state.pending_units.update(pending_units([reserved]))
        state.pending_units.subtract(pending_units([before] if before else []))
        if before is None:
            state.new_orders.add(reserved.order_id)
        state.order_holds[reserved.order_id] = reserved
        state.changed_orders.add(reserved.order_id)
    for product, received, held, sold in decision.stock_deltas:
        stock = state.stock_levels[product]
        stock.received += received
        stock.held += held
        stock.sold += sold
        stock.version += 1
        order_id = reserved and reserved.order_id
        state.ledger_rows.append(LedgerRow(product, stock.version, key, cause, received, held, sold, order_id))
    if decision.line_changes:
        _change_cart(state, key[0], decision)


def _change_cart(state: State, user: str, decision: Decision) -> None:
    cart = state.carts[user]
    for product, line in decision.line_changes:
        before = cart.lines.pop(product, None)
        if line is not None:
            cart.lines[product] = line
        if line != before:
            state.changed_lines.add((user, product))
    if decision.expires_at:
        cart.first_held_at = cart.first_held_at or truncate_to_milliseconds(state.now)
        cart.expires_at = decision.expires_at
    if not cart.lines:
        cart.first_held_at = cart.expires_at = None
    cart.just_expired = False
    cart.revision += 1
    state.changed_carts.add(user)


def _record(state: State, key: LogKey, command: Fingerprint, decision: Decision) -> None:
    evolve(state, key, command["type"], decision)
    entry = state.log[key] = LogEntry(command, decision.outcome)
    state.new_log_entries.append((key, entry, state.carts[key[0]].revision))


# ---- a batch --------------------------------------------------------------------------------------------------------


def fold(state: State, batch: Iterable[Command]) -> list[Reply]:
    """Decide a batch in the order of arrival, and return the replies in the order in which they became true.

    If a request finds its cart due, the reply that the cart has expired comes first. An expiry request that finds
    nothing due, and was not decided before, gets no reply.
    """
    return [answer for command in batch for answer in _process(state, command)]


def _process(state: State, command: Command) -> Iterator[Reply]:
    request, user = command.request, command.request.user_id
    cart, logged = state.carts[user], state.log.get(command.key)
    # A failed request changes only the log, because the cart itself may be the cause of the failure.
    if is_due(cart, state.now) and not isinstance(request, Fail):
        yield _expire(state, cart, command)
    match request:
        case Hold() | Remove() | Clear() | Commit() | Fail() | Sell() | ReleaseOrder() | Restock():
            yield _replay(cart, command, request, logged) if logged else _execute(state, cart, command, request)
        case Check(product=product):
            stock = state.stock_levels.get(product)
            available = stock.available if stock and stock.for_sale else None
            yield Reply(command, command.id, Available(product=product, available=available), cart.to_message())
        case Snapshot():
            yield Reply(command, command.id, SnapshotTaken(), cart.to_message())
        case Lookup(ids=ids):
            yield Reply(command, command.id, _look_up(state, user, ids), cart.to_message())
        case ReadReservation(order_id=order_id):
            yield Reply(command, command.id, order_rules.reservation(state, user, order_id), cart.to_message())
        case Expire():  # a due cart has been expired above, under the expiry's own id
            if logged is not None:
                yield Reply(command, command.id, logged.outcome, cart.to_message(), replayed=True)


def _execute(state: State, cart: CartState, command: Command, request: LoggedRequest) -> Reply:
    decision = decide(state, cart, request, command.accepted_at)
    _record(state, command.key, fingerprint(request), decision)
    return Reply(command, command.id, decision.outcome, cart.to_message())


def _replay(cart: CartState, command: Command, request: LoggedRequest, logged: LogEntry) -> Reply:
    if logged.fingerprint == fingerprint(request):
        return Reply(command, command.id, logged.outcome, cart.to_message(), replayed=True)
    order_id = request.order_id if isinstance(request, Commit) else None
    return Reply(command, command.id, IdReused(order_id=order_id), cart.to_message())


def _expire(state: State, cart: CartState, command: Command) -> Reply:
    """Expire a due cart, as a decision of its own that is made once, whichever request found the cart due."""
    user, due = command.request.user_id, cart.expires_at or state.now
    lines = [*cart.lines.values()]
    released = tuple(GivenUp(product=line.product, quantity=line.quantity) for line in lines)
    decision = _release_lines(lines, Expired(lines=released, version=cart.revision + 1))
    id_ = state.expiry_ids[user]
    if not isinstance(command.request, Expire):
        state.undelivered.append(DueCart(user, due, cart.revision))
    _record(state, (user, EXPIRY_PREFIX + id_), {"type": "expire", "due": due.astimezone(UTC).isoformat()}, decision)
    cart.just_expired = True
    return Reply(command, id_, decision.outcome, cart.to_message())


def _look_up(state: State, user: str, ids: tuple[str, ...]) -> LookedUp:
    """Return the outcomes of some requests, those of orders without lines: 64 long orders would not fit into a record.

    No reader needs the lines: the frame about an order has its id and its status.
    """
    outcomes = {id_: state.log[user, id_].outcome for id_ in ids if (user, id_) in state.log}
    return LookedUp(
        outcomes=tuple(Stored(id=id_, outcome=_without_lines(outcome)) for id_, outcome in outcomes.items()),
        unknown=tuple(id_ for id_ in dict.fromkeys(ids) if id_ not in outcomes),
    )


def _without_lines(outcome: StoredOutcome) -> StoredOutcome:
    return outcome.model_copy(update={"lines": ()}) if isinstance(outcome, Committed | Reservation) else outcome
