"""The sans-I/O session of one socket: frames in; frames, requests and closes out. No clock, no I/O.

A `Session` is one socket, and a `UserState` is the state that the sockets of one user share. Methods return effects, in
order: `bytes` is a frame to send, the others are the classes of `protocol/effects.py`. After calling a method you must
carry out its effects; `ConnectionManager.execute` does. `now` is always in seconds of the Unix clock.
"""

from typing import Any, Final, Protocol

import orjson
from pydantic import ValidationError

from contracts import cart
from contracts.envelope import first_error
from rest_api.protocol import frame_encoder
from rest_api.protocol.client_frames import (
    CLIENT_FRAMES,
    MAX_FRAME_BYTES,
    MAX_WATCHED,
    PING_SECONDS,
    Checkout,
    Client,
    ClientFrame,
    Resume,
    Unwatch,
    Watch,
    order_id,
)
from rest_api.protocol.effects import Close, Effect, Publish, StartWatching, StopWatching
from rest_api.security.admission import RETRY_AFTER
from rest_api.security.costs import frame_cost
from rest_api.security.token_bucket import Allowance, LimitResult
from rest_api.websocket.in_flight import Registration
from rest_api.websocket.user_state import UserState

TOKEN_LEEWAY_SECONDS: Final = 30.0
CART_READ_SECONDS: Final = 1.0
"""Least time between two reads of the cart that a user's new sockets make."""
OWN_READ_RETRY_SECONDS: Final = 5.0
"""After this long without an answer the session retries a read that it made by itself."""
READ_TIMEOUT_SECONDS: Final = 10.0
"""After this long without an answer the read of a client is answered with `unavailable`."""
OVERLOADED_DETAIL: Final = "the shop is overloaded and nothing was done; send the same frame again"
MAX_EXTRA_RESUMES: Final = 5
"""Number of `resume` frames of a user that may be unanswered beyond the limit of unanswered requests."""

MAX_ID_LENGTH: Final = 64
_OWNER_FIELDS: Final = ("user_id", "cart_id")


class NetworkBudget(Protocol):
    """The allowances for the frames of all users of one client network."""

    @property
    def changes(self) -> Allowance:
        """The allowance for frames that change something."""

    @property
    def others(self) -> Allowance:
        """The allowance for all other frames."""


