"""The rules of a cart: pending requests, requests to inventory, application of decisions, responses to shoppers.

A cart is a copy. Facts come from inventory with a revision that grows by one. A higher revision is applied and any
other is ignored, so a replay, a late message or a response from a zombie worker does no harm. Nothing here computes a
quantity or refuses a request.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from contracts import cart, inventory, orders
from contracts.envelope import Timestamp

READ_MAX_AGE: Final = timedelta(seconds=30)
"""Reads older than this are dropped, because their clients have stopped waiting."""
RETRY_DELAYS: Final = tuple(timedelta(seconds=seconds) for seconds in (5, 10, 20, 30, 40, 50, 60))
"""Delays before the first retry of a pending request, the second and so on; the last delay repeats."""

ERROR_DETAILS: Final = {
    "id_reused": "this id was used before for another request, whose outcome stands; send this one under a new id",
    "bad_field": "the request was accepted at a time that lies ahead of the clock",
}


class Cart(BaseModel):
    """State of one user's cart in the table; everything else is derived, so a lost write costs nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    revision: int = 0
    expires_at: Timestamp | None = None
    lines: tuple[inventory.Line, ...] = ()
    pending: tuple[cart.PendingRequest, ...] = ()


# ---- requests of shoppers -------------------------------------------------------------------------------------------


def add_pending(state: Cart, request_id: str, change: cart.Change, *, accepted: datetime) -> Cart:
    """Return the cart with `change` among its pending requests; unchanged if the request is already there."""
    if any(pending.id == request_id for pending in state.pending):
        return state
    if isinstance(change, cart.Checkout):
        fields: dict[str, Any] = {"commit": _pending_commit(change)}
    else:
        fields = change.model_dump(exclude={"user_id"})
    verb = change.TYPE.removeprefix("holdfast.cart.")
    new = cart.PendingRequest.model_validate({"id": request_id, "type": verb, "since": accepted, **fields})
    return state.model_copy(update={"pending": (*state.pending, new)})


def to_inventory_request(change: cart.Change) -> inventory.Request:
    """Build the inventory request for a change. Equal changes give equal requests, so a retry is a replay."""
    match change:
        case cart.Add():
            return inventory.Hold(mode="add", **dict(change))
        case cart.Set():
            return inventory.Hold(mode="set", **dict(change))
        case cart.Remove():
            return inventory.Remove(**dict(change))
        case cart.Clear():
            return inventory.Clear(**dict(change))
        case cart.Checkout():
            return _commit_request(change.user_id, _pending_commit(change))


def to_order_request(checkout: cart.Checkout) -> orders.Place:
    """Build the message that places the order of a checkout. Only this message carries the address, never the table."""
    fields = {name: getattr(checkout, name) for name in orders.Place.model_fields}
    return orders.Place.model_validate(fields)


def retry_request(user_id: str, pending: cart.PendingRequest) -> inventory.Request:
    """Rebuild the inventory request of a change that has been pending too long.

    Raises `ValueError` or `TypeError` if `pending` does not describe a change.
    """
    if pending.commit is not None:
        return _commit_request(user_id, pending.commit)
    fields = pending.model_dump(exclude={"id", "type", "since", "commit"}, exclude_none=True)
    change = cart.REQUEST_REGISTRY.types[f"holdfast.cart.{pending.type}"].model_validate({"user_id": user_id, **fields})
    if not isinstance(change, cart.Change):
        message = f"cannot retry a pending {pending.type!r}: only add, set, remove, clear and checkout can be pending"
        raise TypeError(message)
    return to_inventory_request(change)


def _pending_commit(checkout: cart.Checkout) -> cart.PendingCommit:
    total = checkout.expect.total if checkout.expect else None
    return cart.PendingCommit(order_id=checkout.order_id, version=checkout.version, items=checkout.items, expect=total)


def _commit_request(user_id: str, commit: cart.PendingCommit) -> inventory.Commit:
    return inventory.Commit(
        user_id=user_id, order_id=commit.order_id, version=commit.version, lines=commit.items, expect=commit.expect
    )


