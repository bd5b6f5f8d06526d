"""Where the payment provider says that something has happened: a reason to ask it, and never a fact."""

import hashlib
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from infrastructure import clock
from infrastructure.ids import derived
from infrastructure.webhooks import HEADER, BadSignature, StaleWebhook, verify
from inventory_service.messages import Printable
from order_service.payment import messages as payments
from rest_api.edge import Here, of
from rest_api.gateway import RETRY_AFTER
from rest_api.outbound import event
from rest_api.problems import Problem, pointer

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

ACCEPTED: Final = 202


class _Lax(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Metadata(_Lax):
    """What we gave the provider along with a charge."""

    order_id: Printable
    user_id: Printable


class Charge(_Lax):
    """Which charge it is; what the webhook says of its state is not believed."""

    key: Printable
    metadata: Metadata


class Notification(_Lax):
    """What the provider sends."""

    type: str
    data: Charge


def _described(model: type[BaseModel]) -> dict[str, Any]:
    """A schema without references: the route reads its body itself, so the framework does not collect them."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(place: Any) -> Any:
        if isinstance(place, dict):
            name = str(place.get("$ref", "")).removeprefix("#/$defs/")
            return whole(parts[name]) if name else {key: whole(value) for key, value in place.items()}
        return [whole(value) for value in place] if isinstance(place, list) else place

    found: dict[str, Any] = whole(schema)
    return found


_BODY: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _described(Notification)}}}
}


@router.post("/payments", status_code=ACCEPTED, response_class=Response, openapi_extra=_BODY)
async def payment_notified(edge: Here, request: Request) -> Response:
    """A webhook of the payment provider, signed in the header `Holdfast-Signature`. It may come more than once."""
    body = await request.body()
    try:
        verify(edge.settings.webhook_secret.get_secret_value(), request.headers.get(HEADER, ""), body, clock.now())
    except BadSignature as error:
        of(request).limiter.visitor(request)  # only those who are not the provider have a limit
        raise Problem("bad-signature", str(error)) from None
    except StaleWebhook as error:
        raise Problem("stale-webhook", str(error)) from None
    try:
        told = Notification.model_validate_json(body).data
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise Problem("bad-request", "the body is not JSON") from None
        faults = [{"pointer": pointer(fault["loc"]), "detail": fault["msg"]} for fault in error.errors()]
        raise Problem("invalid", errors=faults) from None
    notified = payments.Notified(order_id=told.metadata.order_id, user_id=told.metadata.user_id, payment_id=told.key)
    request_id = derived("webhook", hashlib.sha256(body).hexdigest())
    if not await edge.hub.send(event(notified, request_id), payments.REQUESTS):
        raise Problem("unavailable", "it could not be kept: send it again", retry_after=RETRY_AFTER)
    return Response(status_code=ACCEPTED)