class Session:
    """The state of one socket."""

    __slots__ = ("_in_flight", "_network", "_ping", "_watched", "closes_at", "id", "user")

    def __init__(
        self,
        session_id: str,
        user: UserState,
        *,
        expires_at: float,
        ping: int = PING_SECONDS,
        network: NetworkBudget | None = None,
    ) -> None:
        """`expires_at` is the expiry of the token; the socket is closed once that and the leeway have passed.

        `network` is the budget that all users of the client's network share, if there is one.
        """
        self._network = network
        self._ping = ping
        self.id = session_id
        self.user = user
        self.closes_at = expires_at + TOKEN_LEEWAY_SECONDS
        self._in_flight = user.in_flight
        self._watched: set[str] = set()

    @property
    def next_wakeup(self) -> float:
        """The time at which `tick` next has something to do."""
        deadline = self._in_flight.next_deadline(self.id)
        return self.closes_at if deadline is None else min(self.closes_at, deadline)

    def open(self, now: float) -> list[Effect]:
        """Begin: return `welcome` and a read of the cart. Call it once, before any other method."""
        rules = self.user.limits
        limits = {
            "changes": rules.changes,
            "others": rules.others,
            "unanswered": rules.unanswered,
            "sockets": rules.sockets,
            "watched": MAX_WATCHED,
            "frame_bytes": MAX_FRAME_BYTES,
        }
        self.user.sessions[self.id] = None
        return [
            frame_encoder.welcome(self.user.user_id, self.id, now, self._ping, limits),
            *self._start_cart_read(now),
        ]

    def close(self) -> None:
        """End: the socket is gone. Call it once, on every path; sends under way may still report afterwards."""
        self.user.sessions.pop(self.id, None)
        self._in_flight.close(self.user.user_id, self.id)

    # ---- frames in --------------------------------------------------------------------------------------------------

    def receive(self, text: str, now: float) -> list[Effect]:
        """Handle a text frame of the client."""
        try:
            frame = orjson.loads(text)
        except orjson.JSONDecodeError:
            return [frame_encoder.error(None, "bad_json", "the frame is not JSON"), Close(4400, "bad_json")]
        fields = frame if isinstance(frame, dict) else {}
        request_id = _readable_id(fields)
        kind = fields.get("type")
        model = CLIENT_FRAMES.get(kind) if isinstance(kind, str) else None
        refusal = self._check_rate(request_id, fields, now, changes=model is not None and model.CHANGES)
        if refusal:
            return refusal
        request = self._parse(request_id, model, fields)
        return [request] if isinstance(request, bytes) else self._execute(request, now)

    def _parse(self, request_id: str | None, model: type[Client] | None, fields: dict[str, Any]) -> Client | bytes:
        """Return the request in a frame, or the error frame that says what is wrong with it."""
        if request_id is None and fields.get("id") is None:
            return frame_encoder.error(None, "missing_id", "a frame is a JSON object with an `id`")
        if request_id is None or self._is_own_read(request_id):
            return frame_encoder.error(None, "bad_id", "an id is a string of 1 to 64 printable ASCII characters")
        if model is None:
            return frame_encoder.error(request_id, "unknown_type", f"type is one of {', '.join(CLIENT_FRAMES)}")
        if any(name in fields and fields[name] != self.user.user_id for name in _OWNER_FIELDS):
            return frame_encoder.error(request_id, "forbidden", "a frame acts on the cart of its own user only")
        try:
            return model.model_validate(fields)
        except ValidationError as error:
            return _validation_error(request_id, error)

    def _check_rate(self, request_id: str | None, fields: dict[str, Any], now: float, *, changes: bool) -> list[Effect]:
        self.user.seen_at = now
        allowance = self.user.change_allowance if changes else self.user.other_allowance
        if allowance is not None:
            cost = frame_cost(fields.get("type"), fields.get("products"), allowance.size)
            result = allowance.take(now, cost)
            if result is not LimitResult.GRANTED:
                wait = allowance.retry_after
                refusal = _rate_limited(request_id, "more frames than the limit allows", wait)
                return [refusal] if result is LimitResult.REFUSED else [refusal, Close(4429, f"retry_after={wait}")]
            if self._network is not None:
                # Never a reason to close the socket: other users may have used up the budget.
                shared = self._network.changes if changes else self._network.others
                if shared.take(now, cost) is not LimitResult.GRANTED:
                    detail = "more frames than the limit allows for all users of this network"
                    return [_rate_limited(request_id, detail, shared.retry_after)]
        return []

    def _execute(self, request: Client, now: float) -> list[Effect]:
        match request:
            case Watch():
                return self._start_watching(request)
            case Unwatch():
                self._watched = self._watched.difference(request.products) if request.products else set()
                return [StopWatching(request.products)]
            case Checkout() if not self.user.limits.accepts_token(request.payment.token):
                return [frame_encoder.error(request.id, "bad_field", "unknown payment token", field="payment.token")]
        resumes = isinstance(request, Resume)
        match self.user.register(
            request.id,
            now,
            session=self.id,
            read_until=None if request.CHANGES else now + READ_TIMEOUT_SECONDS,
            # A client that reconnects at its limit must still be able to `resume`.
            spare=MAX_EXTRA_RESUMES if resumes else 0,
            is_guarded=not resumes,
        ):
            case Registration.TOO_MANY:
                return [
                    frame_encoder.error(
                        request.id, "too_many", f"{self.user.limits.unanswered} requests are unanswered"
                    )
                ]
            case Registration.OVERLOADED:
                return [frame_encoder.error(request.id, "unavailable", OVERLOADED_DETAIL, retry_after=RETRY_AFTER)]
        verb, data = _cart_command(self.user.user_id, request)
        if not request.CHANGES:
            data["session"] = self.id
        return [Publish(request.id, verb, {"user_id": self.user.user_id, **data}, request.traceparent)]

    def _start_watching(self, request: Watch) -> list[Effect]:
        if request.products is None:
            return [StartWatching(None)]
        watched = self._watched.union(request.products)
        if len(watched) > MAX_WATCHED:
            detail = f"a socket watches {MAX_WATCHED} products at most, or all"
            return [frame_encoder.error(request.id, "bad_field", detail, field="products")]
        self._watched = watched
        return [StartWatching(request.products)]

    # ---- acknowledgements --------------------------------------------------------------------------------------------

    def on_acknowledged(self, request_id: str) -> list[bytes]:
        """Handle the acknowledgement of Kafka: return `pending`, unless the outcome came first."""
        is_first = self._in_flight.acknowledge(self.user.user_id, request_id, self.id)
        return [frame_encoder.pending(request_id)] if is_first else []

    def on_unacknowledged(self, request_id: str, retry_after: int) -> list[bytes]:
        """Handle a send that Kafka did not acknowledge in time; the request may or may not be there."""
        user_id = self.user.user_id
        if self._in_flight.is_awaited(user_id, request_id, self.id):
            self._in_flight.release(user_id, request_id)
        elif not self._in_flight.settle_read(user_id, request_id, self.id):
            return []
        elif self._is_own_read(request_id):
            self.user.cart_read_at = float("-inf")  # it was perhaps not made
            self._in_flight.register_own_read(user_id, request_id, self.id, 0.0)  # retried at the next tick
            return []
        return [_unavailable(request_id, retry_after)]

    # ---- answers ----------------------------------------------------------------------------------------------------

    def on_outcome(self, request_id: str | None, frame: bytes) -> list[bytes]:
        """Return the frames for an outcome of this user; on the socket that sent the request `pending` comes first."""
        if request_id is not None and self._in_flight.acknowledge(self.user.user_id, request_id, self.id):
            return [frame_encoder.pending(request_id), frame]
        return [frame]

    def on_rejected(self, message: cart.Error) -> list[bytes]:
        """Return the error for a request that cannot be decided, if this socket sent it."""
        user_id = self.user.user_id
        awaited = self._in_flight.settle_read(user_id, message.id, self.id)
        awaited |= self._in_flight.is_awaited(user_id, message.id, self.id)
        more = {"field": message.field} if message.field else {}
        return [frame_encoder.error(message.id, message.code, message.detail, **more)] if awaited else []

    def on_read_answered(self, request_id: str, answer: list[bytes]) -> list[bytes]:
        """Return the frames that answer a read of this socket; none if it no longer waits for the answer."""
        return list(answer) if self._in_flight.settle_read(self.user.user_id, request_id, self.id) else []

    def client_id(self, request_id: str) -> str | None:
        """Return the id by which the client knows a read; `None` for a read that the session made by itself."""
        return None if self._is_own_read(request_id) else request_id

    def on_resumed(self, message: cart.Resumed) -> None:
        """Stop waiting for the requests whose outcome the answer to `resume` gives, or which it calls unknown."""
        for request_id in (*(stored.id for stored in message.outcomes), *message.unknown):
            self._in_flight.detach(self.user.user_id, request_id, self.id)

    # ---- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Handle the passing of time: close with the token, retry own reads, give up overdue reads of the client."""
        if now >= self.closes_at:
            return [Close(4401, "the token has expired")]
        effects: list[Effect] = []
        for request_id in self._in_flight.overdue_reads(self.id, now):
            if request_id == self.cart_read_id:
                effects += self._start_cart_read(now)
            elif self._is_own_read(request_id):
                effects.append(self._start_own_read(request_id.rpartition("/")[2], now))
            else:
                self._in_flight.settle_read(self.user.user_id, request_id, self.id)
                effects.append(_unavailable(request_id, 1))
        return effects

    def read_before_expiry_warning(self, now: float) -> list[Effect]:
        """Read the cart before warning that it expires, because a removal may have emptied it."""
        return [] if self._in_flight.is_reading(self.id, f"{self.id}/end") else [self._start_own_read("end", now)]

    @property
    def cart_read_id(self) -> str:
        """The id of the read of the cart that follows `welcome`."""
        return f"{self.id}/cart"

    def _start_cart_read(self, now: float) -> list[Effect]:
        """Read the cart for a new socket, unless a socket of the same user has just done it.

        That read answers both; without an answer this socket reads a second later, if it is still open. So sockets that
        are opened and closed without end make at most one request per second.
        """
        age = now - self.user.cart_read_at
        if 0 <= age < CART_READ_SECONDS:
            due = self.user.cart_read_at + CART_READ_SECONDS
            self._in_flight.register_own_read(self.user.user_id, self.cart_read_id, self.id, due)
            return []
        self.user.cart_read_at = now
        return [self._start_own_read("cart", now)]

    def _start_own_read(self, name: str, now: float) -> Publish:
        request_id = f"{self.id}/{name}"
        self._in_flight.register_own_read(self.user.user_id, request_id, self.id, now + OWN_READ_RETRY_SECONDS)
        return Publish(request_id, "read", {"user_id": self.user.user_id, "session": self.id})

    def _is_own_read(self, request_id: str) -> bool:
        return request_id.startswith(f"{self.id}/")


