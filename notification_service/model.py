"""The rules of notices: which events are worth a notice, on which channels, and when a notice would come too late."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from contracts import cart, orders
from contracts.display import display_name, format_money
from contracts.inventory import Line
from contracts.notifications import CHANNELS, Channel, Prefer, Send, Template

EXPIRY_WARNING_LEAD: Final = timedelta(minutes=2)
"""How long before a cart expires its shopper is warned."""
MAX_EVENT_AGE: Final = timedelta(days=3)
"""Maximum age of an event that is worth a notice, so that a service started late does not send those of a month."""

DEFAULT_CHANNELS: Final[Mapping[Template, tuple[Channel, ...]]] = {
    "order_confirmed": ("email", "sms", "push"),
    "order_cancelled": ("email", "sms", "push"),
    "payment_failed": ("email", "sms", "push"),
    "order_refunded": ("email", "push"),
    "order_shipped": ("email", "sms", "push"),
    "order_delivered": ("email", "sms", "push"),
    "cart_expiring": ("email", "push"),
    "cart_changed": ("push",),
    "account_confirm": ("email",),
    "account_exists": ("email",),
    "password_reset": ("email",),
    "password_changed": ("email",),
    "message": ("email", "push"),
}
"""Channels of each template, for requests that name none."""

PAYMENT_REASONS: Final = frozenset({"declined", "payment_unavailable", "wrong_amount"})
CANCEL_REASON_TEXTS: Final[Mapping[orders.CancelReason, str]] = {
    "cart_changed": "the cart had changed meanwhile",
    "cart_empty": "the cart was empty",
    "total_changed": "the total had changed meanwhile",
    "expired": "the cart had expired",
    "out_of_stock": "not everything was there any more",
    "unknown_product": "something in it is no longer sold",
    "other_currency": "its products are priced in different currencies",
    "limit": "it was more than one order may have",
    "declined": "the payment was declined",
    "payment_unavailable": "the payment provider could not be reached",
    "wrong_amount": "another amount was taken than was asked for",
    "cancelled": "as you wished",
    "delivery_failed": "it could not be delivered",
    "failed": "something went wrong on our side",
}

# ---- preferences ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preferences:
    """A user's choice of channels, accepted at `since`. A user without preferences gets notices on all channels."""

    email: bool = True
    sms: bool = True
    push: bool = True
    since: datetime | None = None

    def allows(self, channel: Channel) -> bool:
        """Return whether the user wants notices on `channel`."""
        return {"email": self.email, "sms": self.sms, "push": self.push}[channel]


def apply_preference(before: Preferences, request: Prefer, accepted: datetime) -> Preferences:
    """Return the preferences after a request. The request accepted last counts, in whatever order they arrive."""
    if before.since is not None and accepted <= before.since:
        return before
    return Preferences(request.email, request.sms, request.push, accepted)


@dataclass(frozen=True, slots=True)
class PlannedNotice:
    """A notice to be stored for one channel: `queued` to be sent, or the reason why it is never sent."""

    channel: Channel
    status: Literal["queued", "muted", "skipped"] = "queued"
    reason: str = ""


def plan_notices(
    send: Send, preferences: Preferences, contact_channels: Iterable[Channel], *, age: timedelta
) -> tuple[PlannedNotice, ...]:
    """Return the notices to store for a request that was accepted `age` ago.

    `contact_channels` are the channels for which the user has a proven contact. They do not count for an order, whose
    contact comes on another topic and perhaps later.
    """
    channels = DEFAULT_CHANNELS[send.template] if send.channel is None else (send.channel,)
    reachable = set(CHANNELS) if send.order_id or send.channel else {"push", *contact_channels}
    if send.recipient is not None:
        preferences = Preferences()  # nobody can mute the mails about an account
    return tuple(_plan_channel(channel, preferences, reachable, age) for channel in channels)


def _plan_channel(channel: Channel, preferences: Preferences, reachable: set[Channel], age: timedelta) -> PlannedNotice:
    if age > MAX_EVENT_AGE:
        return PlannedNotice(channel, "skipped", "old")
    if not preferences.allows(channel):
        return PlannedNotice(channel, "muted")
    if channel not in reachable:
        return PlannedNotice(channel, "skipped", "no_contact")
    return PlannedNotice(channel)


# ---- orders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrderSummary:
    """Lines and total of an order as text, for its confirmation."""

    lines: str
    total: str


def summarize_order(event: orders.Committed, names: Mapping[str, str]) -> OrderSummary:
    """Return the summary of a committed order; `names` are the catalogue's, by product code."""
    return OrderSummary(format_lines(event.lines, names), format_money(event.total))


def is_paid(event: orders.Event) -> bool:
    """Return whether an event shows that the payment of its order was captured."""
    return isinstance(event, orders.Captured | orders.Confirmed)


