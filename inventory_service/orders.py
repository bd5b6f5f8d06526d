"""The rules of orders: how holds leave a cart for an order, are sold, and come back.

What is held for an order goes one way, PENDING → COMMITTED → CANCELLED or straight from the first to the last, and is
kept for ever under the order's id. So each of these requests does its work once, whatever the log has forgotten.
"""

from collections.abc import Iterable

from inventory_service.messages import (
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
from inventory_service.state import Decision, Holder, LineSet, Moved, Reserved, Shelf, State

Step = Sell | ReleaseOrder | Restock
"""What is done with an order's holds. Never refused, and never too late: an order may wait for longer than a topic."""


def is_ageless(state: State, request: object) -> bool:
    """Whether it matters not when `request` was accepted: a step, or the commit of an order that is known already."""
    return isinstance(request, Step) or (isinstance(request, Commit) and request.order_id in state.reserved)


# ---- commit ---------------------------------------------------------------------------------------------------------


def commit(state: State, holder: Holder, request: Commit) -> Decision:
    """Reserve the whole cart, or `lines` from the shelves; of an order that is known already, say so."""
    if known := state.reserved.get(request.order_id):
        return _committed_before(known, request)
    if request.lines is None:
        reason, lines = _other_cart(holder, request.version), holder.cart().lines
        refused = Refused(reason=reason, order_id=request.order_id) if reason else None
        gone = tuple(LineSet(line.product, None) for line in lines)
        moved: tuple[Moved, ...] = ()
    else:
        refused = _not_there(state, request)
        lines = () if refused else _from_the_shelves(state.shelves, request)
        gone, moved = (), tuple(Moved(line.product, held=line.quantity) for line in lines)
    if refused is not None:
        return Decision(refused)
    total = total_of(lines)
    if total is None:
        return Decision(Refused(reason="failed", order_id=request.order_id))
    if request.expect is not None and request.expect != total:
        return Decision(Refused(reason="total_changed", order_id=request.order_id))
    version = holder.revision + bool(gone)
    reserved = Reserved(request.order_id, request.user_id, lines, "PENDING", request.purpose, version)
    return Decision(_committed(reserved, total), gone, moved, reserved=reserved)


def _committed_before(reserved: Reserved, request: Commit) -> Decision:
    """The same again; nothing if the order was given up before, or is another shopper's."""
    total = total_of(reserved.lines)
    if reserved.user != request.user_id or total is None:
        return Decision(Refused(reason="failed", order_id=request.order_id))
    return Decision(_committed(reserved, total))


def _other_cart(holder: Holder, version: int | None) -> RefusalReason | None:
    """Why this isn't the cart that its shopper saw at `version`.

    It has expired if that was the very next thing that happened to it, whoever found it due. Whoever has changed the
    cart since has seen that it did.
    """
    if version != holder.revision:
        return "expired" if holder.expired and version == holder.revision - 1 else "cart_changed"
    return None if holder.lines else "cart_empty"


def _not_there(state: State, request: Commit) -> Refused | None:
    for item in request.lines or ():
        shelf = state.shelves.get(item.product)
        if shelf is None or not shelf.for_sale:
            return Refused(product=item.product, reason="unknown_product", order_id=request.order_id)
        if item.quantity > shelf.available:
            return Refused(
                product=item.product, reason="out_of_stock", available=shelf.available, order_id=request.order_id
            )
    return None


def _from_the_shelves(shelves: dict[str, Shelf], request: Commit) -> tuple[Line, ...]:
    return tuple(
        Line(product=item.product, quantity=item.quantity, price=shelves[item.product].price)
        for item in sorted(request.lines or (), key=lambda item: item.product)
    )


def total_of(lines: Iterable[Line]) -> Money | None:
    """What lines cost together; none for no lines, and for two currencies: those have no total to be paid."""
    currencies = {line.price.currency for line in lines}
    if len(currencies) != 1:
        return None
    return Money(amount=sum(line.price.amount * line.quantity for line in lines), currency=currencies.pop())


def _committed(reserved: Reserved, total: Money) -> Committed:
    return Committed(
        order_id=reserved.order_id,
        purpose=reserved.purpose or "order",
        lines=reserved.lines,
        total=total,
        version=reserved.revision,
    )


# ---- what comes after it --------------------------------------------------------------------------------------------


def step(state: State, holder: Holder, request: Step) -> Decision:  # noqa: PLR0911 - one per state and step
    """Sell, release or restock what an order holds. What its state does not allow is answered by what it is.

    A release that comes before the commit closes the order: whoever sent it goes by nothing being held from then on.
    """
    order_id, known = request.order_id, state.reserved.get(request.order_id)
    mine = reservation(state, request.user_id, order_id)
    match request, mine.state:
        case Sell(), "PENDING" if known:
            moved = tuple(Moved(line.product, held=-line.quantity, sold=line.quantity) for line in mine.lines)
            return Decision(Sold(order_id=order_id), stock=moved, reserved=known._replace(state="COMMITTED"))
        case Sell(), "COMMITTED":
            return Decision(Sold(order_id=order_id))
        case ReleaseOrder(to=to), "PENDING" if known:
            lines, moved = _released(holder, known) if to == "cart" else ((), _to_the_shelves(known))
            outcome = Released(order_id=order_id, version=holder.revision + bool(lines))
            until = holder.extended(state.now, state.rules) if lines else None
            return Decision(outcome, lines, moved, until, known._replace(state="CANCELLED"))
        case ReleaseOrder(), None if not known:
            closed = Reserved(order_id, request.user_id)
            return Decision(Released(order_id=order_id, version=holder.revision), reserved=closed)
        case ReleaseOrder(), "CANCELLED":
            return Decision(Released(order_id=order_id, version=holder.revision))
        case Restock(shipped=shipped), "COMMITTED" if known:
            moved = tuple(
                Moved(line.product, received=line.quantity) if shipped else Moved(line.product, sold=-line.quantity)
                for line in mine.lines
            )
            return Decision(Restocked(order_id=order_id), stock=moved, reserved=known._replace(state="CANCELLED"))
        case Restock(), "CANCELLED":
            return Decision(Restocked(order_id=order_id))
        case _:
            return Decision(mine)


def reservation(state: State, user: str, order_id: str) -> Reservation:
    """What is held for an order of `user`; of another's order, nothing is."""
    known = state.reserved.get(order_id)
    if known is None or known.user != user:
        return Reservation(order_id=order_id, state=None)
    return Reservation(order_id=order_id, state=known.state, lines=known.lines)


def _released(holder: Holder, order: Reserved) -> tuple[tuple[LineSet, ...], tuple[Moved, ...]]:
    """An order's lines in the cart, as far as that has room, at the prices they were granted at; the rest is free.

    A line that the shopper has opened anew meanwhile takes them in at its own price.
    """
    lines: list[LineSet] = []
    free: list[Moved] = []
    room = MAX_LINES - len(holder.lines)
    for line in order.lines:
        mine = holder.lines.get(line.product)
        if mine is None and room:
            room -= 1
            fits = line.quantity
            lines.append(LineSet(line.product, line))
        else:
            fits = min(line.quantity, MAX_QUANTITY - mine.quantity) if mine else 0
            if mine and fits:
                lines.append(LineSet(line.product, mine.model_copy(update={"quantity": mine.quantity + fits})))
        if fits < line.quantity:
            free.append(Moved(line.product, held=fits - line.quantity))
    return tuple(lines), tuple(free)


def _to_the_shelves(order: Reserved) -> tuple[Moved, ...]:
    return tuple(Moved(line.product, held=-line.quantity) for line in order.lines)