def _cart_command(user_id: str, request: Client) -> tuple[str, dict[str, Any]]:
    match request:
        case Resume():
            return "lookup", {"ids": list(dict.fromkeys(request.unresolved))}
        case Checkout():
            return "checkout", {"order_id": order_id(user_id, request.id), **request.command()}
    verb = "read" if request.type == "cart" else request.type
    return verb, request.model_dump(mode="json", exclude={"type", *ClientFrame.model_fields}, exclude_none=True)


def _readable_id(fields: dict[str, Any]) -> str | None:
    request_id = fields.get("id")
    if not (isinstance(request_id, str) and request_id.isascii() and request_id.isprintable()):
        return None
    return request_id if 0 < len(request_id) <= MAX_ID_LENGTH else None


def _validation_error(request_id: str, error: ValidationError) -> bytes:
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    path = list(fault["loc"])
    while isinstance(path[-1], int):  # an item of a list: report the list
        path.pop()
    field = ".".join(map(str, path))
    if path[-1] == "quantity":
        return frame_encoder.error(request_id, "bad_quantity", first_error(error), field=field)
    return frame_encoder.error(request_id, "bad_field", first_error(error), field=field)


def _rate_limited(request_id: str | None, detail: str, retry_after: int) -> bytes:
    return frame_encoder.error(request_id, "rate_limited", detail, retry_after=retry_after)


def _unavailable(request_id: str, retry_after: int) -> bytes:
    detail = "it is unknown if the request was accepted; send the same frame again"
    return frame_encoder.error(request_id, "unavailable", detail, retry_after=retry_after)