def is_fresh(accepted: datetime, *, now: datetime) -> bool:
    """Return whether a client still waits for the answer to a read."""
    return now - accepted <= READ_MAX_AGE


# ---- decisions of inventory -----------------------------------------------------------------------------------------


def apply_decision(state: Cart, request_id: str, decided: inventory.Decided) -> Cart:
    """Return the cart after a decision: newer lines replace the stored ones, and `request_id` is no longer pending."""
    pending = tuple(each for each in state.pending if each.id != request_id)
    if decided.cart.revision > state.revision:
        return Cart(
            revision=decided.cart.revision,
            expires_at=decided.cart.expires_at,
            lines=decided.cart.lines,
            pending=pending,
        )
    return state if len(pending) == len(state.pending) else state.model_copy(update={"pending": pending})


def already_applied(state: Cart, request_id: str, decided: inventory.Decided) -> bool:
    """Return whether a decision was applied before: its request is not pending, and the cart has reached its version.

    Always false for a refusal, which has no version, and for a service's reservation, which is never pending here.
    """
    if any(pending.id == request_id for pending in state.pending):
        return False
    match decided.outcome:
        case inventory.Held(version=version) | inventory.Removed(version=version) | inventory.Expired(version=version):
            return version <= state.revision
        case inventory.Committed(purpose="order", version=version):
            return version <= state.revision
        case inventory.Released(order_id=order_id, version=version) if _is_order_step(request_id, order_id):
            return version <= state.revision
        case _:
            return False


def cart_view(state: Cart) -> cart.CartView:
    """Return the cart as its shopper sees it: lines with a pending removal are hidden at once."""
    cleared = any(pending.type == "clear" for pending in state.pending)
    going = {pending.product for pending in state.pending if pending.type == "remove" or pending.quantity == 0}
    lines = () if cleared else tuple(line for line in state.lines if line.product not in going)
    # `commit` exists for retries only; clients do not see it.
    pending = tuple(each.model_copy(update={"commit": None}) if each.commit else each for each in state.pending)
    return cart.CartView(
        version=state.revision, expires_at=state.expires_at if lines else None, lines=lines, pending=pending
    )


def unhides_lines(before: Cart, after: Cart, decided: inventory.Decided) -> bool:
    """Return whether the full cart must be sent, because lines that a pending removal hid are visible again.

    No outcome frame says that. It happens when a client resends a removal that was decided long ago: until the old
    outcome arrives, the removal hides lines that were added later, and a client that reads the cart meanwhile has the
    wrong lines under the right version. `replayed` on the outcome is not required, because the original record of the
    decision may be redelivered too.
    """
    is_new = not decided.replayed and decided.cart.revision > before.revision
    if is_new and isinstance(decided.outcome, inventory.Removed):
        return False
    if not any(each.type in ("clear", "remove") or each.quantity == 0 for each in before.pending):
        return False  # nothing was hidden
    shown = {line.product for line in cart_view(before).lines}
    hidden = {line.product for line in before.lines} - shown
    return any(line.product in hidden for line in cart_view(after).lines)


def needs_snapshot(after: Cart, request_id: str, decided: inventory.Decided) -> bool:
    """Return whether the full cart must be sent, because a checkout emptied it or a cancelled order restored it.

    No frame type says that. False once a later change has superseded this decision: the clients of that change read the
    full cart. True again if the decision is repeated, because the first worker may have crashed before it published.
    """
    match decided.outcome:
        case inventory.Committed(purpose="order", version=version):
            return version == after.revision
        case inventory.Released(order_id=order_id, version=version) if _is_order_step(request_id, order_id):
            return version == after.revision
        case _:
            return False


