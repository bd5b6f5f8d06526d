"""Who a visitor is: guests with their tokens and cookies, and tickets that open a socket."""

from datetime import UTC, datetime

import orjson
from fastapi import APIRouter, Response
from pydantic import AwareDatetime, BaseModel

from infrastructure.envelope import rfc3339
from rest_api.edge import SECURED, Here, Known, Newcomer
from rest_api.identity import COOKIE

router = APIRouter(prefix="/v1", tags=["sessions"], dependencies=SECURED)


class Guest(BaseModel):
    """A guest and the token that speaks for them."""

    user_id: str
    token: str
    expires_at: AwareDatetime


class Ticket(BaseModel):
    """Opens one socket, as the subprotocol `ticket.<ticket>`, within 30 seconds."""

    ticket: str


@router.post("/guests", status_code=201, response_model=Guest)
async def become_guest(edge: Here, known: Newcomer) -> Response:
    """Become a guest; with a valid token the same user gets a fresh one.

    An `Idempotency-Key` is accepted and changes nothing: nothing is kept of a guest before their first request, and a
    key alone must not give away another's token.
    """
    user_id, token, expires_at = edge.identities.guest(known.user_id if known else None)
    guest = {"user_id": user_id, "token": token, "expires_at": rfc3339(expires_at)}
    response = Response(orjson.dumps(guest), 201, media_type="application/json")
    response.set_cookie(
        COOKIE,
        token,
        max_age=int((expires_at - datetime.now(UTC)).total_seconds()),
        path="/",
        secure=edge.settings.profile != "local",
        httponly=True,
        samesite="lax",
    )
    return response


@router.post("/ws-tickets", status_code=201, response_model=Ticket)
async def issue_ticket(edge: Here, known: Known) -> dict[str, str]:
    """A ticket for a browser that can't send an `Authorization` header with its socket."""
    return {"ticket": await edge.identities.ticket(known)}
