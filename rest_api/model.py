"""A shopper's socket without the socket: frames in; frames, requests and closes out. No clock, no input or output.

A `Session` is one socket and a `Shopper` is what the sockets of one user share. Every method returns the effects, in
order: `bytes` is a frame to send, the others are the small classes of `shopper.py`. The shell (`stream.py`, `hub.py`)
does what they say. `now` is always in seconds of the Unix clock.
"""

from typing import Any, Final

import orjson
from pydantic import ValidationError

from cart_service import messages as cart
from infrastructure.envelope import first_fault
from rest_api import frames
from rest_api.admission import RETRY_AFTER
from rest_api.limits import Verdict
from rest_api.messages import (
    CLIENT_FRAMES,
    MAX_FRAME_BYTES,
    MAX_WATCHED,
    PING_SECONDS,
    Checkout,
    Client,
    Resume,
    Unwatch,
    Watch,
)
from rest_api.outbound import order_id
from rest_api.shopper import Close, Effect, Publish, Shopper, StartWatching, StopWatching

TOKEN_LEEWAY_SECONDS: Final = 30.0
OWN_READ_SECONDS: Final = 5.0
"""After this long without an answer the session asks again for the cart that it shows by itself."""
READ_SECONDS: Final = 10.0
"""After this long without an answer a client's read is answered `unavailable`."""
OVERLOADED: Final = "more work than the shop can do right now; nothing was done: send the same frame again"
MAX_AWAITED: Final = 256
MAX_RESUMES: Final = 5
"""How many `resume` of a user may wait for their answers beyond the limit of unanswered requests."""

MAX_ID_LENGTH: Final = 64
_ANOTHERS: Final = ("user_id", "cart_id")


