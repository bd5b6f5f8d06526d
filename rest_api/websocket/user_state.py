"""The state that all sockets and REST requests of one user share: limits, requests in flight, cart expiry. Pure.

`now` is always in seconds of the Unix clock.
"""

from dataclasses import dataclass
from typing import Final

from contracts import cart
from rest_api.protocol import frame_encoder
from rest_api.security.token_bucket import WINDOW_SECONDS, Allowance
from rest_api.websocket.in_flight import InFlight, Registration

WARNING_SECONDS: Final = 120.0
"""Seconds before the expiry of a cart at which its shopper is warned."""


@dataclass(frozen=True, slots=True)
class UserLimits:
    """The limits of one user, and the accepted payment tokens. `None` lifts a limit, or accepts any token."""

    changes: int | None = 100
    others: int | None = 600
    unanswered: int | None = 64
    sockets: int | None = 5
    tokens: frozenset[str] | None = None

    def accepts_token(self, token: str) -> bool:
        """Return True if a payment token is accepted."""
        return self.tokens is None or token in self.tokens


class UserState:
    """The shared state of one user's sockets and REST requests."""

    __slots__ = (
        "_warned_of",
        "cart_expires_at",
        "cart_read_at",
        "cart_version",
        "change_allowance",
        "in_flight",
        "limits",
        "other_allowance",
        "seen_at",
        "sessions",
        "user_id",
    )

    def __init__(self, user_id: str, rules: UserLimits, now: float, in_flight: InFlight | None = None) -> None:
        """`in_flight` is the table of the whole edge; without it the user gets one without a limit for the edge."""
        self.user_id = user_id
        self.in_flight = InFlight() if in_flight is None else in_flight
        self.limits = rules
        self.sessions: dict[str, None] = {}
        """The ids of the sessions whose sockets are open, oldest first."""
        # Token buckets for changes, and for all other frames and requests; `None` without a limit.
        self.change_allowance = None if rules.changes is None else Allowance(rules.changes, now)
        self.other_allowance = None if rules.others is None else Allowance(rules.others, now)
        self.cart_version = -1
        """The newest version of the cart that was seen."""
        self.cart_expires_at: float | None = None
        """When the cart expires; `None` for an empty cart."""
        self.seen_at = now
        self.cart_read_at = float("-inf")
        """When a new socket read the cart last."""
        self._warned_of: float | None = None
        """The expiry of which the shopper was warned last."""

    def register(
        self,
        request_id: str,
        now: float,
        *,
        session: str | None = None,
        read_until: float | None = None,
        spare: int = 0,
        is_guarded: bool = True,
    ) -> Registration:
        """Register a request of this user in the in-flight table before it is sent; see `InFlight.register`.

        `spare` requests may exceed the user's limit.
        """
        limit = self.limits.unanswered
        return self.in_flight.register(
            self.user_id,
            request_id,
            now,
            limit=None if limit is None else limit + spare,
            session=session,
            read_until=read_until,
            is_guarded=is_guarded,
        )

    def release(self, request_id: str) -> None:
        """Stop counting a request that may not have been sent."""
        self.in_flight.release(self.user_id, request_id)

    @property
    def unanswered(self) -> list[str]:
        """The ids of the requests that count towards the limit."""
        return self.in_flight.unanswered(self.user_id)

    def observe_cart(self, message: frame_encoder.OutcomeMessage | cart.CartView) -> None:
        """Learn from an outcome or a cart when the cart expires; ignore one that is not newer."""
        match message:
            case cart.Held() if message.version > self.cart_version:
                self.cart_version, self.cart_expires_at = message.version, message.expires_at.timestamp()
            case cart.Removed() if message.version > self.cart_version:
                self.cart_version = message.version
            case cart.Expired() if message.version > self.cart_version:
                self.cart_version, self.cart_expires_at = message.version, None
            case cart.CartView() if message.version >= self.cart_version:
                self.cart_version = message.version
                self.cart_expires_at = message.expires_at.timestamp() if message.expires_at and message.lines else None

    def needs_expiry_warning(self, now: float) -> bool:
        """Return True if a warning is due: the last two minutes have begun, and no socket was warned of this expiry."""
        end = self.cart_expires_at
        return bool(self.sessions) and end is not None and end != self._warned_of and end - WARNING_SECONDS <= now < end

    def take_expiry_warning(self, now: float) -> bytes | None:
        """Return the frame `expiring`, once for each expiry of the cart; `None` if no warning is due."""
        if self.cart_expires_at is None or not self.needs_expiry_warning(now):
            return None
        self._warned_of = self.cart_expires_at
        return frame_encoder.expiring(self.cart_expires_at, self.cart_version)

    def is_idle(self, now: float) -> bool:
        """Return True if nothing would be lost with this state: no socket, full token buckets, nothing in flight."""
        if self.sessions or now - self.seen_at <= 2 * WINDOW_SECONDS:
            return False
        self.in_flight.forget_stale(self.user_id, now)
        return not self.in_flight.has_requests(self.user_id)
