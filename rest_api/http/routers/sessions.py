"""Routes of sessions: guest tokens and cookies, and WebSocket tickets."""

import orjson
from fastapi import APIRouter, Response
from pydantic import AwareDatetime, BaseModel

from contracts.envelope import rfc3339
from infrastructure.process import clock
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AppStateDep, CurrentUser, NewGuest

router = APIRouter(prefix="/v1", tags=["sessions"], dependencies=SECURITY_DEPENDENCIES)


class Guest(BaseModel):
    """A guest and their token."""

    user_id: str
    token: str
    expires_at: AwareDatetime


class Ticket(BaseModel):
    """A ticket that opens one socket within 30 seconds, sent as the subprotocol `ticket.<ticket>`."""

    ticket: str


@router.post("/guests", status_code=201, response_model=Guest)
async def become_guest(edge: AppStateDep, user: NewGuest) -> Response:
    """Create a guest, or, with a guest's valid token, issue a fresh token for the same user.

    The older tokens of that user end a minute later. However often it is renewed, a session ends a fixed time after its
    first token. A token with any other role is refused.

    An `Idempotency-Key` is accepted and has no effect: nothing is stored about a guest before their first request, and
    a key alone must never reveal another user's token.
    """
    authenticator = edge.authenticator
    user_id, token, expires_at = await authenticator.renew(user) if user else authenticator.issue_guest_token()
    guest = {"user_id": user_id, "token": token, "expires_at": rfc3339(expires_at)}
    response = Response(orjson.dumps(guest), 201, media_type="application/json")
    response.set_cookie(
        authenticator.cookie,
        token,
        max_age=int((expires_at - clock.now()).total_seconds()),
        path="/",
        secure=edge.settings.profile != "local",
        httponly=True,
        samesite="lax",
    )
    return response


@router.post("/ws-tickets", status_code=201, response_model=Ticket)
async def issue_ticket(edge: AppStateDep, user: CurrentUser) -> dict[str, str]:
    """Issue a ticket for clients that cannot send an `Authorization` header with a WebSocket, such as browsers."""
    return {"ticket": await edge.authenticator.issue_ticket(user)}
