"""The rules of notices: what is worth telling, on which channels, and when it would come too late."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from cart_service import messages as cart
from inventory_service.messages import Line, Money
from notification_service.messages import CHANNELS, Channel, Prefer, Send, Template
from order_service import messages as orders

WARNING: Final = timedelta(minutes=2)
"""How long before its end the shopper is told of a cart's expiry."""
OLD: Final = timedelta(days=3)
"""What is older than this when it is first heard of is no news: a service set up late does not tell a month's."""

CARRIED_BY: Final[Mapping[Template, tuple[Channel, ...]]] = {
    "order_confirmed": ("email", "sms", "push"),
    "order_cancelled": ("email", "sms", "push"),
    "payment_failed": ("email", "sms", "push"),
    "order_refunded": ("email", "push"),
    "order_shipped": ("email", "sms", "push"),
    "order_delivered": ("email", "sms", "push"),
    "cart_expiring": ("email", "push"),
    "cart_changed": ("push",),
    "message": ("email", "push"),
}
"""Where each is told when its sender names no channel."""

PAYMENT_REASONS: Final = frozenset({"declined", "payment_unavailable", "wrong_amount"})
WHY: Final[Mapping[orders.CancelReason, str]] = {
    "cart_changed": "the cart had changed meanwhile",
    "cart_empty": "the cart was empty",
    "total_changed": "the total had changed meanwhile",
    "expired": "the cart had expired",
    "out_of_stock": "not everything was there any more",
    "unknown_product": "something in it is no longer sold",
    "limit": "it was more than one order may have",
    "declined": "the payment was declined",
    "payment_unavailable": "the payment provider could not be reached",
    "wrong_amount": "another amount was taken than was asked for",
    "cancelled": "as you wished",
    "delivery_failed": "it could not be delivered",
    "failed": "something went wrong on our side",
}

# ---- who wants what -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Preferences:
    """What somebody wants to be told on, who said so at `since`; whoever said nothing is told everything."""

    email: bool = True
    sms: bool = True
    push: bool = True
    since: datetime | None = None

    def allow(self, channel: Channel) -> bool:
        """Whether a channel is wanted."""
        return {"email": self.email, "sms": self.sms, "push": self.push}[channel]


def preferred(before: Preferences, wish: Prefer, accepted: datetime) -> Preferences:
    """The preferences after a wish: the one that was accepted last stands, whatever order they come in."""
    if before.since is not None and accepted <= before.since:
        return before
    return Preferences(wish.email, wish.sms, wish.push, accepted)


@dataclass(frozen=True, slots=True)
class Planned:
    """A notice to be stored for one channel: `queued` to be told, else why it never is."""

    channel: Channel
    status: Literal["queued", "muted", "skipped"] = "queued"
    reason: str = ""


def plan(send: Send, preferences: Preferences, known: Iterable[Channel], *, age: timedelta) -> tuple[Planned, ...]:
    """What is stored for a request that was accepted `age` ago; `known` are the channels its user was reached on.

    For an order the contact comes by another topic, perhaps later, so its absence now says nothing.
    """
    channels = CARRIED_BY[send.template] if send.channel is None else (send.channel,)
    reachable = set(CHANNELS) if send.order_id or send.channel else {"push", *known}
    return tuple(_planned(channel, preferences, reachable, age) for channel in channels)


def _planned(channel: Channel, preferences: Preferences, reachable: set[Channel], age: timedelta) -> Planned:
    if age > OLD:
        return Planned(channel, "skipped", "old")
    if not preferences.allow(channel):
        return Planned(channel, "muted")
    if channel not in reachable:
        return Planned(channel, "skipped", "no_contact")
    return Planned(channel)


# ---- orders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bought:
    """What an order comes to, in words: said again when it is confirmed."""

    lines: str
    total: str


def bought(event: orders.Committed) -> Bought:
    """What was committed."""
    return Bought(listed(event.lines), money(event.total))


