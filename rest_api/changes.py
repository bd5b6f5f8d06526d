"""How a REST request becomes a request to the carts, and its answer a response: claims, sending, waiting.

A request with an `Idempotency-Key` is claimed in the edge's own schema before it is sent, so that a second one finds
it: answered (the same answer), open (409), or used for something else (422). The id on the topics is derived from the
key, so even a claim that is taken over can't be carried out twice.
"""

import asyncio
import logging
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import Response

from cart_service import messages as cart
from infrastructure.crashpoints import crashpoint
from infrastructure.ids import derived, uuid7
from rest_api.edge import Edge
from rest_api.gateway import RETRY_AFTER
from rest_api.hub import Answer, Hub
from rest_api.problems import Problem
from rest_api.shopper import Publish
from rest_api.store import AWAY, Claimed

log = logging.getLogger(__name__)

MAX_WAIT_SECONDS: Final = 30
MAX_KEY_LENGTH: Final = 255
ACCEPTED: Final = 202
TAKE_OVER_SECONDS: Final = 10.0
_WAIT: Final = re.compile(r"(?:^|[,;])\s*wait\s*=\s*(\d{1,9})\s*(?=$|[,;])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Change:
    """A change that was asked for over HTTP. `method` and `route` are the scope of its idempotency key."""

    verb: str
    command: dict[str, Any]
    method: str
    route: str

    @property
    def fingerprint(self) -> str:
        """The command in one normal form: two requests are the same when these are."""
        return orjson.dumps({"type": self.verb, **self.command}, option=orjson.OPT_SORT_KEYS).decode()


async def read(hub: Hub, user_id: str, verb: str, data: dict[str, Any], *, seconds: float) -> cart.Response:
    """Ask the carts something and return what they answer; `Problem` when they do not within `seconds`."""
    request_id = uuid7()
    answer = hub.wait(user_id, request_id)
    try:
        async with asyncio.timeout(seconds):
            sent = await hub.publish(
                user_id, Publish(request_id, verb, {"user_id": user_id, "session": request_id, **data})
            )
            if not sent:
                raise Problem("unavailable", "carts are away", retry_after=RETRY_AFTER)
            return (await answer).message
    except TimeoutError:
        raise Problem("unavailable", "carts do not answer", retry_after=RETRY_AFTER) from None
    finally:
        hub.stop_waiting(user_id, request_id, answer)


async def perform(edge: Edge, user_id: str, change: Change, *, key: str | None, prefer: str | None) -> Response:
    """Send a change and answer it: 202, or with `Prefer: wait` its outcome."""
    seconds = _seconds(prefer)
    if key is None:
        return await _send(edge, user_id, uuid7(), change, seconds)
    if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        raise Problem("bad-request", f"an Idempotency-Key is 1 to {MAX_KEY_LENGTH} printable ASCII characters")
    request_id = derived(change.method, change.route, key)
    try:
        kept = await _claim(edge, user_id, request_id, change, seconds)
        if kept is not None:
            return kept
    except AWAY:
        raise Problem("unavailable", "idempotency keys are away", retry_after=RETRY_AFTER) from None
    try:
        response = await _send(edge, user_id, request_id, change, seconds)
    except Problem:
        await _keep(edge.store.release(user_id, request_id))
        raise
    await _keep(edge.store.answer(user_id, request_id, response.status_code, bytes(response.body)))
    return response


async def _claim(edge: Edge, user_id: str, request_id: str, change: Change, seconds: int | None) -> Response | None:
    """None when the request is ours to send, else the answer that the first one got; `Problem` for 409 and 422."""
    claimed = await edge.store.claim(user_id, request_id, change.fingerprint)
    if claimed is None:
        crashpoint("edge.claimed")
        return None
    if claimed.fingerprint != change.fingerprint:
        raise Problem("idempotency-key-reused", "the first request with this key had another content")
    if claimed.status is not None:
        # Who now waits for the outcome of what was only accepted then, gets it: the same request is sent again.
        return None if claimed.status == ACCEPTED and seconds else _kept(claimed, request_id, seconds)
    if claimed.seconds >= TAKE_OVER_SECONDS and await edge.store.take_over(user_id, request_id, TAKE_OVER_SECONDS):
        return None
    raise Problem("request-in-progress", "the first request with this key has no answer yet", retry_after=1)


async def _send(edge: Edge, user_id: str, request_id: str, change: Change, seconds: int | None) -> Response:
    hub = edge.hub
    if hub.fault:
        raise Problem("unavailable", "nothing new is accepted now", retry_after=RETRY_AFTER)
    shopper = hub.shopper(user_id)
    if not shopper.admits(request_id, shopper.seen_at):
        raise Problem("rate-limited", f"{shopper.rules.unanswered} requests are unanswered", retry_after=1)
    answer = hub.wait(user_id, request_id) if seconds else None
    try:
        if not await hub.publish(user_id, Publish(request_id, change.verb, {"user_id": user_id, **change.command})):
            shopper.settle(request_id)
            raise Problem("unavailable", "perhaps accepted: send it again", retry_after=RETRY_AFTER)
        if answer is not None and seconds:
            done, _ = await asyncio.wait([answer], timeout=seconds)
            if done:
                return _outcome(answer.result(), seconds)
        return _accepted(request_id, seconds)
    finally:
        if answer is not None:
            hub.stop_waiting(user_id, request_id, answer)


def _outcome(answer: Answer, seconds: int) -> Response:
    if isinstance(answer.message, cart.Error):
        if answer.message.code == "id_reused":
            raise Problem("idempotency-key-reused", answer.message.detail)
        fault = {"pointer": f"/{answer.message.field}", "detail": answer.message.detail}
        raise Problem("invalid", answer.message.detail, errors=[fault])
    return Response(answer.frame, 200, {"Preference-Applied": f"wait={seconds}"}, "application/json")


def _accepted(request_id: str, seconds: int | None) -> Response:
    return Response(
        orjson.dumps({"request_id": request_id}), ACCEPTED, _accepted_headers(request_id, seconds), "application/json"
    )


def _accepted_headers(request_id: str, seconds: int | None) -> dict[str, str]:
    applied = {"Preference-Applied": f"wait={seconds}"} if seconds else {}
    return {"Location": f"/v1/cart/requests/{request_id}", **applied}


def _kept(claimed: Claimed, request_id: str, seconds: int | None) -> Response:
    headers = _accepted_headers(request_id, seconds) if claimed.status == ACCEPTED else {}
    return Response(claimed.answer, claimed.status or 200, headers, "application/json")


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