def order_notice(event: orders.Event, summary: OrderSummary | None) -> Send | None:
    """Return the notice that an event of an order is worth, or `None`.

    An address that was given with an order is not proven to be the shopper's: a guest can order with any address. So
    the end of an order that was never paid is a push notice alone; a failed payment is also sent to an address or
    number to which the same user has paid an order before.
    """
    params: dict[str, str]
    channel: Channel | None = None
    proven_only = False
    match event:
        case orders.Confirmed():
            template: Template = "order_confirmed"
            params = {"lines": summary.lines, "total": summary.total} if summary else {}
        case orders.Cancelled():
            template = "payment_failed" if event.reason in PAYMENT_REASONS else "order_cancelled"
            params = {"why": CANCEL_REASON_TEXTS[event.reason]}
            never_paid = event.refunded is None
            proven_only = never_paid and template == "payment_failed"
            channel = "push" if never_paid and not proven_only else None
            if event.refunded is not None and event.refunded.amount:
                params["refunded"] = format_money(event.refunded)
        case orders.Refunded():
            template = "order_refunded"
            params = {"amount": format_money(event.amount), "refunded": format_money(event.refunded)}
        case orders.Shipped():
            template = "order_shipped"
            params = {"carrier": event.carrier, "tracking": event.tracking}
        case orders.Delivered():
            template, params = "order_delivered", {}
        case _:
            return None
    return Send(
        user_id=event.user_id,
        template=template,
        channel=channel,
        proven_only=proven_only,
        params={"order": event.order_id[:8], "order_id": event.order_id, **params},
        cause=f"order/{event.order_id}/{event.version}",
        order_id=event.order_id,
    )


# ---- carts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrackedCart:
    """The part of a cart that is needed to warn of its expiry."""

    version: int = 0
    expires_at: datetime | None = None
    products: frozenset[str] = field(default_factory=frozenset)

    def warning_time(self, now: datetime) -> datetime | None:
        """Return when to warn of the expiry; `None` if the cart is empty or lives shorter than the warning time."""
        if self.expires_at is None or not self.products:
            return None
        at = self.expires_at - EXPIRY_WARNING_LEAD
        return at if at > now else None


def apply_response(before: TrackedCart, response: cart.Response) -> TrackedCart:
    """Return the cart after a response to its shopper. Responses that are not newer change nothing."""
    match response:
        case cart.Held() if response.version > before.version:
            return TrackedCart(response.version, response.expires_at, before.products | {response.product})
        case cart.Removed() if response.version > before.version:
            left = before.products - {response.product} if response.product else frozenset[str]()
            return TrackedCart(response.version, before.expires_at if left else None, left)
        case cart.Expired() if response.version > before.version:
            return TrackedCart(response.version)
        case cart.Snapshot() if response.cart.version > before.version:
            products = frozenset(line.product for line in response.cart.lines)
            return TrackedCart(response.cart.version, response.cart.expires_at, products)
        case _:
            return before


def changed_lines(response: cart.Response) -> tuple[Line, ...]:
    """Return the lines of a cart after a change that the shopper did not make; empty for any other response.

    Such a change is a snapshot without a session. An empty cart is worth no notice: it was checked out, and its shopper
    gets notices about the order. Neither is a replayed snapshot: it belongs to an old decision and shows the current
    cart.
    """
    if not isinstance(response, cart.Snapshot) or response.session is not None or response.replayed:
        return ()
    return response.cart.lines


def cart_change_notice(response: cart.Response, names: Mapping[str, str]) -> Send | None:
    """Return the notice of a change that the shopper did not make, or `None`; `names` are by product code."""
    lines = changed_lines(response)
    if not lines or not isinstance(response, cart.Snapshot):
        return None
    return Send(
        user_id=response.user_id,
        template="cart_changed",
        params={"version": str(response.cart.version), "lines": format_lines(lines, names)},
        cause=f"cart/changed/{response.cart.version}",
    )


def expiry_notice(user_id: str, expires_at: datetime) -> Send:
    """Return the warning that a cart expires at `expires_at`."""
    at = expires_at.astimezone(UTC)
    return Send(
        user_id=user_id,
        template="cart_expiring",
        params={"until": at.strftime("%H:%M:%S")},
        cause=f"cart/expiring/{at.isoformat()}",
        until=at,
    )


_CART_TYPES: Final = tuple(f'"{kind.TYPE}"'.encode() for kind in (cart.Held, cart.Removed, cart.Expired, cart.Snapshot))
_SESSION_FIELD: Final = b'"session":"'


def may_change_cart(value: bytes) -> bool:
    """Return whether a record of `cart.responses` may change a cart, and does not answer a read, by its raw bytes."""
    return any(kind in value for kind in _CART_TYPES) and _SESSION_FIELD not in value


# ---- formatting -----------------------------------------------------------------------------------------------------

MAX_LISTED_LINES: Final = 20
"""Maximum number of lines listed in a text."""


MAX_LISTED_NAME: Final = 80
"""Maximum length of a product's name in a list of lines; with it, a list always fits into a parameter."""


def format_lines(lines: Iterable[Line], names: Mapping[str, str]) -> str:
    """Format the lines of a cart or an order, one per row, and the number of further lines.

    A product without a name in `names` is listed under its code.
    """
    rows = [
        f"{line.quantity} × {_listed_name(line.product, names)}, {format_money(line.price)} each"  # noqa: RUF001 - a sign
        for line in lines
    ]
    more = len(rows) - MAX_LISTED_LINES
    return "\n".join(rows if more <= 0 else [*rows[:MAX_LISTED_LINES], f"and {more} more"])


def _listed_name(code: str, names: Mapping[str, str]) -> str:
    name = " ".join(display_name(names.get(code, "")).split()) or code
    return name if len(name) <= MAX_LISTED_NAME else f"{name[: MAX_LISTED_NAME - 1]}…"