class Session:
    """One socket of a shopper."""

    __slots__ = ("_awaited", "_ping", "_reads", "_watched", "closes_at", "id", "shopper")

    def __init__(self, session_id: str, shopper: Shopper, *, expires_at: float, ping: int = PING_SECONDS) -> None:
        """`expires_at` is the token's; the socket is closed when that and the leeway are over."""
        self._ping = ping
        self.id = session_id
        self.shopper = shopper
        self.closes_at = expires_at + TOKEN_LEEWAY_SECONDS
        self._awaited: dict[str, bool] = {}  # changes this socket asked for -> whether it saw `pending`
        self._reads: dict[str, float] = {}  # reads this socket asked for -> until when it waits
        self._watched: set[str] = set()

    @property
    def due(self) -> float:
        """When `tick` next has something to do."""
        return min(self.closes_at, *self._reads.values()) if self._reads else self.closes_at

    def open(self, now: float) -> list[Effect]:
        """The socket is open: `welcome` at once, and the cart by itself."""
        rules = self.shopper.rules
        limits = {
            "changes": rules.changes,
            "others": rules.others,
            "unanswered": rules.unanswered,
            "sockets": rules.sockets,
            "watched": MAX_WATCHED,
            "frame_bytes": MAX_FRAME_BYTES,
        }
        self.shopper.sessions[self.id] = self
        return [
            frames.welcome(self.shopper.user_id, self.id, now, self._ping, limits),
            self._own_read("cart", now),
        ]

    def close(self) -> None:
        """The socket is gone."""
        self.shopper.sessions.pop(self.id, None)
        for request_id in self._reads:
            self.shopper.settle(self._read_key(request_id))

    # ---- frames in --------------------------------------------------------------------------------------------------

    def receive(self, text: str, now: float) -> list[Effect]:
        """A text frame came."""
        try:
            frame = orjson.loads(text)
        except orjson.JSONDecodeError:
            return [frames.error(None, "bad_json", "the frame is not JSON"), Close(4400, "bad_json")]
        fields = frame if isinstance(frame, dict) else {}
        request_id = _readable_id(fields)
        kind = fields.get("type")
        model = CLIENT_FRAMES.get(kind) if isinstance(kind, str) else None
        refusal = self._rate(request_id, now, changes=model is not None and model.CHANGES)
        if refusal:
            return refusal
        asked = self._read_frame(request_id, model, fields)
        return [asked] if isinstance(asked, bytes) else self._act(asked, now)

    def _read_frame(self, request_id: str | None, model: type[Client] | None, fields: dict[str, Any]) -> Client | bytes:
        """What the client asks for, or the error that tells what is wrong with its frame."""
        if request_id is None and fields.get("id") is None:
            return frames.error(None, "missing_id", "a frame is a JSON object with an id of its own")
        if request_id is None or self._is_own(request_id):
            return frames.error(None, "bad_id", "an id is a string of 1 to 64 printable ASCII characters")
        if model is None:
            return frames.error(request_id, "unknown_type", f"type is one of {', '.join(CLIENT_FRAMES)}")
        if any(name in fields and fields[name] != self.shopper.user_id for name in _ANOTHERS):
            return frames.error(request_id, "forbidden", "a frame acts on the cart of its own shopper alone")
        try:
            return model.model_validate(fields)
        except ValidationError as error:
            return _fault(request_id, error)

    def _rate(self, request_id: str | None, now: float, *, changes: bool) -> list[Effect]:
        self.shopper.seen_at = now
        allowance = self.shopper.changes if changes else self.shopper.others
        verdict = Verdict.GRANTED if allowance is None else allowance.take(now)
        if allowance is None or verdict is Verdict.GRANTED:
            return []
        wait = allowance.retry_after
        told = frames.error(request_id, "rate_limited", "more frames than the limit allows", retry_after=wait)
        return [told] if verdict is Verdict.REFUSED else [told, Close(4429, f"retry_after={wait}")]

    def _act(self, asked: Client, now: float) -> list[Effect]:
        match asked:
            case Watch():
                return self._watch(asked)
            case Unwatch():
                self._watched = self._watched.difference(asked.products) if asked.products else set()
                return [StopWatching(asked.products)]
            case Checkout() if not self.shopper.rules.knows(asked.payment.token):
                return [frames.error(asked.id, "bad_field", "no such means of payment", field="payment.token")]
        key = asked.id if asked.CHANGES else self._read_key(asked.id)
        # Who comes back with as much unanswered as may be must be able to ask what became of it.
        spare = MAX_RESUMES if isinstance(asked, Resume) else 0
        if not self.shopper.admits(key, now, spare=spare):
            return [frames.error(asked.id, "too_many", f"{self.shopper.rules.unanswered} requests are unanswered")]
        if not isinstance(asked, Resume) and not self.shopper.has_room(key, now):
            return [frames.error(asked.id, "unavailable", OVERLOADED, retry_after=RETRY_AFTER)]
        verb, data = _request(self.shopper.user_id, asked)
        if asked.CHANGES:
            self._await(asked.id)
        else:
            data["session"] = self.id
            self._reads[asked.id] = now + READ_SECONDS
        return [Publish(asked.id, verb, {"user_id": self.shopper.user_id, **data}, asked.traceparent)]

    def _watch(self, asked: Watch) -> list[Effect]:
        if asked.products is None:
            return [StartWatching(None)]
        watched = self._watched.union(asked.products)
        if len(watched) > MAX_WATCHED:
            detail = f"a socket watches {MAX_WATCHED} products at most, or all"
            return [frames.error(asked.id, "bad_field", detail, field="products")]
        self._watched = watched
        return [StartWatching(asked.products)]

    def _await(self, request_id: str) -> None:
        self._awaited[request_id] = False
        if len(self._awaited) > MAX_AWAITED:  # only with many sends that were answered `unavailable`
            del self._awaited[next(iter(self._awaited))]

    # ---- what became of a send --------------------------------------------------------------------------------------

    def acknowledged(self, request_id: str) -> list[Effect]:
        """Kafka has the request: `pending`, unless its outcome came first."""
        if self._awaited.get(request_id, True):
            return []
        self._awaited[request_id] = True
        return [frames.pending(request_id)]

    def unacknowledged(self, request_id: str, retry_after: int) -> list[Effect]:
        """Kafka did not say in time that it has the request, so it may have it or not."""
        if request_id in self._awaited:
            self.shopper.settle(request_id)
        elif self._reads.pop(request_id, None) is not None:
            self.shopper.settle(self._read_key(request_id))
            if self._is_own(request_id):
                self._reads[request_id] = 0.0  # asked again at the next tick
                return []
        else:
            return []
        return [_unavailable(request_id, retry_after)]

    # ---- answers ----------------------------------------------------------------------------------------------------

    def outcome(self, request_id: str | None, frame: bytes) -> list[Effect]:
        """An outcome of this shopper, whoever asked; where this socket did, its `pending` comes first."""
        if request_id is not None and not self._awaited.pop(request_id, True):
            return [frames.pending(request_id), frame]
        return [frame]

    def rejected(self, message: cart.Error) -> list[Effect]:
        """The request can't be decided; only the socket that asked is told."""
        asked = self._awaited.pop(message.id, None) is not None
        if self._reads.pop(message.id, None) is not None:
            self.shopper.settle(self._read_key(message.id))
            asked = True
        more = {"field": message.field} if message.field else {}
        return [frames.error(message.id, message.code, message.detail, **more)] if asked else []

    def answered(self, request_id: str, answer: list[bytes]) -> list[Effect]:
        """The answer to a read of this socket; nothing when it no longer waits for one."""
        if self._reads.pop(request_id, None) is None:
            return []
        self.shopper.settle(self._read_key(request_id))
        return list(answer)

    def client_id(self, request_id: str) -> str | None:
        """The id that the client knows a read by: none for those that the session makes by itself."""
        return None if self._is_own(request_id) else request_id

    def resolved(self, message: cart.Resumed) -> None:
        """The answer to `resume` says what became of these ids; none of them is waited for as if it were new."""
        for request_id in (*(stored.id for stored in message.outcomes), *message.unknown):
            self._awaited.pop(request_id, None)
            self.shopper.settle(request_id)

    # ---- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: end with the token, ask again for the own cart, give up the client's reads."""
        if now >= self.closes_at:
            return [Close(4401, "the token has expired")]
        effects: list[Effect] = []
        for request_id in [name for name, until in self._reads.items() if until <= now]:
            if self._is_own(request_id):
                effects.append(self._own_read(request_id.rpartition("/")[2], now))
            else:
                del self._reads[request_id]
                self.shopper.settle(self._read_key(request_id))
                effects.append(_unavailable(request_id, 1))
        return effects

    def look_at_end(self, now: float) -> list[Effect]:
        """Read the cart before telling that it nears its end: a removal may have emptied it."""
        return [] if f"{self.id}/end" in self._reads else [self._own_read("end", now)]

    def _own_read(self, name: str, now: float) -> Publish:
        request_id = f"{self.id}/{name}"
        self._reads[request_id] = now + OWN_READ_SECONDS
        return Publish(request_id, "read", {"user_id": self.shopper.user_id, "session": self.id})

    def _is_own(self, request_id: str) -> bool:
        return request_id.startswith(f"{self.id}/")

    def _read_key(self, request_id: str) -> str:
        """A read is one socket's, so two sockets may use one id for theirs."""
        return f"{self.id}\0{request_id}"


