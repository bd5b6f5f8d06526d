"""The rules of a cart: what to note, what to ask of inventory, what to believe and what to tell.

A cart is a copy. Facts come from inventory with a revision that grows by one; a higher one is taken, any other ignored,
so that a replay, a late message or a zombie's answer can do no harm. Nothing here computes a quantity or refuses.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from cart_service import messages as cart
from infrastructure.envelope import Moment
from inventory_service import messages as inventory
from order_service import messages as orders

READ_LIFETIME: Final = timedelta(seconds=30)
"""Whoever asked a read longer ago than this has given up on it."""
PAUSES: Final = tuple(timedelta(seconds=seconds) for seconds in (5, 10, 20, 30, 40, 50, 60))
"""How long to wait before a pending request is asked again, the first time, the second …; the last one repeats."""

COMMITTED_VERSION: Final = 2
"""An order's second event, after it was placed; the order service tells of the later ones."""

DETAILS: Final = {
    "id_reused": "this id was used before for another request, whose outcome stands; send this one under a new id",
    "bad_field": "the request was accepted at a time that lies ahead of the clock",
}


class Cart(BaseModel):
    """What is kept of one shopper's cart; nothing else, so that a lost write costs nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    revision: int = 0
    expires_at: Moment | None = None
    lines: tuple[inventory.Line, ...] = ()
    pending: tuple[cart.PendingRequest, ...] = ()


# ---- what a shopper asks --------------------------------------------------------------------------------------------


def noted(state: Cart, request_id: str, change: cart.Change, *, accepted: datetime) -> Cart:
    """The cart with `change` among its pending requests; as it is when it stands there already."""
    if any(pending.id == request_id for pending in state.pending):
        return state
    fields = change.model_dump(include={"product", "quantity"})
    if isinstance(change, cart.Checkout):
        fields["commit"] = _commit(change)
    verb = change.TYPE.removeprefix("holdfast.cart.")
    new = cart.PendingRequest.model_validate({"id": request_id, "type": verb, "since": accepted, **fields})
    return state.model_copy(update={"pending": (*state.pending, new)})


def asked(change: cart.Change) -> inventory.Request:
    """What inventory is asked for a change; the same for the same change, whenever it is asked again."""
    match change:
        case cart.Add():
            return inventory.Hold(user_id=change.user_id, mode="add", product=change.product, quantity=change.quantity)
        case cart.Set():
            return inventory.Hold(user_id=change.user_id, mode="set", product=change.product, quantity=change.quantity)
        case cart.Remove():
            return inventory.Remove(user_id=change.user_id, product=change.product)
        case cart.Clear():
            return inventory.Clear(user_id=change.user_id)
        case cart.Checkout():
            return _asked_for(change.user_id, _commit(change))


def placed(checkout: cart.Checkout) -> orders.Place:
    """What the order service is told of a checkout: who lives where stands here, and nowhere in the cart's table."""
    fields = {name: getattr(checkout, name) for name in orders.Place.model_fields}
    return orders.Place.model_validate(fields)


def asked_again(user_id: str, pending: cart.PendingRequest) -> inventory.Request:
    """What inventory is asked for a request that has been pending for too long."""
    if pending.commit is not None:
        return _asked_for(user_id, pending.commit)
    fields = pending.model_dump(include={"product", "quantity"}, exclude_none=True)
    change = cart.REQUEST_VOCABULARY.types[f"holdfast.cart.{pending.type}"].model_validate(
        {"user_id": user_id, **fields}
    )
    if not isinstance(change, cart.Change):
        message = f"only changes can be pending, not {pending.type}"
        raise TypeError(message)
    return asked(change)


def _commit(checkout: cart.Checkout) -> cart.PendingCommit:
    total = checkout.expect.total if checkout.expect else None
    return cart.PendingCommit(order_id=checkout.order_id, version=checkout.version, items=checkout.items, expect=total)


def _asked_for(user_id: str, commit: cart.PendingCommit) -> inventory.Commit:
    return inventory.Commit(
        user_id=user_id, order_id=commit.order_id, version=commit.version, lines=commit.items, expect=commit.expect
    )


def still_wanted(accepted: datetime, *, now: datetime) -> bool:
    """Whether somebody still waits for the answer to a read."""
    return now - accepted <= READ_LIFETIME


