"""RFC 9457 problem documents: every error of the HTTP side, with a page for each kind."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"

UNAUTHENTICATED: Final = 401
SLUGS: Final[dict[str, tuple[int, str, str]]] = {
    "bad-request": (
        400,
        "Bad request",
        "The request could not be read as HTTP, or its body as JSON.",
    ),
    "bad-cursor": (
        400,
        "Bad cursor",
        "`after` is no cursor of this list. Send it back as it was given, with the same filters.",
    ),
    "unauthenticated": (401, "Not authenticated", "The request carries no valid token. Get one from POST /v1/guests."),
    "token-expired": (401, "Token expired", "The token or ticket was valid and is no longer. Get a new one."),
    "bad-signature": (401, "Bad signature", "The webhook is not signed with the secret that was agreed on."),
    "stale-webhook": (401, "Stale webhook", "The webhook was signed too long ago, or in the future."),
    "forbidden": (403, "Forbidden", "The token is valid, but does not have the role that this needs."),
    "bad-origin": (403, "Origin not allowed", "The page that sent this may not use this shop."),
    "local-only": (403, "Local only", "This exists in the local profile only."),
    "not-found": (404, "Not found", "There is no such thing here, or it is somebody else's."),
    "unknown-product": (404, "Unknown product", "The catalogue has no product with this code."),
    "method-not-allowed": (405, "Method not allowed", "The route exists, but not with this method; see Allow."),
    "request-in-progress": (
        409,
        "Request in progress",
        "The first request with this idempotency key has no answer yet. Ask again after Retry-After.",
    ),
    "cart-changed": (409, "Cart changed", "The cart is at another version than the one that was to be ordered."),
    "cart-empty": (409, "Cart empty", "There is nothing in the cart to order."),
    "cart-expired": (409, "Cart expired", "The cart came to its end, or the order came too late. Nothing was done."),
    "total-changed": (409, "Total changed", "The order comes to another total than the one that was expected."),
    "out-of-stock": (409, "Out of stock", "There is less of a product than was asked for. Nothing was done."),
    "over-limit": (409, "Over the limit", "That is more than one shopper may hold. Nothing was done."),
    "order-not-cancellable": (409, "Order not cancellable", "The order is on its way, or has arrived."),
    "already-paid": (409, "Already paid", "The order's payment is captured: there is nothing left to ask for."),
    "not-paid": (409, "Not paid", "No money was captured for this order, so none can be given back."),
    "already-refunded": (409, "Already refunded", "All that was captured is given back, or on its way back."),
    "refund-too-large": (409, "Refund too large", "That is more than was captured and not given back yet."),
    "reservation-settled": (409, "Reservation settled", "The reservation is committed or cancelled already."),
    "too-large": (413, "Too large", "The body is larger than this shop reads."),
    "unsupported-media-type": (415, "Unsupported media type", "Bodies are application/json."),
    "invalid": (422, "Invalid", "The body or the parameters can be read, but a value is not allowed; see errors."),
    "idempotency-key-reused": (
        422,
        "Idempotency key reused",
        "This idempotency key was used for another content. The first request stands.",
    ),
    "unknown-payment-token": (422, "Unknown payment token", "No means of payment goes by that token."),
    "websocket-required": (426, "WebSocket required", "This route is a WebSocket; upgrade the connection."),
    "rate-limited": (429, "Rate limited", "More requests than the limit allows. Ask again after Retry-After."),
    "headers-too-large": (431, "Headers too large", "The request line and headers are larger than this shop reads."),
    "internal": (500, "Internal error", "Something broke here. Tell us the trace_id."),
    "unavailable": (
        503,
        "Unavailable",
        "A part of the shop is away. A change was perhaps accepted: send it again with the same idempotency key.",
    ),
    "payment-unavailable": (
        503,
        "Payment unavailable",
        "The payment provider is away, so no order is taken. Nothing was done; ask again after Retry-After.",
    ),
    "overloaded": (503, "Overloaded", "More work than the shop can do right now. Ask again after Retry-After."),
}


class Fault(BaseModel):
    """One value that is not allowed: a JSON pointer into the body, or the name of a parameter after a slash."""

    pointer: str
    detail: str


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str | None = None
    instance: str | None = None
    errors: list[Fault] | None = None
    trace_id: str | None = None


@dataclass
class Problem(Exception):
    """Raised anywhere in a request, answered as a problem document."""

    slug: str
    detail: str | None = None
    retry_after: int | None = None
    errors: Sequence[Mapping[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    trace_id: str | None = None

    @property
    def status(self) -> int:
        """The HTTP status of this kind of problem."""
        return SLUGS[self.slug][0]

    def body(self, instance: str) -> bytes:
        """The problem document; `instance` is the id of the request."""
        status, title, _ = SLUGS[self.slug]
        document: dict[str, Any] = {"type": f"/problems/{self.slug}", "title": title, "status": status}
        if self.detail:
            document["detail"] = self.detail
        document["instance"] = instance
        if self.errors:
            document["errors"] = list(self.errors)
        if self.trace_id:
            document["trace_id"] = self.trace_id
        return orjson.dumps(document)

    def response(self, instance: str) -> Response:
        """The problem as an HTTP response."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == UNAUTHENTICATED:
            headers.setdefault("WWW-Authenticate", 'Bearer realm="holdfast"')
        return Response(self.body(instance), self.status, headers, MEDIA_TYPE)


def request_id(connection: HTTPConnection) -> str:
    """The id of a request, which the outermost layer gave it."""
    return str(connection.scope["state"].get("request_id", ""))


def pointer(path: Sequence[object]) -> str:
    """A JSON pointer (RFC 6901) to a place in a document."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def page(slug: str) -> str | None:
    """The page that a problem's `type` names; None when there is no such problem."""
    known = SLUGS.get(slug)
    if known is None:
        return None
    status, title, text = known
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title></head><body><h1>{status} {html.escape(title)}</h1>"
        f"<p>{html.escape(text)}</p><p><code>/problems/{slug}</code></p></body></html>"
    )
