"""Routes of notifications: a user's notices, their channel preferences, and, for services, sending a notice."""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from contracts import notifications as notices
from contracts.envelope import MAX_VALUE_BYTES, Envelope, rfc3339
from contracts.ids import derive_id
from contracts.inventory import Identifier
from rest_api.http import pagination
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AppState, AppStateDep, CurrentUser, ServiceUser
from rest_api.http.idempotency import execute
from rest_api.http.routers.cart import IdempotencyKey, PreferHeader
from rest_api.kafka.gateway import RETRY_AFTER, request_envelope
from rest_api.protocol.problems import Problem
from rest_api.read_models.store import UNAVAILABLE_ERRORS, Row
from rest_api.websocket.in_flight import Reply

router = APIRouter(prefix="/v1/notifications", tags=["notifications"], dependencies=SECURITY_DEPENDENCIES)

_ROUTE: Final = "/v1/notifications"
_PREFERENCES: Final = f"{_ROUTE}/preferences"


class NoticeBody(BaseModel):
    """A notice that was sent to a user on one channel, failed to be sent, or was not sent for the given `reason`."""

    id: Identifier
    channel: notices.Channel
    template: notices.Template
    cause: str
    title: str
    body: str
    status: Annotated[str, Field(pattern="^(sent|failed|skipped)$")]
    reason: str | None = None
    created_at: AwareDatetime
    settled_at: AwareDatetime


class NoticeList(BaseModel):
    """A page of notices, newest first."""

    items: list[NoticeBody]
    after: str | None


class Preferences(BaseModel):
    """The channels on which a user receives notices about orders and carts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    email: bool
    sms: bool
    push: bool


class NewNotice(BaseModel):
    """A notice to send to a user. It is sent once for each `cause` and channel."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Identifier
    template: notices.Template = "message"
    channel: notices.Channel | None = None
    params: Annotated[dict[notices.ParamName, notices.Param], Field(max_length=32)] = {}
    cause: notices.Cause | None = None
    order_id: Identifier | None = None

    @field_validator("template")
    @classmethod
    def _is_not_about_an_account(cls, template: notices.Template) -> notices.Template:
        if template in notices.ACCOUNT_TEMPLATES:
            raise ValueError("only the account service sends this text")
        return template


class Accepted(BaseModel):
    """The request is accepted and stored."""

    request_id: Identifier


@dataclass(frozen=True, slots=True)
class NotificationCommand:
    """A command for the notification service: sends `request` on behalf of `user_id`."""

    user_id: str
    route: str
    method: str
    request: notices.Prefer | NewNotice

    @property
    def fingerprint(self) -> str:
        """The route and a digest of the request, so that no text of a notice is stored with the idempotency key."""
        return f"{self.method} {self.route} {hashlib.sha256(self.request.model_dump_json().encode()).hexdigest()}"

    @property
    def reply_to_user(self) -> str:
        """The user who sends the request."""
        return self.user_id

    def request_id(self, key: str) -> str:
        """Derive the request id from the user, the route and the key."""
        return derive_id(self.user_id, self.method, self.route, key)

    async def check(self, edge: AppState, request_id: str) -> None:  # noqa: ARG002 - the protocol of commands
        """Raise `Problem` for texts that are too large for a record; it would be dead-lettered."""
        size = len(self._envelope(request_id).encode())
        if size > MAX_VALUE_BYTES:
            detail = f"the notice has {size} bytes as a record, which has at most {MAX_VALUE_BYTES}; shorten its texts"
            raise Problem("invalid", errors=[{"pointer": "/params", "detail": detail}])

    async def send(self, edge: AppState, request_id: str) -> bool:
        """Send the request to the notification service. It does not count as one of the user's unanswered requests."""
        sent = await edge.connections.send(self._envelope(request_id), notices.REQUESTS)
        edge.connections.user_state(self.user_id).release(request_id)
        return sent

    def _envelope(self, request_id: str) -> Envelope:
        command: notices.Request
        if isinstance(self.request, NewNotice):
            fields = self.request.model_dump()
            command = notices.Send(**{**fields, "cause": self.request.cause or f"request/{request_id}"})
        else:
            command = self.request
        return request_envelope(command, request_id)

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """Return the request id, and where the result can be read."""
        return {"request_id": request_id}, self.route

    async def response_body(self, edge: AppState, answer: Reply) -> bytes:  # noqa: ARG002 - others read on
        """Return the preferences that are now in force."""
        return answer.frame