# ---- what inventory decided -----------------------------------------------------------------------------------------


def taken(state: Cart, request_id: str, decided: inventory.Decided) -> Cart:
    """The cart after a decision: its lines when they are newer than ours; `request_id` pending no more."""
    pending = tuple(each for each in state.pending if each.id != request_id)
    if decided.cart.revision > state.revision:
        return Cart(
            revision=decided.cart.revision,
            expires_at=decided.cart.expires_at,
            lines=decided.cart.lines,
            pending=pending,
        )
    return state if len(pending) == len(state.pending) else state.model_copy(update={"pending": pending})


def was_taken(state: Cart, request_id: str, decided: inventory.Decided) -> bool:
    """Whether a decision came before: its request is pending no more, and the cart has come at least as far.

    A refusal has no version to tell by, and what a service reserved was never pending here: of those nothing is known.
    """
    if any(pending.id == request_id for pending in state.pending):
        return False
    match decided.outcome:
        case inventory.Held(version=version) | inventory.Removed(version=version) | inventory.Expired(version=version):
            return version <= state.revision
        case inventory.Committed(purpose="order", version=version):
            return version <= state.revision
        case inventory.Released(order_id=order_id, version=version) if _of_an_order(request_id, order_id):
            return version <= state.revision
        case _:
            return False


def view(state: Cart) -> cart.CartView:
    """The cart as its shopper sees it: what was asked to go is gone at once."""
    cleared = any(pending.type == "clear" for pending in state.pending)
    going = {pending.product for pending in state.pending if pending.type == "remove" or pending.quantity == 0}
    lines = () if cleared else tuple(line for line in state.lines if line.product not in going)
    # How a checkout is asked for again is the cart's own affair.
    pending = tuple(each.model_copy(update={"commit": None}) if each.commit else each for each in state.pending)
    return cart.CartView(
        version=state.revision, expires_at=state.expires_at if lines else None, lines=lines, pending=pending
    )


def reappeared(before: Cart, after: Cart, decided: inventory.Decided) -> bool:
    """Whether lines that a pending removal hid are seen again: no outcome tells a client that.

    It happens when a removal that was decided long ago is sent again: it hides what came after it until its old outcome
    is there, and a client that reads its cart in between has the wrong lines under the right version. The outcome need
    not say that it is an old one: the record of the decision itself may be fed back.
    """
    news = not decided.replayed and decided.cart.revision > before.revision
    if news and isinstance(decided.outcome, inventory.Removed):
        return False
    shown = {line.product for line in view(before).lines}
    hidden = {line.product for line in before.lines} - shown
    return any(line.product in hidden for line in view(after).lines)


def moved(after: Cart, request_id: str, decided: inventory.Decided) -> bool:
    """Whether an order took the cart, or gave it back: that has no frame of its own, so the whole cart is told.

    Only as long as the cart is as this decision left it; whatever came later makes its readers ask for the whole. It is
    told again when it is decided again: whoever decided first may have died before anybody heard of it.
    """
    match decided.outcome:
        case inventory.Committed(purpose="order", version=version):
            return version == after.revision
        case inventory.Released(order_id=order_id, version=version) if _of_an_order(request_id, order_id):
            return version == after.revision
        case _:
            return False


def told(state: Cart, request_id: str, decided: inventory.Decided) -> cart.Response | None:  # noqa: PLR0911 - one per outcome
    """What the shopper's sockets are told of a decision, given the cart after it."""
    user, outcome, replayed = decided.user_id, decided.outcome, decided.replayed
    match outcome:
        case inventory.Held():
            return cart.Held(user_id=user, id=request_id, replayed=replayed, **_fields(outcome))
        case inventory.Refused():
            return cart.Refused(user_id=user, id=request_id, replayed=replayed, **_fields(outcome))
        case inventory.Removed():
            return cart.Removed(user_id=user, id=request_id, replayed=replayed, **_fields(outcome))
        case inventory.Expired():
            return cart.Expired(user_id=user, lines=outcome.lines, version=outcome.version, replayed=replayed)
        case inventory.IdReused():
            return cart.Error(user_id=user, id=request_id, code="id_reused", detail=DETAILS["id_reused"])
        case inventory.BadField():
            return cart.Error(
                user_id=user, id=request_id, code="bad_field", detail=DETAILS["bad_field"], field=outcome.field
            )
        case inventory.Available() if decided.session:
            return cart.Availability(user_id=user, id=request_id, session=decided.session, **_fields(outcome))
        case inventory.SnapshotTaken() if decided.session:
            return snapshot(user, request_id, decided.session, state)
        case inventory.LookedUp() if decided.session:
            pending = {each.id for each in state.pending}
            return cart.Resumed(
                user_id=user,
                id=request_id,
                session=decided.session,
                cart=view(state),
                outcomes=outcome.outcomes,
                pending=tuple(each for each in outcome.unknown if each in pending),
                unknown=tuple(each for each in outcome.unknown if each not in pending),
            )
        case _:
            return _told_of_holds(request_id, decided)


