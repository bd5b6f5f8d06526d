"""RFC 9457 problem documents for every HTTP error; `problem_advice.py` says what to do about each kind."""

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
        "`after` is not a cursor of this list. Send the cursor unchanged, with the same filters.",
    ),
    "unauthenticated": (
        401,
        "Not authenticated",
        "The request carries no valid token. Get one from POST /v1/guests or POST /v1/sessions.",
    ),
    "token-expired": (401, "Token expired", "The token or ticket has expired. Get a new one."),
    "invalid-credentials": (401, "Invalid credentials", "The e-mail address or the password is not right."),
    "bad-signature": (401, "Bad signature", "The webhook is not signed with the agreed secret."),
    "stale-webhook": (401, "Stale webhook", "The webhook's signature is too old, or lies in the future."),
    "forbidden": (403, "Forbidden", "The token is valid, but lacks the required role."),
    "account-disabled": (403, "Account disabled", "The account is disabled and cannot be used."),
    "email-not-confirmed": (403, "E-mail not confirmed", "The account's e-mail address has not been confirmed yet."),
    "bad-origin": (403, "Origin not allowed", "Pages of this origin may not use this shop."),
    "local-only": (403, "Local only", "This route exists only in the local profile."),
    "not-found": (404, "Not found", "The resource does not exist, or belongs to somebody else."),
    "unknown-product": (404, "Unknown product", "The catalogue has no product with this code."),
    "method-not-allowed": (405, "Method not allowed", "The route exists, but not with this method; see Allow."),
    "request-in-progress": (
        409,
        "Request in progress",
        "The first request with this idempotency key has not been answered yet. Retry after Retry-After.",
    ),
    "cart-changed": (
        409,
        "Cart changed",
        "The cart's version differs from the version in the order. Read the cart and try again.",
    ),
    "cart-empty": (409, "Cart empty", "The cart is empty, so there is nothing to order."),
    "cart-expired": (409, "Cart expired", "The cart has expired, or the order arrived too late. Nothing was changed."),
    "total-changed": (409, "Total changed", "The order's total differs from the expected total. Nothing was changed."),
    "out-of-stock": (
        409,
        "Out of stock",
        "Fewer units of a product are available than were requested. Nothing was changed.",
    ),
    "other-currency": (
        409,
        "Other currency",
        "A cart or an order has products of one currency only. Nothing was changed.",
    ),
    "over-limit": (409, "Over the limit", "The quantity exceeds what one shopper may hold. Nothing was changed."),
    "order-not-cancellable": (409, "Order not cancellable", "The order has already been shipped or delivered."),
    "already-paid": (409, "Already paid", "The order's payment has already been captured."),
    "not-paid": (409, "Not paid", "No payment was captured for this order, so nothing can be refunded."),
    "already-refunded": (
        409,
        "Already refunded",
        "The captured amount has been refunded completely, or its refund is in progress.",
    ),
    "refund-too-large": (409, "Refund too large", "The amount exceeds what was captured and not yet refunded."),
    "reservation-settled": (409, "Reservation settled", "The reservation has already been committed or cancelled."),
    "precondition-failed": (
        412,
        "Precondition failed",
        "A condition of the request, such as `If-Match`, does not hold or is not supported. Nothing was changed.",
    ),
    "too-large": (413, "Too large", "The request body exceeds the size limit."),
    "unsupported-media-type": (415, "Unsupported media type", "The body must be uncompressed JSON in UTF-8."),
    "expectation-failed": (417, "Expectation failed", "The request has an `Expect` header that is not supported."),
    "invalid": (422, "Invalid", "The body or the parameters contain a value that is not allowed; see `errors`."),
    "idempotency-key-reused": (
        422,
        "Idempotency key reused",
        "This idempotency key was used for a different request. The first request stands.",
    ),
    "unknown-payment-token": (422, "Unknown payment token", "The payment token is unknown."),
    "websocket-required": (426, "WebSocket required", "This route serves WebSockets; upgrade the connection."),
    "rate-limited": (429, "Rate limited", "The request rate exceeds the limit. Retry after Retry-After."),
    "headers-too-large": (431, "Headers too large", "The request line and headers exceed the size limit."),
    "http-version-not-supported": (505, "HTTP version not supported", "This server speaks HTTP/1.1. Use that version."),
    "internal": (500, "Internal error", "The server failed unexpectedly. Report the trace_id."),
    "unavailable": (
        503,
        "Unavailable",
        "Part of the shop is unavailable. A change may have been accepted: retry it with the same idempotency key.",
    ),
    "payment-unavailable": (
        503,
        "Payment unavailable",
        "The payment provider is unavailable, so orders are refused. Nothing was changed; retry after Retry-After.",
    ),
    "overloaded": (503, "Overloaded", "The shop is overloaded. Retry after Retry-After."),
}


class Fault(BaseModel):
    """An invalid value: a JSON pointer into the body, or a slash and the name of a parameter, and the reason."""

    pointer: str
    detail: str


class ProblemDocument(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str | None = None
    instance: str | None = None
    errors: list[Fault] | None = None
    trace_id: str | None = None


@dataclass
class Problem(Exception):
    """Error of a request, raised anywhere while the request is handled. The response is a problem document."""

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
        """Return the problem document; `instance` is the request's id."""
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
        """Return the problem as an HTTP response."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == UNAUTHENTICATED:
            headers.setdefault("WWW-Authenticate", 'Bearer realm="holdfast"')
        return Response(self.body(instance), self.status, headers, MEDIA_TYPE)


def request_id(connection: HTTPConnection) -> str:
    """Return the request's id, assigned by the outermost middleware."""
    return str(connection.scope["state"].get("request_id", ""))


def json_pointer(path: Sequence[object]) -> str:
    """Return `path` as a JSON pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
