"""Client side of `holdfast.v1`: which frames to apply, what to send next, when to reconnect.

No I/O, clock or randomness, so that tests can deliver frames late, twice, in any order or not at all. The rules are
those of the contract. A cart's version grows by exactly one with each change: the client applies the next version,
requests the whole cart after a gap, and lets any other frame only settle its request.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

Frame = Mapping[str, Any]

SUBPROTOCOL: Final = "holdfast.v1"
CHANGES: Final = frozenset({"add", "set", "remove", "clear", "checkout"})
OUTCOMES: Final = frozenset({"held", "refused", "removed", "order"})
"""Types of the first answer to a change. An `order` is sent again at each later status, under the id of its checkout.
"""
RETRYABLE_CODES: Final = frozenset({"unavailable", "rate_limited", "too_many"})
"""Error codes after which the client should resend the same frame; it still gets its outcome."""
MAX_UNRESOLVED: Final = 64
DEFAULT_RETRY_SECONDS: Final = 1.0


class DelayedResend(NamedTuple):
    """Frame to resend after `seconds`, if it has no answer by then."""

    frame: Frame
    seconds: float


@dataclass(slots=True)
class Actions:
    """Actions that follow from one received frame."""

    settled: list[tuple[str, Frame]] = field(default_factory=list)
    """Requests that have their answer now, as (id, answer)."""
    send: list[Frame] = field(default_factory=list)
    resend: list[DelayedResend] = field(default_factory=list)


class ClientState:
    """One shopper's cart as last received, and the frames that have no answer yet.

    `new_id` makes the ids of the frames that the rules themselves require (`cart`, `resume`).
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self.version = 0
        self.lines: dict[str, int] = {}
        self.unresolved: dict[str, Frame] = {}
        """Frames without an answer by id, in the order in which they were first sent."""
        self._new_id = new_id
        self._newest_seen = 0
        self._cart_request_id: str | None = None

    def record_sent(self, frame: Frame) -> None:
        """Record `frame`, which must have an `id`, as sent."""
        self.unresolved.setdefault(frame["id"], frame)

    def resume(self) -> Frame:
        """Return the first frame to send on a new socket after a disconnect."""
        self._cart_request_id = None
        for id_ in [id_ for id_, frame in self.unresolved.items() if frame["type"] == "resume"]:
            del self.unresolved[id_]
        waiting = [id_ for id_, frame in self.unresolved.items() if frame["type"] in CHANGES]
        frame = {
            "id": self._new_id(),
            "type": "resume",
            "version": self.version,
            "unresolved": waiting[:MAX_UNRESOLVED],
        }
        self.record_sent(frame)
        return frame

    def apply(self, frame: Frame) -> Actions:
        """Apply `frame` and return the actions that follow."""
        step = Actions()
        match frame.get("type"):
            case "held" | "removed" | "expired":
                self._apply_change(frame, step)
                self._settle(frame, step)
            case "refused" | "availability" | "order":
                self._settle(frame, step)
            case "cart":
                self._apply_cart(frame, step)
            case "resumed":
                self._settle(frame, step)
                still_pending = set(frame["pending"])
                step.send.extend(original for id_, original in self.unresolved.items() if id_ not in still_pending)
            case "error":
                original = self.unresolved.get(frame.get("id") or "")
                if original is not None and frame["code"] in RETRYABLE_CODES:
                    step.resend.append(DelayedResend(original, float(frame.get("retry_after", DEFAULT_RETRY_SECONDS))))
                else:
                    self._settle(frame, step)
            case _:  # `welcome`, `pending`, `stock` and unknown types do not change the cart
                pass
        return step

    def _apply_change(self, frame: Frame, step: Actions) -> None:
        version = frame["version"]
        self._newest_seen = max(self._newest_seen, version)
        if version == self.version + 1:
            self.version = version
            self._evolve(frame)
        elif version > self.version and self._cart_request_id is None:
            self._request_cart(step)

    def _evolve(self, frame: Frame) -> None:
        if frame["type"] == "held":
            self.lines[frame["product"]] = frame["line_quantity"]
        elif frame["type"] == "removed" and frame.get("product"):
            self.lines.pop(frame["product"], None)
        else:  # cleared or expired: the whole cart
            self.lines = {}

    def _apply_cart(self, frame: Frame, step: Actions) -> None:
        if frame["version"] >= self.version:
            self.version = frame["version"]
            self.lines = {line["product"]: line["quantity"] for line in frame["lines"]}
        self._newest_seen = max(self._newest_seen, self.version)
        request = self.unresolved.get(frame.get("id") or "")
        if request is not None and request["type"] == "cart":
            self._settle(frame, step)
            if frame["id"] == self._cart_request_id:
                self._cart_request_id = None
        if self.version < self._newest_seen and self._cart_request_id is None:
            self._request_cart(step)

    def _request_cart(self, step: Actions) -> None:
        frame = {"id": self._new_id(), "type": "cart"}
        self._cart_request_id = frame["id"]
        self.record_sent(frame)
        step.send.append(frame)

    def _settle(self, frame: Frame, step: Actions) -> None:
        id_ = frame.get("id")
        if id_ is not None and self.unresolved.pop(id_, None) is not None:
            step.settled.append((id_, frame))


class Reconnect(NamedTuple):
    """Decision to reconnect after `seconds`, first renewing the token if `new_token`."""

    seconds: float
    new_token: bool = False


FATAL_CLOSE_CODES: Final = frozenset({1003, 1007, 1009, 4400, 4403})
OVERLOADED_CLOSE_CODES: Final = frozenset({1013, 4410, 4429})
TOKEN_EXPIRED_CLOSE_CODE: Final = 4401
_RETRY_AFTER: Final = re.compile(r"retry_after=(\d+(?:\.\d+)?)")


def plan_reconnect(code: int, reason: str, *, attempt: int, chance: float) -> Reconnect | None:
    """Return when to reconnect after close `code`, or `None` if the client must not reconnect by itself.

    `attempt` counts the attempts since the last successful one, from 0; `chance` is uniform in [0, 1).
    """
    if code in FATAL_CLOSE_CODES:
        return None
    if code == TOKEN_EXPIRED_CLOSE_CODE:
        return Reconnect(0.0 if attempt == 0 else backoff_seconds(attempt, chance), new_token=True)
    if code in OVERLOADED_CLOSE_CODES:
        match_ = _RETRY_AFTER.search(reason)
        return Reconnect(float(match_[1]) if match_ else 5.0 + chance)
    return Reconnect(backoff_seconds(attempt, chance))


def backoff_seconds(attempt: int, chance: float) -> float:
    """Return a delay with full jitter: up to half a second, doubling with each attempt up to thirty."""
    return chance * min(30.0, 0.5 * 2.0 ** min(attempt, 10))