def _told_of_holds(request_id: str, decided: inventory.Decided) -> cart.Response | None:
    """What is told of an order's or a reservation's holds: to a shopper the first step alone, to a service each."""
    outcome = decided.outcome
    match outcome:
        case inventory.Committed(purpose="order"):
            return cart.Order(
                user_id=decided.user_id,
                id=request_id,
                order_id=outcome.order_id,
                status="committed",
                order_version=COMMITTED_VERSION,
                replayed=decided.replayed,
            )
        case inventory.Committed():
            return _reservation(request_id, decided, outcome.order_id, "PENDING", outcome.lines)
        case inventory.Sold():
            return _reservation(request_id, decided, outcome.order_id, "COMMITTED")
        case inventory.Released() | inventory.Restocked():
            return _reservation(request_id, decided, outcome.order_id, "CANCELLED")
        case inventory.Reservation():
            return _reservation(request_id, decided, outcome.order_id, outcome.state, outcome.lines)
        case _:
            return None


def _reservation(
    request_id: str,
    decided: inventory.Decided,
    order_id: str,
    state: inventory.HoldState | None,
    lines: tuple[inventory.Line, ...] = (),
) -> cart.Reservation | None:
    if _of_an_order(request_id, order_id):
        return None
    return cart.Reservation(
        user_id=decided.user_id,
        id=request_id,
        session=decided.session,
        reservation_id=order_id,
        state=state,
        lines=lines,
        replayed=decided.replayed,
    )


def _of_an_order(request_id: str, order_id: str) -> bool:
    """Whether a step is one of the order service, which asks for them as `{order_id}/{step}`."""
    return request_id.startswith(f"{order_id}/")


def snapshot(
    user_id: str, request_id: str | None, session: str | None, state: Cart, *, replayed: bool = False
) -> cart.Snapshot:
    """The answer to a read, for the session that asked; without one, told to all sockets of the shopper."""
    return cart.Snapshot(user_id=user_id, id=request_id, session=session, cart=view(state), replayed=replayed)


def _fields(outcome: BaseModel) -> dict[str, Any]:
    return {name: value for name, value in outcome if name != "type"}


# ---- what has been pending for too long -----------------------------------------------------------------------------


class Reminders:
    """When to ask again for what. Not kept anywhere: after a rebalance it is rebuilt from the pending requests."""

    def __init__(self) -> None:
        self._due: dict[tuple[str, str], tuple[datetime, int]] = {}

    def __len__(self) -> int:
        return len(self._due)

    def note(self, user_id: str, request_id: str, *, now: datetime) -> None:
        """Wait for the outcome of a request from `now` on, unless it is waited for already."""
        self._due.setdefault((user_id, request_id), (now + PAUSES[0], 0))

    def settle(self, user_id: str, request_id: str) -> None:
        """It has its outcome."""
        self._due.pop((user_id, request_id), None)

    def rebuild(self, pending: Iterable[tuple[str, str]], *, now: datetime) -> None:
        """Forget everything, and wait for `pending` (user, id) from `now` on."""
        self._due.clear()
        for user_id, request_id in pending:
            self.note(user_id, request_id, now=now)

    def due(self, *, now: datetime, limit: int) -> Iterator[tuple[str, str]]:
        """At most `limit` requests (user, id) to ask again now; each waits longer after each time."""
        ripe = [key for key, (at, _) in self._due.items() if at <= now][:limit]
        for key in ripe:
            times = min(self._due[key][1] + 1, len(PAUSES) - 1)
            self._due[key] = (now + PAUSES[times], times)
            yield key