def to_response(state: Cart, request_id: str, decided: inventory.Decided) -> cart.Response | None:  # noqa: PLR0911 - one per outcome
    """Build the response to a decision for the shopper's sockets, given the cart after it; `None` for no response."""
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
            return cart.Error(user_id=user, id=request_id, code="id_reused", detail=ERROR_DETAILS["id_reused"])
        case inventory.BadField():
            return cart.Error(
                user_id=user, id=request_id, code="bad_field", detail=ERROR_DETAILS["bad_field"], field=outcome.field
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
                cart=cart_view(state),
                outcomes=outcome.outcomes,
                pending=tuple(each for each in outcome.unknown if each in pending),
                unknown=tuple(each for each in outcome.unknown if each not in pending),
            )
        case _:
            return _hold_response(request_id, decided)


def _hold_response(request_id: str, decided: inventory.Decided) -> cart.Response | None:
    """Build the response about the holds of an order (`committed` only) or of a reservation (every step)."""
    outcome = decided.outcome
    match outcome:
        case inventory.Committed(purpose="order"):
            return cart.Order(
                user_id=decided.user_id,
                id=request_id,
                order_id=outcome.order_id,
                status="committed",
                order_version=orders.COMMITTED_VERSION,
                replayed=decided.replayed,
            )
        case inventory.Committed():
            return _reservation_response(request_id, decided, outcome.order_id, "PENDING", outcome.lines)
        case inventory.Sold():
            return _reservation_response(request_id, decided, outcome.order_id, "COMMITTED")
        case inventory.Released() | inventory.Restocked():
            return _reservation_response(request_id, decided, outcome.order_id, "CANCELLED")
        case inventory.Reservation():
            return _reservation_response(request_id, decided, outcome.order_id, outcome.state, outcome.lines)
        case _:
            return None


def _reservation_response(
    request_id: str,
    decided: inventory.Decided,
    order_id: str,
    state: inventory.HoldState | None,
    lines: tuple[inventory.Line, ...] = (),
) -> cart.Reservation | None:
    if _is_order_step(request_id, order_id):
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


def _is_order_step(request_id: str, order_id: str) -> bool:
    """Return whether the request is a step of the order service, which uses ids of the form `{order_id}/{step}`."""
    return request_id.startswith(f"{order_id}/")


def snapshot(
    user_id: str, request_id: str | None, session: str | None, state: Cart, *, replayed: bool = False
) -> cart.Snapshot:
    """Build the answer to a read for `session`; without a session, the full cart for all sockets of the user."""
    return cart.Snapshot(user_id=user_id, id=request_id, session=session, cart=cart_view(state), replayed=replayed)


def _fields(outcome: BaseModel) -> dict[str, Any]:
    return {name: value for name, value in outcome if name != "type"}


# ---- retries of pending requests ------------------------------------------------------------------------------------


class RetrySchedule:
    """Retry schedule of pending requests, in memory only.

    After a rebalance, call `rebuild` with the pending requests of the table.
    """

    def __init__(self) -> None:
        self._due: dict[tuple[str, str], tuple[datetime, int]] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, user_id: str, request_id: str, *, now: datetime) -> None:
        """Schedule the first retry of a request, unless the request is already scheduled."""
        self._due.setdefault((user_id, request_id), (now + RETRY_DELAYS[0], 0))

    def discard(self, user_id: str, request_id: str) -> None:
        """Remove a request that has its outcome."""
        self._due.pop((user_id, request_id), None)

    def rebuild(self, pending: Iterable[tuple[str, str]], *, now: datetime) -> None:
        """Replace the schedule with `pending` (user id, request id), counted from `now`."""
        self._due.clear()
        for user_id, request_id in pending:
            self.add(user_id, request_id, now=now)

    def take_due(self, *, now: datetime, limit: int) -> Iterator[tuple[str, str]]:
        """Yield at most `limit` requests (user id, request id) to retry now, and schedule the next retry of each."""
        due = [key for key, (at, _) in self._due.items() if at <= now][:limit]
        for key in due:
            attempts = min(self._due[key][1] + 1, len(RETRY_DELAYS) - 1)
            self._due[key] = (now + RETRY_DELAYS[attempts], attempts)
            yield key
