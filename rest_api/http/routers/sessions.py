"""Routes of sessions: guest tokens, logins of accounts, their cookies, and WebSocket tickets."""

from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from contracts.envelope import rfc3339
from contracts.inventory import Identifier
from infrastructure.process import clock
from rest_api.http.dependencies import (
    SECURITY_DEPENDENCIES,
    AccountUser,
    AppState,
    AppStateDep,
    CurrentUser,
    NewGuest,
    count_without_user,
)
from rest_api.http.routers.accounts import EmailText, PasswordText, delete_cookies
from rest_api.protocol.problems import Problem
from rest_api.security.authentication import REFRESH_COOKIE_PATH

router = APIRouter(prefix="/v1", tags=["sessions"], dependencies=SECURITY_DEPENDENCIES)


class Guest(BaseModel):
    """A guest and their token."""

    user_id: str
    token: str
    expires_at: AwareDatetime


class Ticket(BaseModel):
    """A ticket that opens one socket within 30 seconds, sent as the subprotocol `ticket.<ticket>`."""

    ticket: str


class Credentials(BaseModel):
    """The address and the password of an account."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    email: EmailText
    password: PasswordText


class RefreshToken(BaseModel):
    """The newest refresh token of a session; without one, its cookie counts."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    refresh_token: Annotated[str, Field(min_length=1, max_length=4096)] | None = None


class SessionTokens(BaseModel):
    """The tokens of a session. `expires_at` is when the access token expires."""

    user_id: str
    access_token: str
    refresh_token: str
    expires_at: AwareDatetime


class SessionBody(BaseModel):
    """A session of an account; `current` is the one of this request."""

    session_id: str
    created_at: AwareDatetime
    seen_at: AwareDatetime
    expires_at: AwareDatetime
    current: bool


class SessionList(BaseModel):
    """All sessions of an account, newest first."""

    items: Annotated[list[SessionBody], Field(max_length=50)]
    after: None


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


@router.post("/sessions", status_code=201, response_model=SessionTokens, dependencies=[Depends(count_without_user)])
async def log_in(edge: AppStateDep, body: Credentials) -> Response:
    """Begin a session of an account. The cart of a guest stays with the guest."""
    return _tokens(edge, await edge.account_client.execute("log_in", **body.model_dump()), 201)


@router.post("/sessions/refresh", response_model=SessionTokens, dependencies=[Depends(count_without_user)])
async def refresh(edge: AppStateDep, request: Request, body: RefreshToken | None = None) -> Response:
    """Continue a session: each refresh token is valid once. One that is used again ends the session."""
    token = body.refresh_token if body else None
    if token is None:
        token = request.cookies.get(edge.authenticator.refresh_cookie)
        if not token:
            raise Problem("unauthenticated", "no refresh token; send one in the body, or its cookie")
        edge.authenticator.check_page(request)
    return _tokens(edge, await edge.account_client.execute("refresh", refresh_token=token), 200)


@router.get("/sessions", response_model=SessionList)
async def list_sessions(edge: AppStateDep, user: AccountUser) -> Response:
    """List the running sessions of the user."""
    found = await edge.account_client.execute("sessions", access_token=user.token)
    return Response(orjson.dumps({"items": found["items"], "after": None}), media_type="application/json")


@router.delete("/sessions/{session_id:segment}", status_code=204, response_class=Response)
async def end_session(edge: AppStateDep, user: AccountUser, session_id: Annotated[Identifier, Path()]) -> Response:
    """End a session of the user; `current` is the one of this request. Its sockets are closed within five seconds."""
    ended = await edge.account_client.execute("end_session", access_token=user.token, session_id=session_id)
    response = Response(status_code=204)
    if ended["current"]:
        delete_cookies(edge, response)
    return response


@router.delete("/sessions", status_code=204, response_class=Response)
async def end_all_sessions(edge: AppStateDep, user: AccountUser) -> Response:
    """End all sessions of the user."""
    await edge.account_client.execute("end_all_sessions", access_token=user.token)
    response = Response(status_code=204)
    delete_cookies(edge, response)
    return response


def _tokens(edge: AppState, found: dict[str, Any], status: int) -> Response:
    """Return the tokens of a session, in the body for programs and as cookies for browsers."""
    session_ends = datetime.fromisoformat(found.pop("session_expires_at"))
    response = Response(orjson.dumps(found), status, {"Cache-Control": "no-store"}, media_type="application/json")
    cookies = (
        (edge.authenticator.cookie, found["access_token"], datetime.fromisoformat(found["expires_at"]), "/"),
        (edge.authenticator.refresh_cookie, found["refresh_token"], session_ends, REFRESH_COOKIE_PATH),
    )
    for name, value, ends, path in cookies:
        response.set_cookie(
            name,
            value,
            max_age=max(0, int((ends - clock.now()).total_seconds())),
            path=path,
            secure=edge.settings.profile != "local",
            httponly=True,
            samesite="lax",
        )
    return response
