"""The rules of orders: how holds move from a cart to an order, are sold, and are released.

An order's holds go from PENDING to COMMITTED to CANCELLED, or from PENDING straight to CANCELLED, and are kept
indefinitely under the order's id. Each request therefore takes effect once, even after the log has forgotten it.
"""

from collections.abc import Iterable

from contracts.inventory import (
    MAX_LINES,
    MAX_QUANTITY,
    Commit,
    Committed,
    Line,
    Money,
    RefusalReason,
    Refused,
    Released,
    ReleaseOrder,
    Reservation,
    Restock,
    Restocked,
    Sell,
    Sold,
)
from inventory_service.state import CartState, Decision, LineChange, OrderHolds, State, StockDelta, StockLevel

OrderStep = Sell | ReleaseOrder | Restock
"""A step on an order's holds. Never refused and never too old: an order may wait longer than a topic keeps records."""


def has_no_age_limit(state: State, request: object) -> bool:
    """Return whether the age of `request` does not matter: a step, or the commit of an order that exists already."""
    return isinstance(request, OrderStep) or (isinstance(request, Commit) and request.order_id in state.order_holds)


# ---- commit ---------------------------------------------------------------------------------------------------------


def decide_commit(state: State, cart: CartState, request: Commit) -> Decision:
    """Reserve the whole cart, or `lines` from stock. For an order that exists already, repeat its outcome."""
    if existing := state.order_holds.get(request.order_id):
        return _repeat_commit(existing, request)
    if request.lines is None:
        reason, lines = _cart_refusal_reason(cart, request.version), cart.to_message().lines
        refused = Refused(reason=reason, order_id=request.order_id) if reason else None
        line_changes = tuple(LineChange(line.product, None) for line in lines)
        deltas: tuple[StockDelta, ...] = ()
    else:
        refused = _lines_refusal(state, cart, request)
        lines = () if refused else _price_lines(state.stock_levels, request)
        line_changes, deltas = (), tuple(StockDelta(line.product, held=line.quantity) for line in lines)
    if refused is not None:
        return Decision(refused)
    total = total_price(lines)
    if total is None:
        return Decision(Refused(reason="other_currency", order_id=request.order_id))
    if request.expect is not None and request.expect != total:
        return Decision(Refused(reason="total_changed", order_id=request.order_id))
    version = cart.revision + bool(line_changes)
    holds = OrderHolds(request.order_id, request.user_id, lines, "PENDING", request.purpose, version)
    return Decision(_committed_outcome(holds, total), line_changes, deltas, order_holds=holds)


def _repeat_commit(holds: OrderHolds, request: Commit) -> Decision:
    """Repeat the outcome of a commit; refuse if the order was released before, or belongs to another shopper."""
    total = total_price(holds.lines)
    if holds.user != request.user_id or total is None:
        return Decision(Refused(reason="failed", order_id=request.order_id))
    return Decision(_committed_outcome(holds, total))


def _cart_refusal_reason(cart: CartState, version: int | None) -> RefusalReason | None:
    """Return why the cart is not the one that its shopper saw at `version`, or `None`.

    The reason is `expired` if the expiry was the very next change after `version`. After any later change, the shopper
    has seen that the cart expired.
    """
    if version != cart.revision:
        return "expired" if cart.just_expired and version == cart.revision - 1 else "cart_changed"
    return None if cart.lines else "cart_empty"


def _lines_refusal(state: State, cart: CartState, request: Commit) -> Refused | None:
    for item in request.lines or ():
        stock = state.stock_levels.get(item.product)
        if stock is None or not stock.for_sale:
            return Refused(product=item.product, reason="unknown_product", order_id=request.order_id)
        if item.quantity > stock.available:
            return Refused(
                product=item.product, reason="out_of_stock", available=stock.available, order_id=request.order_id
            )
        line = cart.lines.get(item.product)
        held = state.pending_units[request.user_id, item.product] + (line.quantity if line else 0)
        # A reservation is a service's, which holds for many shoppers.
        if request.purpose == "order" and held + item.quantity > state.holding_limits.most(stock):
            return Refused(product=item.product, reason="limit", order_id=request.order_id)
    return None


def _price_lines(stock_levels: dict[str, StockLevel], request: Commit) -> tuple[Line, ...]:
    return tuple(
        Line(product=item.product, quantity=item.quantity, price=stock_levels[item.product].price)
        for item in sorted(request.lines or (), key=lambda item: item.product)
    )


