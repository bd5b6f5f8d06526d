"""Builds the envelopes of all requests that the edge sends.

Event ids are derived from the request, so the same request sent again is the same event.
"""

from typing import Final

from contracts import cart, trace_context
from contracts.envelope import Envelope, Message
from infrastructure.process import clock
from rest_api.protocol.effects import Publish

SOURCE: Final = "/edge"


def cart_request_envelope(user_id: str, request: Publish) -> Envelope:
    """Return the envelope of a request to the carts."""
    return Envelope.of(
        cart.REQUEST_REGISTRY.types[f"holdfast.cart.{request.verb}"],
        source=SOURCE,
        subject=user_id,
        request_id=request.request_id,
        time=clock.now(),
        traceparent=trace_context.child_traceparent(request.traceparent),
        data=request.data,
    )


def request_envelope(message: Message, request_id: str) -> Envelope:
    """Return the envelope of a message to another service, with the key that the message names."""
    return Envelope.of(
        message,
        source=SOURCE,
        request_id=request_id,
        time=clock.now(),
        traceparent=trace_context.child_traceparent(None),
    )
