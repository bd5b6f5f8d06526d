"""A client's side of `holdfast.v1`: which frames to believe, what to say next, when to call again.

Nothing here knows a socket, a clock or chance, so that tests can deliver frames late, twice, in any order or not at
all. The rules are those of the contract: a cart's version grows by exactly one with each change; apply the next one,
ask for the cart after a jump, and let anything else only settle its id.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

Frame = Mapping[str, Any]

SUBPROTOCOL: Final = "holdfast.v1"
CHANGES: Final = frozenset({"add", "set", "remove", "clear", "checkout"})
OUTCOMES: Final = frozenset({"held", "refused", "removed", "order"})
"""The first answer to a change; an `order` moves on and is told again then, under the id of its checkout."""
SAY_AGAIN: Final = frozenset({"unavailable", "rate_limited", "too_many"})
"""The error codes after which the same frame, sent again, still gets its outcome."""
MAX_UNRESOLVED: Final = 64
DEFAULT_RETRY_SECONDS: Final = 1.0


class Later(NamedTuple):
    """A frame to send again after `seconds`, if it still has no answer by then."""

    frame: Frame
    seconds: float


@dataclass(slots=True)
class Step:
    """What follows from one frame received."""

    settled: list[tuple[str, Frame]] = field(default_factory=list)
    """Ids that have their answer now, with it."""
    send: list[Frame] = field(default_factory=list)
    later: list[Later] = field(default_factory=list)


class Conversation:
    """One shopper's cart as the shop last told it, and the frames that still wait for an answer.

    `new_id` makes the ids of the frames that the rules themselves ask for (`cart`, `resume`).
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self.version = 0
        self.lines: dict[str, int] = {}
        self.unresolved: dict[str, Frame] = {}
        """Frames without an answer, by id, in the order they were first said."""
        self._new_id = new_id
        self._newest_told = 0
        self._cart_asked: str | None = None

    def say(self, frame: Frame) -> None:
        """Note `frame`, which has an `id`, as said."""
        self.unresolved.setdefault(frame["id"], frame)

    def resume(self) -> Frame:
        """The first frame on a new socket after a cut."""
        self._cart_asked = None
        for id_ in [id_ for id_, frame in self.unresolved.items() if frame["type"] == "resume"]:
            del self.unresolved[id_]
        waiting = [id_ for id_, frame in self.unresolved.items() if frame["type"] in CHANGES]
        frame = {
            "id": self._new_id(),
            "type": "resume",
            "version": self.version,
            "unresolved": waiting[:MAX_UNRESOLVED],
        }
        self.say(frame)
        return frame

    def hear(self, frame: Frame) -> Step:
        """What to believe of `frame` and what to do about it."""
        step = Step()
        match frame.get("type"):
            case "held" | "removed" | "expired":
                self._change(frame, step)
                self._settle(frame, step)
            case "refused" | "availability" | "order":
                self._settle(frame, step)
            case "cart":
                self._whole_cart(frame, step)
            case "resumed":
                self._settle(frame, step)
                still_pending = set(frame["pending"])
                step.send.extend(said for id_, said in self.unresolved.items() if id_ not in still_pending)
            case "error":
                said = self.unresolved.get(frame.get("id") or "")
                if said is not None and frame["code"] in SAY_AGAIN:
                    step.later.append(Later(said, float(frame.get("retry_after", DEFAULT_RETRY_SECONDS))))
                else:
                    self._settle(frame, step)
            case _:  # `welcome`, `pending`, `stock` and what may be added: nothing that changes the cart
                pass
        return step

    def _change(self, frame: Frame, step: Step) -> None:
        version = frame["version"]
        self._newest_told = max(self._newest_told, version)
        if version == self.version + 1:
            self.version = version
            self._evolve(frame)
        elif version > self.version and self._cart_asked is None:
            self._ask_for_cart(step)

    def _evolve(self, frame: Frame) -> None:
        if frame["type"] == "held":
            self.lines[frame["product"]] = frame["line_quantity"]
        elif frame["type"] == "removed" and frame.get("product"):
            self.lines.pop(frame["product"], None)
        else:  # emptied or expired: the whole cart
            self.lines = {}

    def _whole_cart(self, frame: Frame, step: Step) -> None:
        if frame["version"] >= self.version:
            self.version = frame["version"]
            self.lines = {line["product"]: line["quantity"] for line in frame["lines"]}
        self._newest_told = max(self._newest_told, self.version)
        answered = self.unresolved.get(frame.get("id") or "")
        if answered is not None and answered["type"] == "cart":
            self._settle(frame, step)
            if frame["id"] == self._cart_asked:
                self._cart_asked = None
        if self.version < self._newest_told and self._cart_asked is None:
            self._ask_for_cart(step)

    def _ask_for_cart(self, step: Step) -> None:
        frame = {"id": self._new_id(), "type": "cart"}
        self._cart_asked = frame["id"]
        self.say(frame)
        step.send.append(frame)

    def _settle(self, frame: Frame, step: Step) -> None:
        id_ = frame.get("id")
        if id_ is not None and self.unresolved.pop(id_, None) is not None:
            step.settled.append((id_, frame))


class Again(NamedTuple):
    """When to call again: after `seconds`, with a new token first if `new_token`."""

    seconds: float
    new_token: bool = False


NEVER_AGAIN: Final = frozenset({1003, 1007, 1009, 4400, 4403})
OVERLOADED: Final = frozenset({1013, 4410, 4429})
EXPIRED: Final = 4401
_RETRY_AFTER: Final = re.compile(r"retry_after=(\d+(?:\.\d+)?)")


def call_again(code: int, reason: str, *, attempt: int, chance: float) -> Again | None:
    """When to reconnect after close `code`; none means: not by itself.

    `attempt` counts the calls since the last one that got through, from 0; `chance` is uniform in [0, 1).
    """
    if code in NEVER_AGAIN:
        return None
    if code == EXPIRED:
        return Again(0.0 if attempt == 0 else backoff(attempt, chance), new_token=True)
    if code in OVERLOADED:
        told = _RETRY_AFTER.search(reason)
        return Again(float(told[1]) if told else 5.0 + chance)
    return Again(backoff(attempt, chance))


def backoff(attempt: int, chance: float) -> float:
    """Half a second, doubling to thirty, full jitter."""
    return chance * min(30.0, 0.5 * 2.0 ** min(attempt, 10))
