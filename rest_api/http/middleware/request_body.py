"""Reads the body of a request, and refuses every body that is not plain JSON in UTF-8, whatever route it is for."""

from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rest_api.http.fields import lists, media_types
from rest_api.http.json_body import UnreadableBodyError, invalid_values, parse
from rest_api.protocol.problems import Problem

_CHARSETS: Final = frozenset({"utf-8", "utf8"})


class RequestBodyMiddleware:
    """Middleware that checks a body before a route sees it, and stores it parsed as `scope["state"]["json"]`.

    Routes receive the bytes unchanged, because signatures cover them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            _check_expectations(headers)
            if headers.get("content-length", "0").strip("0") or "transfer-encoding" in headers:
                length_is_known = "transfer-encoding" not in headers
                if length_is_known:
                    _check_fields(headers)
                body = await _read(receive)
                if body is None:
                    return  # the client is gone
                if body and not length_is_known:
                    _check_fields(headers)
                if body:
                    scope["state"]["json"] = _parse(body)
                receive = _replay(body, receive)
        except Problem as problem:
            await problem.response(scope["state"]["request_id"])(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _check_expectations(headers: Headers) -> None:
    for expectation in lists.split(headers.get("expect", ""), ","):
        if expectation.lower() != "100-continue":
            raise Problem("expectation-failed", f"the only expectation is 100-continue, not {expectation[:64]!r}")


def _check_fields(headers: Headers) -> None:
    """Raise `Problem` unless the header fields announce JSON in UTF-8, uncompressed and whole."""
    codings = lists.split(headers.get("content-encoding", ""), ",")
    if any(coding.lower() != "identity" for coding in codings):
        detail = f"the body is encoded as {', '.join(codings)[:64]!r}; send it without Content-Encoding"
        raise Problem("unsupported-media-type", detail, headers={"Accept-Encoding": "identity"})
    if "content-range" in headers:
        raise Problem("bad-request", "a body with Content-Range is not supported; send it whole")
    media_type, parameters = media_types.parse(headers.get("content-type", ""))
    accepted = {"Accept": media_types.JSON}
    if media_type != media_types.JSON:
        found = f"not {media_type[:64]!r}" if media_type else "and this one has no Content-Type"
        raise Problem("unsupported-media-type", f"bodies are {media_types.JSON}, {found}", headers=accepted)
    charset = parameters.get("charset", "utf-8")
    if charset.lower() not in _CHARSETS:
        detail = f"bodies are UTF-8, not {charset[:64]!r}"
        raise Problem("unsupported-media-type", detail, headers=accepted)


async def _read(receive: Receive) -> bytes | None:
    """Return the whole body, whose size the middleware outside of this one limits; `None` if the client is gone."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def _parse(body: bytes) -> Any:
    try:
        value = parse(body)
    except UnreadableBodyError as error:
        raise Problem("bad-request", str(error)) from None
    errors = invalid_values(body, value)
    if errors:
        raise Problem("invalid", errors=errors)
    return value


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns the body, then whatever follows it."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
