"""Notices over HTTP: what I was told, on which channels I want to hear, and, for services, something to tell."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from infrastructure.envelope import rfc3339
from infrastructure.ids import derived
from inventory_service.messages import Printable
from notification_service import messages as notices
from rest_api import cursors
from rest_api.changes import perform
from rest_api.edge import SECURED, Edge, Here, Known, Service
from rest_api.gateway import RETRY_AFTER
from rest_api.outbound import event
from rest_api.problems import Problem
from rest_api.routes_cart import Key, Prefer
from rest_api.store import AWAY, Row
from rest_api.waiting import Answer

router = APIRouter(prefix="/v1/notifications", tags=["notifications"], dependencies=SECURED)

_HERE: Final = "/v1/notifications"
_PREFERENCES: Final = f"{_HERE}/preferences"


class NoticeBody(BaseModel):
    """Something that a shopper was told, or could not be told, on one channel."""

    id: Printable
    channel: notices.Channel
    template: notices.Template
    cause: str
    title: str
    body: str
    status: Annotated[str, Field(pattern="^(sent|failed)$")]
    created_at: AwareDatetime
    settled_at: AwareDatetime


class NoticeList(BaseModel):
    """A page of notices."""

    items: list[NoticeBody]
    after: str | None


class Preferences(BaseModel):
    """On which channels somebody wants to hear of orders and carts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    email: bool
    sms: bool
    push: bool


class NewNotice(BaseModel):
    """What shall be told to a user: once for each `cause` and channel."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Printable
    template: notices.Template = "message"
    channel: notices.Channel | None = None
    params: Annotated[dict[notices.ParamName, notices.Param], Field(max_length=32)] = {}
    cause: notices.Cause | None = None
    order_id: Printable | None = None


class Accepted(BaseModel):
    """It is accepted and kept."""

    request_id: Printable


@dataclass(frozen=True, slots=True)
class Asking:
    """A request to the notification service: `request` is sent as it is, on behalf of `user_id`."""

    user_id: str
    route: str
    method: str
    request: notices.Prefer | NewNotice

    @property
    def fingerprint(self) -> str:
        """The request itself."""
        return f"{self.method} {self.route} {self.request.model_dump_json()}"

    @property
    def told_to(self) -> str:
        """Who asks."""
        return self.user_id

    def name(self, key: str) -> str:
        """Of the user's own ids."""
        return derived(self.user_id, self.method, self.route, key)

    async def check(self, edge: Edge, request_id: str) -> None:
        """Whatever can be asked can be done."""

    async def send(self, edge: Edge, request_id: str) -> bool:
        """To the notification service; none of a shopper's unanswered requests."""
        asked: notices.Request
        if isinstance(self.request, NewNotice):
            fields = self.request.model_dump()
            asked = notices.Send(**{**fields, "cause": self.request.cause or f"request/{request_id}"})
        else:
            asked = self.request
        sent = await edge.hub.send(event(asked, request_id), notices.REQUESTS)
        edge.hub.shopper(self.user_id).settle(request_id)
        return sent

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """What came of it can be read there."""
        return {"request_id": request_id}, self.route

    async def settled(self, edge: Edge, answer: Answer) -> bytes:  # noqa: ARG002 - others read on
        """The preferences that stand now."""
        return answer.frame


@router.get("", response_model=NoticeList)
async def list_notices(
    edge: Here,
    known: Known,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    after: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """What I was told, the newest first."""
    match [] if after is None else cursors.opened(after):
        case []:
            cursor = None
        case [int(at), str(notice_id)]:
            cursor = cursors.at_instant(at), notice_id
        case _:
            raise Problem("bad-cursor")
    try:
        rows = await edge.notices.notices(known.user_id, limit=limit + 1, after=cursor)
    except AWAY:
        raise Problem("unavailable", "notices can't be read now", retry_after=RETRY_AFTER) from None
    shown = rows[:limit]
    more = cursors.sealed(cursors.instant(shown[-1][7]), shown[-1][0]) if len(rows) > limit else None
    return cursors.page([_body(row) for row in shown], more, request)


@router.post("", status_code=202, response_model=Accepted)
async def send(edge: Here, known: Service, wanted: NewNotice, idempotency_key: Key = None) -> Response:
    """Tell a user something. For services."""
    asked = Asking(known.user_id, _HERE, "POST", wanted)
    return await perform(edge, known.user_id, asked, key=idempotency_key, prefer=None)


@router.get("/preferences", response_model=Preferences)
async def show_preferences(edge: Here, known: Known) -> Response:
    """On which channels I am told; on all of them until I say otherwise."""
    try:
        email, sms, push = await edge.notices.preferences(known.user_id)
    except AWAY:
        raise Problem("unavailable", "preferences can't be read now", retry_after=RETRY_AFTER) from None
    return Response(preferences_body(email=email, sms=sms, push=push), media_type="application/json")


@router.put(
    "/preferences",
    status_code=202,
    responses={
        200: {"model": Preferences, "description": "what counts from now on (with `Prefer: wait`)"},
        202: {"model": Accepted, "description": "accepted; it can be read at `Location`"},
    },
    response_model=None,
)
async def prefer_channels(
    edge: Here, known: Known, wanted: Preferences, prefer: Prefer = None, idempotency_key: Key = None
) -> Response:
    """Say on which channels I want to be told; of what comes after this."""
    request = notices.Prefer(user_id=known.user_id, **wanted.model_dump())
    asked = Asking(known.user_id, _PREFERENCES, "PUT", request)
    return await perform(edge, known.user_id, asked, key=idempotency_key, prefer=prefer)


def tell_preferences(edge: Edge, user_id: str, request_id: str, stands: notices.Preferred) -> None:
    """Preferences came in: answer whoever waits for them."""
    body = preferences_body(email=stands.email, sms=stands.sms, push=stands.push)
    edge.hub.answer(user_id, request_id, Answer(stands, body))


def preferences_body(*, email: bool, sms: bool, push: bool) -> bytes:
    """Preferences as they are shown."""
    return orjson.dumps({"email": email, "sms": sms, "push": push})


def _body(row: Row) -> dict[str, Any]:
    notice_id, channel, template, cause, title, body, status, accepted_at, settled_at = row
    return {
        "id": notice_id,
        "channel": channel,
        "template": template,
        "cause": cause,
        "title": title,
        "body": body,
        "status": status,
        "created_at": rfc3339(accepted_at),
        "settled_at": rfc3339(settled_at),
    }
