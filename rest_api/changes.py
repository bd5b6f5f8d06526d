"""How a REST request becomes a request to a service, and its answer a response: claims, sending, waiting.

A request with an `Idempotency-Key` is claimed in the edge's own schema before it is sent, so that a second one finds
it: answered (the same answer), open (409), or used for something else (422). The id on the topics is derived from the
key, so even a claim that is taken over can't be carried out twice.
"""

import asyncio
import contextlib
import logging
import re
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson
from fastapi import Response

from cart_service import messages as cart
from infrastructure.crashpoints import crashpoint
from infrastructure.ids import derived, uuid7
from rest_api.edge import Edge
from rest_api.gateway import RETRY_AFTER
from rest_api.hub import Hub
from rest_api.problems import Problem
from rest_api.shopper import Publish
from rest_api.store import AWAY, Claimed
from rest_api.waiting import Answer

log = logging.getLogger(__name__)

MAX_WAIT_SECONDS: Final = 30
MAX_KEY_LENGTH: Final = 255
ACCEPTED: Final = 202
TAKE_OVER_SECONDS: Final = 10.0
_WAIT: Final = re.compile(r"(?:^|[,;])\s*wait\s*=\s*(\d{1,9})\s*(?=$|[,;])", re.IGNORECASE)


class Asked(Protocol):
    """A request over HTTP that changes something: what is the same about all of them stands in `perform`."""

    @property
    def fingerprint(self) -> str:
        """The request in one normal form: two with one idempotency key are the same when these are."""

    @property
    def told_to(self) -> str:
        """The user under whose key the answer comes back."""

    def name(self, key: str) -> str:
        """The request's id on the topics, when `key` is its idempotency key."""

    async def check(self, edge: Edge, request_id: str) -> None:
        """Before it is sent for the first time: `Problem` when it is known that it can't be done."""

    async def send(self, edge: Edge, request_id: str) -> bool:
        """Send it; False when Kafka did not say in time that it has it."""

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """The body of a 202, and where to look further."""

    async def settled(self, edge: Edge, answer: Answer) -> bytes:
        """The body of a 200; `Problem` when the answer is one."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a cart. `method` and `route` are the scope of its idempotency key."""

    user_id: str
    verb: str
    command: dict[str, Any]
    method: str
    route: str

    @property
    def fingerprint(self) -> str:
        """The command itself."""
        return orjson.dumps({"type": self.verb, **self.command}, option=orjson.OPT_SORT_KEYS).decode()

    @property
    def told_to(self) -> str:
        """Whose cart it is."""
        return self.user_id

    def name(self, key: str) -> str:
        """Of the user's own ids, as those of their frames are."""
        return derived(self.method, self.route, key)

    async def check(self, edge: Edge, request_id: str) -> None:
        """Only inventory knows."""

    async def send(self, edge: Edge, request_id: str) -> bool:
        """To the carts."""
        request = Publish(request_id, self.verb, {"user_id": self.user_id, **self.command})
        return await edge.hub.publish(self.user_id, request)

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """The outcome can be read as soon as there is one."""
        return {"request_id": request_id}, f"/v1/cart/requests/{request_id}"

    async def settled(self, edge: Edge, answer: Answer) -> bytes:  # noqa: ARG002 - others read on
        """The outcome's frame, a refusal included."""
        return answer.frame


async def read(hub: Hub, user_id: str, verb: str, data: dict[str, Any], *, seconds: float) -> cart.Response:
    """Ask the carts something and return what they answer; `Problem` when they do not within `seconds`."""
    request_id = uuid7()
    with hub.wait(user_id, request_id) as answer:
        try:
            async with asyncio.timeout(seconds):
                request = Publish(request_id, verb, {"user_id": user_id, "session": request_id, **data})
                if not await hub.publish(user_id, request):
                    raise Problem("unavailable", "carts are away", retry_after=RETRY_AFTER)
                message = (await answer).message
                assert isinstance(message, cart.Response)  # to a read of theirs, carts alone answer
                return message
        except TimeoutError:
            raise Problem("unavailable", "carts do not answer", retry_after=RETRY_AFTER) from None


