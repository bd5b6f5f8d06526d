"""The route of the payment provider's webhooks.

A webhook only triggers a query to the provider; its content is not trusted.
"""

import hashlib
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from contracts import payments
from contracts.ids import derive_id
from contracts.inventory import Identifier
from infrastructure.process import clock
from infrastructure.security.webhooks import HEADER, BadSignature, StaleWebhook, verify
from rest_api.http.dependencies import AppStateDep, app_state
from rest_api.http.json_body import BYTE_ORDER_MARK
from rest_api.kafka.gateway import RETRY_AFTER, request_envelope
from rest_api.protocol.problems import Problem, json_pointer

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

ACCEPTED: Final = 202


class _ProviderModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Metadata(_ProviderModel):
    """The metadata that the shop attached to the charge."""

    order_id: Identifier
    user_id: Identifier


class Charge(_ProviderModel):
    """The charge that the webhook is about. Its state is ignored: the provider is queried instead."""

    key: Identifier
    metadata: Metadata


class Notification(_ProviderModel):
    """The body of a webhook."""

    type: str
    data: Charge


def _inlined_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the model's JSON schema with references inlined.

    The route reads its body itself, so FastAPI does not collect referenced schemas.
    """
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            return inline(definitions[name]) if name else {key: inline(value) for key, value in node.items()}
        return [inline(value) for value in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = inline(schema)
    return inlined


_OPENAPI_EXTRA: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _inlined_schema(Notification)}}}
}


@router.post("/payments", status_code=ACCEPTED, response_class=Response, openapi_extra=_OPENAPI_EXTRA)
async def payment_notified(edge: AppStateDep, request: Request) -> Response:
    """Accept a webhook of the payment provider, signed in the header `Holdfast-Signature`. Repeats are harmless."""
    body = await request.body()
    try:
        verify(edge.settings.webhook_secret.get_secret_value(), request.headers.get(HEADER, ""), body, clock.now())
    except BadSignature as error:
        app_state(request).address_limiter.count_request(request)  # the provider itself has no limit
        raise Problem("bad-signature", str(error)) from None
    except StaleWebhook as error:
        raise Problem("stale-webhook", str(error)) from None
    try:
        charge = Notification.model_validate_json(body.removeprefix(BYTE_ORDER_MARK)).data
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise Problem("bad-request", "the body is not JSON") from None
        faults = [{"pointer": json_pointer(fault["loc"]), "detail": fault["msg"]} for fault in error.errors()]
        raise Problem("invalid", errors=faults) from None
    message = payments.Notified(
        order_id=charge.metadata.order_id, user_id=charge.metadata.user_id, payment_id=charge.key
    )
    request_id = derive_id("webhook", hashlib.sha256(body).hexdigest())
    if not await edge.connections.send(request_envelope(message, request_id), payments.REQUESTS):
        raise Problem("unavailable", "the webhook could not be stored; send it again", retry_after=RETRY_AFTER)
    return Response(status_code=ACCEPTED)