def of_order(event: orders.Event, known: Bought | None) -> Send | None:
    """The notice that an event of an order is worth; none for what only machines care for."""
    params: dict[str, str]
    match event:
        case orders.Confirmed():
            template: Template = "order_confirmed"
            params = {"lines": known.lines, "total": known.total} if known else {}
        case orders.Cancelled():
            template = "payment_failed" if event.reason in PAYMENT_REASONS else "order_cancelled"
            params = {"why": WHY[event.reason]}
            if event.refunded is not None and event.refunded.amount:
                params["refunded"] = money(event.refunded)
        case orders.Refunded():
            template = "order_refunded"
            params = {"amount": money(event.amount), "refunded": money(event.refunded)}
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
        params={"order": event.order_id[:8], "order_id": event.order_id, **params},
        cause=f"order/{event.order_id}/{event.version}",
        order_id=event.order_id,
    )


# ---- carts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watched:
    """So much of a cart as it takes to know when its end has to be told of."""

    version: int = 0
    expires_at: datetime | None = None
    products: frozenset[str] = field(default_factory=frozenset)

    def warn_at(self, now: datetime) -> datetime | None:
        """When to warn of its end; none when nothing is held, or its whole life is shorter than the warning."""
        if self.expires_at is None or not self.products:
            return None
        at = self.expires_at - WARNING
        return at if at > now else None


def followed(before: Watched, told: cart.Response) -> Watched:
    """The cart after what its shopper was told; what is not above the version at hand changes nothing."""
    match told:
        case cart.Held() if told.version > before.version:
            return Watched(told.version, told.expires_at, before.products | {told.product})
        case cart.Removed() if told.version > before.version:
            left = before.products - {told.product} if told.product else frozenset[str]()
            return Watched(told.version, before.expires_at if left else None, left)
        case cart.Expired() if told.version > before.version:
            return Watched(told.version)
        case cart.Snapshot() if told.cart.version > before.version:
            products = frozenset(line.product for line in told.cart.lines)
            return Watched(told.cart.version, told.cart.expires_at, products)
        case _:
            return before


def of_cart(told: cart.Response) -> Send | None:
    """The notice of a change that came from elsewhere: a snapshot that nobody asked for.

    An empty cart is none: that is a checkout, and its shopper hears of the order. Nor is one that is told again, of an
    old decision: it shows the cart as it is now, however that came to be.
    """
    if not isinstance(told, cart.Snapshot) or told.session is not None or told.replayed or not told.cart.lines:
        return None
    return Send(
        user_id=told.user_id,
        template="cart_changed",
        params={"version": str(told.cart.version), "lines": listed(told.cart.lines)},
        cause=f"cart/changed/{told.cart.version}",
    )


def of_expiry(user_id: str, expires_at: datetime) -> Send:
    """The warning that a cart comes to its end then."""
    at = expires_at.astimezone(UTC)
    return Send(
        user_id=user_id,
        template="cart_expiring",
        params={"until": at.strftime("%H:%M:%S")},
        cause=f"cart/expiring/{at.isoformat()}",
        until=at,
    )


_OF_A_CART: Final = tuple(f'"{kind.TYPE}"'.encode() for kind in (cart.Held, cart.Removed, cart.Expired, cart.Snapshot))
_FOR_ONE_SESSION: Final = b'"session":"'


def says_something(value: bytes) -> bool:
    """A cheap look at the bytes of a cart's response: it may change a cart, and is no answer to a read."""
    return any(kind in value for kind in _OF_A_CART) and _FOR_ONE_SESSION not in value


# ---- in words -------------------------------------------------------------------------------------------------------

_DIGITS: Final = {"JPY": 0, "KRW": 0, "ISK": 0, "VND": 0, "CLP": 0, "BHD": 3, "JOD": 3, "KWD": 3, "OMR": 3, "TND": 3}
"""Decimals of the minor unit (ISO 4217), where they are not two."""


def money(amount: Money) -> str:
    """`8.49 GBP`."""
    digits = _DIGITS.get(amount.currency, 2)
    if not digits:
        return f"{amount.amount} {amount.currency}"
    whole, part = divmod(abs(amount.amount), 10**digits)
    return f"{'-' if amount.amount < 0 else ''}{whole}.{part:0{digits}} {amount.currency}"


LISTED: Final = 20
"""Lines that are spelled out."""


def listed(lines: Iterable[Line]) -> str:
    """The lines of a cart or an order, one a row, and how many more there are."""
    rows = [f"{line.quantity} x {line.product}, {money(line.price)} each" for line in lines]
    more = len(rows) - LISTED
    return "\n".join(rows if more <= 0 else [*rows[:LISTED], f"and {more} more"])