async def perform(edge: Edge, user_id: str, asked: Asked, *, key: str | None, prefer: str | None) -> Response:
    """Send what `user_id` asks and answer it: 202, or with `Prefer: wait` what became of it."""
    seconds = _seconds(prefer)
    if key is None:
        request_id = uuid7()
        await asked.check(edge, request_id)
        return await send(edge, request_id, asked, seconds)
    if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        raise Problem("bad-request", f"an Idempotency-Key is 1 to {MAX_KEY_LENGTH} printable ASCII characters")
    request_id = asked.name(key)
    try:
        kept = await _claim(edge, user_id, request_id, asked, seconds)
        if kept is not None:
            return kept
    except AWAY:
        raise Problem("unavailable", "idempotency keys are away", retry_after=RETRY_AFTER) from None
    try:
        response = await send(edge, request_id, asked, seconds)
    except Problem:
        await _keep(edge.store.release(user_id, request_id))
        raise
    crashpoint("edge.answered")
    await _keep(edge.store.answer(user_id, request_id, response.status_code, bytes(response.body)))
    return response


async def _claim(edge: Edge, user_id: str, request_id: str, asked: Asked, seconds: int | None) -> Response | None:
    """None when the request is ours to send, else the answer that the first one got; `Problem` for 409 and 422."""
    claimed = await edge.store.claim(user_id, request_id, asked.fingerprint)
    if claimed is None:
        crashpoint("edge.claimed")
        try:
            await asked.check(edge, request_id)
        except Problem:
            await _keep(edge.store.release(user_id, request_id))
            raise
        return None
    if claimed.fingerprint != asked.fingerprint:
        raise _reused("the first request with this key had another content")
    if claimed.status is not None:
        # Who now waits for the outcome of what was only accepted then, gets it: the same request is sent again.
        return None if claimed.status == ACCEPTED and seconds else _kept(claimed, request_id, asked, seconds)
    if claimed.seconds >= TAKE_OVER_SECONDS and await edge.store.take_over(user_id, request_id, TAKE_OVER_SECONDS):
        return None
    raise Problem("request-in-progress", "the first request with this key has no answer yet", retry_after=1)


async def send(edge: Edge, request_id: str, asked: Asked, seconds: int | None) -> Response:
    """Send a request under this id and answer it: 202, or with `seconds` to wait what became of it by then."""
    hub = edge.hub
    if hub.fault:
        raise Problem("unavailable", "nothing new is accepted now", retry_after=RETRY_AFTER)
    shopper = hub.shopper(asked.told_to)
    if not shopper.admits(request_id, shopper.seen_at):
        raise Problem("rate-limited", f"{shopper.rules.unanswered} requests are unanswered", retry_after=1)
    if not shopper.has_room(request_id, shopper.seen_at):
        raise Problem("overloaded", "nothing was done: send it again", retry_after=1)
    with hub.wait(asked.told_to, request_id) if seconds else contextlib.nullcontext() as answer:
        if not await asked.send(edge, request_id):
            shopper.settle(request_id)
            raise Problem("unavailable", "perhaps accepted: send it again", retry_after=RETRY_AFTER)
        if answer is not None:
            done, _ = await asyncio.wait([answer], timeout=seconds)
            if done:
                return await _outcome(edge, asked, answer.result(), _applied(seconds))
    body, location = asked.accepted(request_id)
    return Response(orjson.dumps(body), ACCEPTED, {"Location": location, **_applied(seconds)}, "application/json")


async def _outcome(edge: Edge, asked: Asked, answer: Answer, headers: dict[str, str]) -> Response:
    if isinstance(answer.message, cart.Error):
        if answer.message.code == "id_reused":
            raise _reused(answer.message.detail)
        fault = {"pointer": f"/{answer.message.field}", "detail": answer.message.detail}
        raise Problem("invalid", answer.message.detail, errors=[fault])
    return Response(await asked.settled(edge, answer), 200, headers, "application/json")


def _kept(claimed: Claimed, request_id: str, asked: Asked, seconds: int | None) -> Response:
    headers = {"Location": asked.accepted(request_id)[1]} if claimed.status == ACCEPTED else _applied(seconds)
    return Response(claimed.answer, claimed.status or 200, headers, "application/json")


def _applied(seconds: int | None) -> dict[str, str]:
    return {"Preference-Applied": f"wait={seconds}"} if seconds else {}


def _reused(detail: str) -> Problem:
    fault = {"pointer": "/idempotency-key", "detail": detail}
    return Problem("idempotency-key-reused", detail, errors=[fault])


async def _keep(work: Any) -> None:
    """Write to a claim after the fact. When Postgres is away the claim stays open, and is taken over in time."""
    try:
        await work
    except AWAY as error:
        log.warning("a claim could not be kept: %r", error)


def _seconds(prefer: str | None) -> int | None:
    """How long an answer may wait for its outcome: `wait=N` of a `Prefer` header (RFC 7240), at most 30."""
    match = _WAIT.search(prefer or "")
    return min(int(match[1]), MAX_WAIT_SECONDS) or None if match else None