def _request(user_id: str, asked: Client) -> tuple[str, dict[str, Any]]:
    match asked:
        case Resume():
            return "lookup", {"ids": list(dict.fromkeys(asked.unresolved))}
        case Checkout():
            return "checkout", {"order_id": order_id(user_id, asked.id), **asked.command()}
    verb = "read" if asked.type == "cart" else asked.type
    return verb, {name: getattr(asked, name) for name in ("product", "quantity") if hasattr(asked, name)}


def _readable_id(fields: dict[str, Any]) -> str | None:
    request_id = fields.get("id")
    if not (isinstance(request_id, str) and request_id.isascii() and request_id.isprintable()):
        return None
    return request_id if 0 < len(request_id) <= MAX_ID_LENGTH else None


def _fault(request_id: str, error: ValidationError) -> bytes:
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    path = list(fault["loc"])
    while isinstance(path[-1], int):  # one of a list: the list is what is wrong
        path.pop()
    field = ".".join(map(str, path))
    if path[-1] == "quantity":
        return frames.error(request_id, "bad_quantity", first_fault(error), field=field)
    return frames.error(request_id, "bad_field", first_fault(error), field=field)


def _unavailable(request_id: str, retry_after: int) -> bytes:
    detail = "not known to be accepted: send the same frame again"
    return frames.error(request_id, "unavailable", detail, retry_after=retry_after)