def total_price(lines: Iterable[Line]) -> Money | None:
    """Return the total price of lines; `None` for no lines and for mixed currencies, which have no payable total."""
    currencies = {line.price.currency for line in lines}
    if len(currencies) != 1:
        return None
    return Money(amount=sum(line.price.amount * line.quantity for line in lines), currency=currencies.pop())


def _committed_outcome(holds: OrderHolds, total: Money) -> Committed:
    return Committed(
        order_id=holds.order_id,
        purpose=holds.purpose or "order",
        lines=holds.lines,
        total=total,
        version=holds.revision,
    )


# ---- steps and reads -----------------------------------------------------------------------------------------------


def decide_step(state: State, cart: CartState, request: OrderStep) -> Decision:  # noqa: PLR0911 - one per state and step
    """Sell, release or restock an order's holds. If their state does not allow the step, reply with that state.

    A release that arrives before the commit closes the order: its sender relies on nothing being held from then on.
    """
    order_id, existing = request.order_id, state.order_holds.get(request.order_id)
    current = reservation(state, request.user_id, order_id)
    match request, current.state:
        case Sell(), "PENDING" if existing:
            deltas = tuple(StockDelta(line.product, held=-line.quantity, sold=line.quantity) for line in current.lines)
            return Decision(
                Sold(order_id=order_id), stock_deltas=deltas, order_holds=existing._replace(state="COMMITTED")
            )
        case Sell(), "COMMITTED":
            return Decision(Sold(order_id=order_id))
        case ReleaseOrder(to=to), "PENDING" if existing:
            lines, deltas = _return_to_cart(cart, existing) if to == "cart" else ((), _return_to_stock(existing))
            outcome = Released(order_id=order_id, version=cart.revision + bool(lines))
            until = cart.extended_expiry(state.now, state.time_limits) if lines else None
            return Decision(outcome, lines, deltas, until, existing._replace(state="CANCELLED"))
        case ReleaseOrder(), None if not existing:
            closed = OrderHolds(order_id, request.user_id)
            return Decision(Released(order_id=order_id, version=cart.revision), order_holds=closed)
        case ReleaseOrder(), "CANCELLED":
            return Decision(Released(order_id=order_id, version=cart.revision))
        case Restock(shipped=shipped), "COMMITTED" if existing:
            deltas = tuple(
                StockDelta(line.product, received=line.quantity)
                if shipped
                else StockDelta(line.product, sold=-line.quantity)
                for line in current.lines
            )
            return Decision(
                Restocked(order_id=order_id), stock_deltas=deltas, order_holds=existing._replace(state="CANCELLED")
            )
        case Restock(), "CANCELLED":
            return Decision(Restocked(order_id=order_id))
        case _:
            return Decision(current)


def reservation(state: State, user: str, order_id: str) -> Reservation:
    """Return the holds of an order of `user`; empty for another user's order."""
    existing = state.order_holds.get(order_id)
    if existing is None or existing.user != user:
        return Reservation(order_id=order_id, state=None)
    return Reservation(order_id=order_id, state=existing.state, lines=existing.lines)


def _return_to_cart(cart: CartState, order: OrderHolds) -> tuple[tuple[LineChange, ...], tuple[StockDelta, ...]]:
    """Return the cart lines and stock changes that put an order's lines back into the cart.

    Lines keep the prices at which they were granted; units for which the cart has no room, and lines in another
    currency than the cart's, go to stock. If the shopper
    has added the product again meanwhile, the existing line takes the units at its own price.
    """
    lines: list[LineChange] = []
    free: list[StockDelta] = []
    free_lines = MAX_LINES - len(cart.lines)
    for line in order.lines:
        current = cart.lines.get(line.product)
        if current is None and free_lines and cart.can_hold(line.price.currency):
            free_lines -= 1
            fits = line.quantity
            lines.append(LineChange(line.product, line))
        else:
            fits = min(line.quantity, MAX_QUANTITY - current.quantity) if current else 0
            if current and fits:
                lines.append(LineChange(line.product, current.model_copy(update={"quantity": current.quantity + fits})))
        if fits < line.quantity:
            free.append(StockDelta(line.product, held=fits - line.quantity))
    return tuple(lines), tuple(free)


def _return_to_stock(order: OrderHolds) -> tuple[StockDelta, ...]:
    return tuple(StockDelta(line.product, held=-line.quantity) for line in order.lines)
