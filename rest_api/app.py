"""The FastAPI application: routes, middleware, and framework errors as problem documents."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import WebSocketRoute

from rest_api.http.dependencies import AppState
from rest_api.http.legacy_stream import LegacyStream
from rest_api.http.methods import METHODS, allowed_methods
from rest_api.http.middleware.admission import AdmissionMiddleware
from rest_api.http.middleware.conditional import ConditionalMiddleware
from rest_api.http.middleware.errors import ErrorsMiddleware
from rest_api.http.middleware.head import HeadMiddleware
from rest_api.http.middleware.header_lines import HeaderLinesMiddleware
from rest_api.http.middleware.headers import HeadersMiddleware
from rest_api.http.middleware.network_budget import NetworkBudgetMiddleware
from rest_api.http.middleware.problem_pages import ProblemPagesMiddleware
from rest_api.http.middleware.request_body import RequestBodyMiddleware
from rest_api.http.middleware.request_id import RequestIdMiddleware
from rest_api.http.middleware.request_limits import PROBES, LimitsMiddleware
from rest_api.http.middleware.request_metrics import RequestMetricsMiddleware
from rest_api.http.middleware.request_target import RequestTargetMiddleware
from rest_api.http.middleware.unrouted_targets import UnroutedTargets
from rest_api.http.request_checks import check_request
from rest_api.http.routers import (
    accounts,
    analytics,
    cart,
    catalogue,
    legacy,
    notifications,
    orders,
    pages,
    related_products,
    reservations,
    sessions,
    users,
    webhooks,
)
from rest_api.protocol.problems import MEDIA_TYPE, Problem, ProblemDocument, json_pointer, request_id
from rest_api.protocol.schema_names import publish_names
from rest_api.websocket.endpoint import StreamEndpoint

METHOD_NOT_ALLOWED: Final = 405
SERVER_ERROR: Final = 500
_ROUTES: Final = (
    sessions,
    accounts,
    users,
    cart,
    catalogue,
    related_products,
    orders,
    reservations,
    analytics,
    notifications,
    webhooks,
    pages,
)
_PAYMENT_TOKEN_PATHS: Final = {("body", "payment", "token"), ("body", "token")}
"""The places of payment tokens in bodies: of an order, and of a repeated payment."""
_SLUGS: Final = {
    400: "bad-request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    412: "precondition-failed",
    413: "too-large",
    415: "unsupported-media-type",
    417: "expectation-failed",
    422: "invalid",
    503: "unavailable",
}


def create_app(edge: AppState) -> FastAPI:
    """Return the application over the given state."""
    app = FastAPI(
        title="Holdfast",
        version="1.0.0",
        description="A shop that cannot sell what it does not have. Times are RFC 3339 UTC, money is minor units.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(check_request)],
        responses={
            "4XX": {"model": ProblemDocument, "description": "a problem", "content": {MEDIA_TYPE: {}}},
            "5XX": {"model": ProblemDocument, "description": "a problem", "content": {MEDIA_TYPE: {}}},
        },
    )
    app.state.edge = edge
    for routes in _ROUTES:
        app.include_router(routes.router)
    stream = StreamEndpoint(edge.connections, edge.authenticator, edge.address_limiter, ping=edge.settings.ping_seconds)
    app.router.routes.append(WebSocketRoute("/v1/stream", stream))
    if edge.settings.profile == "local":
        app.include_router(legacy.router)
        app.router.routes.append(WebSocketRoute("/cart/update-product", LegacyStream(edge)))
    app.router.default = UnroutedTargets(app.router.default)
    app.add_exception_handler(Problem, _handle_problem)
    app.add_exception_handler(RequestValidationError, _handle_invalid_request)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    # The last one added is the outermost.
    app.add_middleware(RequestBodyMiddleware)
    app.add_middleware(ConditionalMiddleware)
    app.add_middleware(AdmissionMiddleware, connections=edge.connections)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=sorted(edge.authenticator.origins),
        allow_credentials=True,
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "If-Match",
            "If-None-Match",
            "Prefer",
            "traceparent",
        ],
        expose_headers=[
            "ETag",
            "Link",
            "Location",
            "Preference-Applied",
            "RateLimit",
            "RateLimit-Policy",
            "Retry-After",
            "X-Request-ID",
        ],
    )
    app.add_middleware(HeadMiddleware)
    app.add_middleware(LimitsMiddleware, hosts=edge.settings.accepted_hosts(), any_host_paths=PROBES)
    app.add_middleware(RequestTargetMiddleware)
    app.add_middleware(NetworkBudgetMiddleware, limiter=edge.address_limiter)
    app.add_middleware(HeaderLinesMiddleware)
    app.add_middleware(ErrorsMiddleware)
    app.add_middleware(ProblemPagesMiddleware)
    app.add_middleware(RequestMetricsMiddleware)
    app.add_middleware(HeadersMiddleware, requires_tls=edge.settings.profile == "production")
    app.add_middleware(RequestIdMiddleware)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        _remove_framework_errors(document)
        return publish_names(document)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to change the document
    return app


async def _handle_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response(request_id(request))


async def _handle_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return Problem("bad-request", "the body is not JSON").response(request_id(request))
    errors = [{"pointer": json_pointer(fault["loc"][1:]), "detail": fault["msg"]} for fault in faults]
    slug = "unknown-payment-token" if all(map(_is_malformed_token, faults)) else "invalid"
    return Problem(slug, errors=errors).response(request_id(request))


def _is_malformed_token(fault: Mapping[str, Any]) -> bool:
    """Return True if a text was given as a payment token that cannot be one; a card number, say."""
    return (
        fault["loc"] in _PAYMENT_TOKEN_PATHS and fault["type"] != "extra_forbidden" and isinstance(fault["input"], str)
    )


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    slug = _SLUGS.get(error.status_code, "bad-request" if error.status_code < SERVER_ERROR else "unavailable")
    headers = dict(error.headers or {})
    if error.status_code == METHOD_NOT_ALLOWED or request.scope["path"] == "*":
        headers["Allow"] = ", ".join(allowed_methods(request) or METHODS)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    if slug == "too-large":
        headers["Connection"] = "close"
    return Problem(slug, headers=headers).response(request_id(request))


def _remove_framework_errors(document: dict[str, Any]) -> None:
    """Remove the 422 of FastAPI's own shape from every route; the edge's are problem documents, under 4XX."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for kind in ("4XX", "5XX"):
                content = operation["responses"].get(kind, {}).get("content", {})
                schema = content.pop("application/json", None)
                if schema is not None:
                    content[MEDIA_TYPE] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
