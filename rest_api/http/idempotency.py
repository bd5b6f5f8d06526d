"""Idempotent execution of HTTP commands: claim the key, send the request, wait for the answer.

A request with an `Idempotency-Key` is claimed in the edge's schema before it is sent, so that a repeat finds the claim:
answered (the same answer is returned), open (the repeat waits, or gets 409), or made for another content (422). The id
on the topics is derived from the key, so even a claim that is taken over cannot be executed twice.

A request takes room in the admission control of the edge before it waits for its claim.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson
from fastapi import Response

from contracts import cart
from contracts.ids import derive_id, uuid7
from contracts.url_paths import encode_segment
from infrastructure.process import clock
from infrastructure.process.failpoints import failpoint
from rest_api.http.dependencies import AppState
from rest_api.http.fields.preferences import wait_seconds
from rest_api.kafka.gateway import RETRY_AFTER, cart_request_envelope
from rest_api.protocol.effects import Publish
from rest_api.protocol.problems import Problem
from rest_api.read_models.claims import IdempotencyRecord
from rest_api.read_models.store import UNAVAILABLE_ERRORS
from rest_api.websocket.connections import ConnectionManager
from rest_api.websocket.in_flight import Registration, Reply
from rest_api.websocket.user_state import UserState

log = logging.getLogger(__name__)

MAX_KEY_LENGTH: Final = 255
ACCEPTED: Final = 202
CLAIM_TIMEOUT_SECONDS: Final = 10.0
FIRST_POLL_SECONDS: Final = 0.02
LAST_POLL_SECONDS: Final = 0.5
"""The first and the longest pause between two reads of a claim that a repeated request waits for."""
READS_BEYOND_LIMIT: Final = 8
"""Reads of a user over HTTP that may be unanswered beyond the limit of unanswered requests."""


class Command(Protocol):
    """A command over HTTP. `execute` executes it; the methods are the parts in which commands differ."""

    @property
    def fingerprint(self) -> str:
        """The content in a normal form; two requests with one idempotency key are the same if it is equal."""

    @property
    def reply_to_user(self) -> str:
        """The user under whose key the answer arrives."""

    def request_id(self, key: str) -> str:
        """Return the id on the topics of the request with this idempotency key."""

    async def check(self, edge: AppState, request_id: str) -> None:
        """Raise `Problem` if the request cannot succeed; called before it is sent for the first time."""

    async def send(self, edge: AppState, request_id: str) -> bool:
        """Send the request; False if Kafka did not acknowledge it in time."""

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """Return the body of a 202 response, and its `Location`."""

    async def response_body(self, edge: AppState, answer: Reply) -> bytes:
        """Return the body of a 200 response, or raise the `Problem` that corresponds to the answer."""


@dataclass(frozen=True, slots=True)
class CartCommand:
    """A command to a cart. `method` and `route` are the scope of its idempotency key."""

    user_id: str
    verb: str
    command: dict[str, Any]
    method: str
    route: str

    @property
    def fingerprint(self) -> str:
        """The command as sorted JSON."""
        return orjson.dumps({"type": self.verb, **self.command}, option=orjson.OPT_SORT_KEYS).decode()

    @property
    def reply_to_user(self) -> str:
        """The owner of the cart."""
        return self.user_id

    def request_id(self, key: str) -> str:
        """Return an id among those of the user, as the ids of frames are."""
        return derive_id(self.method, self.route, key)

    async def check(self, edge: AppState, request_id: str) -> None:
        """Check nothing: only inventory knows."""

    async def send(self, edge: AppState, request_id: str) -> bool:
        """Send the command to the carts."""
        request = Publish(request_id, self.verb, {"user_id": self.user_id, **self.command})
        return await edge.connections.send(cart_request_envelope(self.user_id, request))

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """Return the request id, and the route of its outcome."""
        return {"request_id": request_id}, f"/v1/cart/requests/{encode_segment(request_id)}"

    async def response_body(self, edge: AppState, answer: Reply) -> bytes:  # noqa: ARG002 - other commands need it
        """Return the frame of the outcome; a refusal is an outcome too."""
        return answer.frame


@contextlib.contextmanager
def registered_read(connections: ConnectionManager, user_id: str, request_id: str) -> Iterator["asyncio.Future[Reply]"]:
    """Count a read as unanswered and in flight, like a change, and yield the future of its answer.

    Raise `Problem` if the user, or the shop, has too many. A client at its limit may still read a few outcomes.
    """
    user = connections.user_state(user_id)
    _register(user, request_id, spare=READS_BEYOND_LIMIT)
    try:
        with connections.wait_for_reply(user_id, request_id) as answer:
            yield answer
    finally:
        user.release(request_id)


async def read_from_carts(
    connections: ConnectionManager, user_id: str, verb: str, data: dict[str, Any], *, seconds: float
) -> cart.Response:
    """Send a read to the carts and return the answer; raise `Problem` if none arrives within `seconds`."""
    request_id = uuid7()
    with registered_read(connections, user_id, request_id) as answer:
        try:
            async with asyncio.timeout(seconds):
                request = Publish(request_id, verb, {"user_id": user_id, "session": request_id, **data})
                if not await connections.send(cart_request_envelope(user_id, request)):
                    raise Problem("unavailable", "the cart service is unavailable", retry_after=RETRY_AFTER)
                message = (await answer).message
                assert isinstance(message, cart.Response)  # only carts answer their reads
                return message
        except TimeoutError:
            raise Problem("unavailable", "the cart service does not answer", retry_after=RETRY_AFTER) from None


async def execute(edge: AppState, user_id: str, command: Command, *, key: str | None, prefer: str | None) -> Response:
    """Execute a command of a user, and return 202, or with `Prefer: wait` the outcome."""
    limit = WaitLimit(wait_seconds(prefer))
    if key is None:
        request_id = uuid7()
        await command.check(edge, request_id)
        return await send_command(edge, request_id, command, limit)
    if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        raise Problem("bad-request", f"an Idempotency-Key is 1 to {MAX_KEY_LENGTH} printable ASCII characters")
    request_id = command.request_id(key)
    try:
        with _reserved_room(edge.connections):
            kept = await _claim(edge, user_id, request_id, command, limit)
        if kept is not None:
            return kept
    except UNAVAILABLE_ERRORS:
        raise Problem("unavailable", "idempotency keys are unavailable", retry_after=RETRY_AFTER) from None
    try:
        response = await send_command(edge, request_id, command, limit)
    except Problem:
        await _persist_best_effort(edge.claims.release(user_id, request_id))
        raise
    failpoint("edge.answered")
    await _persist_best_effort(
        edge.claims.store_response(user_id, request_id, response.status_code, bytes(response.body))
    )
    return response


class WaitLimit:
    """The time that a request may wait for its outcome: `seconds` from now on, or no time without `Prefer: wait`."""

    __slots__ = ("_until", "seconds")

    def __init__(self, seconds: int | None) -> None:
        self.seconds = seconds
        self._until = time.monotonic() + (seconds or 0)

    @property
    def left(self) -> float:
        """The seconds that are left, not below 0."""
        return max(0.0, self._until - time.monotonic())


@contextlib.contextmanager
def _reserved_room(connections: ConnectionManager) -> Iterator[None]:
    """Take room for a request that waits for its key; raise `Problem` if the shop has too many in flight."""
    if not connections.in_flight.reserve(clock.now().timestamp()):
        raise overloaded()
    try:
        yield
    finally:
        connections.in_flight.unreserve()


async def _claim(edge: AppState, user_id: str, request_id: str, command: Command, limit: WaitLimit) -> Response | None:
    """Return `None` if the request is to be sent, or the answer of the first one; raise `Problem` for 409 and 422."""
    claimed = await edge.claims.claim(user_id, request_id, command.fingerprint)
    while claimed is not None and claimed.status is None and claimed.fingerprint == command.fingerprint:
        if claimed.claim_age >= CLAIM_TIMEOUT_SECONDS and await edge.claims.take_over(
            user_id, request_id, CLAIM_TIMEOUT_SECONDS
        ):
            return None
        if not limit.left:
            raise Problem("request-in-progress", "the first request with this key has no answer yet", retry_after=1)
        claimed = await _await_first(edge, user_id, request_id, command, limit)
    if claimed is None:
        failpoint("edge.claimed")
        try:
            await command.check(edge, request_id)
        except Problem:
            await _persist_best_effort(edge.claims.release(user_id, request_id))
            raise
        return None
    if claimed.fingerprint != command.fingerprint:
        raise _key_reused("the first request with this key had a different content")
    # The first request was only accepted; to wait for its outcome now, the same request is sent again.
    if claimed.status == ACCEPTED and limit.seconds:
        return None
    return _stored_response(claimed, request_id, command, limit.seconds)


async def _await_first(
    edge: AppState, user_id: str, request_id: str, command: Command, limit: WaitLimit
) -> IdempotencyRecord | None:
    """Wait until the first request has a response, or has given its claim up; return what `ClaimStore.claim` returns.

    The outcome reaches this edge too, whichever edge has sent the request; soon after it the response is stored. The
    claim is also read now and then, because a request may end without an outcome.
    """
    pause = FIRST_POLL_SECONDS
    with edge.connections.wait_for_reply(command.reply_to_user, request_id) as reply:
        while True:
            if reply.done():
                await asyncio.sleep(min(pause, limit.left))
            else:
                await asyncio.wait([reply], timeout=min(pause, limit.left))
                if reply.done():
                    pause = FIRST_POLL_SECONDS
            claimed = await edge.claims.claim(user_id, request_id, command.fingerprint)
            is_open = claimed is not None and claimed.status is None and claimed.claim_age < CLAIM_TIMEOUT_SECONDS
            if not is_open or not limit.left:
                return claimed
            pause = min(2 * pause, LAST_POLL_SECONDS)


async def send_command(edge: AppState, request_id: str, command: Command, limit: WaitLimit) -> Response:
    """Send a command under this id, and return 202, or the outcome if it arrives within `limit`."""
    connections, seconds = edge.connections, limit.seconds
    if connections.fault:
        raise Problem("unavailable", "no new requests are accepted now", retry_after=RETRY_AFTER)
    user = connections.user_state(command.reply_to_user)
    _register(user, request_id)
    with (
        connections.wait_for_reply(command.reply_to_user, request_id) if seconds else contextlib.nullcontext() as answer
    ):
        if not await command.send(edge, request_id):
            user.release(request_id)
            raise Problem(
                "unavailable", "it is unknown if the request was accepted; send it again", retry_after=RETRY_AFTER
            )
        if answer is not None:
            done, _ = await asyncio.wait([answer], timeout=limit.left)
            if done:
                return await _outcome_response(edge, command, answer.result(), _preference_applied(seconds))
    body, location = command.accepted(request_id)
    return Response(
        orjson.dumps(body), ACCEPTED, {"Location": location, **_preference_applied(seconds)}, "application/json"
    )


def _register(user: UserState, request_id: str, spare: int = 0) -> None:
    """Register a request before it is sent; raise `Problem` if the user, or the shop, has too many in flight."""
    match user.register(request_id, user.seen_at, spare=spare):
        case Registration.TOO_MANY:
            raise Problem("rate-limited", f"{user.limits.unanswered} requests are unanswered", retry_after=1)
        case Registration.OVERLOADED:
            raise overloaded()


def overloaded() -> Problem:
    """Return the problem of a request that is refused because the shop has too many in flight."""
    return Problem("overloaded", "nothing was done; send the request again", retry_after=1)


async def _outcome_response(edge: AppState, command: Command, answer: Reply, headers: dict[str, str]) -> Response:
    if isinstance(answer.message, cart.Error):
        if answer.message.code == "id_reused":
            raise _key_reused(answer.message.detail)
        error = {"pointer": f"/{answer.message.field}", "detail": answer.message.detail}
        raise Problem("invalid", answer.message.detail, errors=[error])
    return Response(await command.response_body(edge, answer), 200, headers, "application/json")


def _stored_response(claimed: IdempotencyRecord, request_id: str, command: Command, seconds: int | None) -> Response:
    headers = (
        {"Location": command.accepted(request_id)[1]} if claimed.status == ACCEPTED else _preference_applied(seconds)
    )
    return Response(claimed.response, claimed.status or 200, headers, "application/json")


def _preference_applied(seconds: int | None) -> dict[str, str]:
    return {"Preference-Applied": f"wait={seconds}"} if seconds else {}


def _key_reused(detail: str) -> Problem:
    error = {"pointer": "/idempotency-key", "detail": detail}
    return Problem("idempotency-key-reused", detail, errors=[error])


async def _persist_best_effort(work: Any) -> None:
    """Update a claim after the fact. Without Postgres it stays open, and a later request takes it over."""
    try:
        await work
    except UNAVAILABLE_ERRORS as error:
        log.warning("a claim could not be updated: %r", error)
