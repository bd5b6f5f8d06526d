"""What the edge says on topics: the one place where its events get their ids, and orders theirs.

Every id is derived, so the same request sent again is the same event, and the same order.
"""

from datetime import UTC, datetime
from typing import Final

from infrastructure import trace
from infrastructure.envelope import Envelope, Message
from infrastructure.ids import derived
from rest_api.shopper import Publish

SOURCE: Final = "/edge"


def order_id(user_id: str, request_id: str) -> str:
    """The order that a checkout makes."""
    return derived(user_id, request_id, "order")


def cart_request(user_id: str, request: Publish) -> Envelope:
    """A request as it stands on `cart.requests`."""
    return Envelope(
        id=f"{user_id}/{request.request_id}/{request.verb}",
        source=SOURCE,
        type=f"holdfast.cart.{request.verb}",
        subject=user_id,
        time=datetime.now(UTC),
        traceparent=trace.child(request.traceparent),
        requestid=request.request_id,
        data=request.data,
    )


def event(message: Message, request_id: str) -> Envelope:
    """A message to another service as it stands on its topic, under the key that the message names."""
    key = getattr(message, message.KEY)
    return Envelope(
        id=f"{key}/{request_id}/{message.TYPE.rpartition('.')[2]}",
        source=SOURCE,
        type=message.TYPE,
        subject=key,
        time=datetime.now(UTC),
        traceparent=trace.child(None),
        requestid=request_id,
        data=message.model_dump(mode="json", exclude_none=True),
    )
