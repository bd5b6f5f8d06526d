"""What all sockets and REST requests of one user share, and the effects that a session asks its shell for. Pure.

`now` is always in seconds of the Unix clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cart_service import messages as cart
from rest_api import frames
from rest_api.admission import Admission
from rest_api.limits import WINDOW, Allowance

if TYPE_CHECKING:
    from rest_api.model import Session

WARNING_SECONDS: Final = 120.0
"""How long before the end of a cart its shopper is told."""
FORGET_SECONDS: Final = 900.0
"""A request that nothing was heard of for so long no longer counts as unanswered."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of one user, and the payment tokens that are known; None lifts a limit, or knows any token."""

    changes: int | None = 100
    others: int | None = 600
    unanswered: int | None = 64
    sockets: int | None = 5
    tokens: frozenset[str] | None = None

    def knows(self, token: str) -> bool:
        """Whether a token can stand for a means of payment here."""
        return self.tokens is None or token in self.tokens


@dataclass(frozen=True, slots=True)
class Publish:
    """Send a request to the carts. `data` is the envelope's, `verb` the last word of its type."""

    request_id: str
    verb: str
    data: dict[str, Any]
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket after what was sent before."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class StartWatching:
    """Send the stock of these products, or of all, now and as it changes."""

    products: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class StopWatching:
    """Send the stock of these products, or of any, no more."""

    products: tuple[str, ...] | None


Effect = bytes | Publish | Close | StartWatching | StopWatching


class Shopper:
    """What the sockets and the REST requests of one user share: limits, what is unanswered, when the cart ends."""

    __slots__ = (
        "_admission",
        "_told",
        "changes",
        "expires_at",
        "others",
        "rules",
        "seen_at",
        "sessions",
        "unanswered",
        "user_id",
        "version",
    )

    def __init__(self, user_id: str, rules: Rules, now: float, admission: Admission | None = None) -> None:
        self.user_id = user_id
        self._admission = Admission(None) if admission is None else admission
        self.rules = rules
        self.sessions: dict[str, Session] = {}
        self.unanswered: dict[str, float] = {}
        self.changes = None if rules.changes is None else Allowance(rules.changes, now)
        self.others = None if rules.others is None else Allowance(rules.others, now)
        self.version = -1
        self.expires_at: float | None = None
        self.seen_at = now
        self._told: float | None = None

    def admits(self, request_id: str, now: float, *, spare: int = 0) -> bool:
        """Count a request as unanswered; False when there are too many, and it is not one of them sent again.

        A few requests may go past the limit: as many as `spare` says.
        """
        limit = self.rules.unanswered
        if limit is not None and request_id not in self.unanswered and len(self.unanswered) >= limit + spare:
            self.forget(now)
            if len(self.unanswered) >= limit + spare:
                return False
        self.unanswered[request_id] = now
        return True

    def has_room(self, request_id: str, now: float) -> bool:
        """Let a request that is counted in; when the whole shop has too much to do, count it no more: False."""
        if self._admission.admits(self.user_id, request_id, now):
            return True
        self.settle(request_id)
        return False

    def settle(self, request_id: str) -> None:
        """The request has its answer."""
        self.unanswered.pop(request_id, None)
        self._admission.settle(self.user_id, request_id)

    def forget(self, now: float) -> None:
        """Count no longer what nothing was heard of for a quarter of an hour."""
        self.unanswered = {name: since for name, since in self.unanswered.items() if now - since < FORGET_SECONDS}

    def note(self, message: frames.Outcome | cart.CartView) -> None:
        """Learn from an outcome or a cart when the cart will come to its end."""
        match message:
            case cart.Held() if message.version > self.version:
                self.version, self.expires_at = message.version, message.expires_at.timestamp()
            case cart.Removed() if message.version > self.version:
                self.version = message.version
            case cart.Expired() if message.version > self.version:
                self.version, self.expires_at = message.version, None
            case cart.CartView() if message.version >= self.version:
                self.version = message.version
                self.expires_at = message.expires_at.timestamp() if message.expires_at and message.lines else None

    def nears_its_end(self, now: float) -> bool:
        """Whether the cart's last two minutes have begun, its shopper is here and has not been told."""
        end = self.expires_at
        return bool(self.sessions) and end is not None and end != self._told and end - WARNING_SECONDS <= now < end

    def warning(self, now: float) -> bytes | None:
        """The frame `expiring`, once for each end of the cart; None when it is not the time."""
        if self.expires_at is None or not self.nears_its_end(now):
            return None
        self._told = self.expires_at
        return frames.expiring(self.expires_at, self.version)

    def idle(self, now: float) -> bool:
        """Whether nothing would be lost by forgetting this shopper: no socket, full buckets, nothing unanswered."""
        if self.sessions or now - self.seen_at <= 2 * WINDOW:
            return False
        self.forget(now)
        return not self.unanswered