@router.get("", response_model=NoticeList)
async def list_notices(
    edge: AppStateDep,
    user: CurrentUser,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    after: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """List the caller's notices, newest first."""
    match [] if after is None else pagination.decode(after):
        case []:
            cursor = None
        case [int(at), str(notice_id)]:
            cursor = pagination.from_microseconds(at), notice_id
        case _:
            raise Problem("bad-cursor")
    try:
        rows = await edge.notices.list_notices(user.user_id, limit=limit + 1, after=cursor)
    except UNAVAILABLE_ERRORS:
        raise Problem("unavailable", "notices cannot be read right now", retry_after=RETRY_AFTER) from None
    listed = rows[:limit]
    next_cursor = (
        pagination.encode(pagination.to_microseconds(listed[-1][7]), listed[-1][0]) if len(rows) > limit else None
    )
    return pagination.page_response([_body(row) for row in listed], next_cursor, request)


@router.post("", status_code=202, response_model=Accepted)
async def send(
    edge: AppStateDep, user: ServiceUser, notice: NewNotice, idempotency_key: IdempotencyKey = None
) -> Response:
    """Send a notice to a user. For services."""
    command = NotificationCommand(user.user_id, _ROUTE, "POST", notice)
    return await execute(edge, user.user_id, command, key=idempotency_key, prefer=None)


@router.get("/preferences", response_model=Preferences)
async def show_preferences(edge: AppStateDep, user: CurrentUser) -> Response:
    """Return the caller's channel preferences. By default all channels are on."""
    try:
        email, sms, push = await edge.notices.preferences(user.user_id)
    except UNAVAILABLE_ERRORS:
        raise Problem("unavailable", "preferences cannot be read right now", retry_after=RETRY_AFTER) from None
    return Response(preferences_body(email=email, sms=sms, push=push), media_type="application/json")


@router.put(
    "/preferences",
    status_code=202,
    responses={
        200: {"model": Preferences, "description": "the preferences now in force (with `Prefer: wait`)"},
        202: {"model": Accepted, "description": "accepted; the preferences can be read at `Location`"},
    },
    response_model=None,
)
async def prefer_channels(
    edge: AppStateDep,
    user: CurrentUser,
    preferences: Preferences,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Set the caller's channel preferences for future notices."""
    request = notices.Prefer(user_id=user.user_id, **preferences.model_dump())
    command = NotificationCommand(user.user_id, _PREFERENCES, "PUT", request)
    return await execute(edge, user.user_id, command, key=idempotency_key, prefer=prefer)


def resolve_preferences(edge: AppState, user_id: str, request_id: str, preferences: notices.Preferred) -> None:
    """Resolve the HTTP request that waits for these preferences, if any."""
    body = preferences_body(email=preferences.email, sms=preferences.sms, push=preferences.push)
    edge.connections.resolve_reply(user_id, request_id, Reply(preferences, body))


def preferences_body(*, email: bool, sms: bool, push: bool) -> bytes:
    """Return the body of channel preferences."""
    return orjson.dumps({"email": email, "sms": sms, "push": push})


def _body(row: Row) -> dict[str, Any]:
    notice_id, channel, template, cause, title, body, status, accepted_at, settled_at, reason = row
    return {
        "id": notice_id,
        "channel": channel,
        "template": template,
        "cause": cause,
        "title": title,
        "body": body,
        "status": status,
        **({"reason": reason} if reason else {}),
        "created_at": rfc3339(accepted_at),
        "settled_at": rfc3339(settled_at),
    }
