"""The HTTP API of the simulated provider, with late, duplicate, wrong and missing responses on request.

| token | outcome of a charge with it |
|---|---|
| `tok_approve` | captured; one webhook after the response |
| `tok_decline` | declined |
| `tok_timeout` | no response and no outcome until it is voided |
| `tok_late` | no response; captured after `late` seconds unless it was voided by then |
| `tok_twice` | captured; one webhook before the response and one after it |
| `tok_wrong_amount` | captured with one minor unit too little |
"""

import asyncio
import hmac
import logging
import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.envelope import first_error
from contracts.inventory import Identifier
from contracts.orders import Token
from infrastructure.process.loopback import refusal_of_request
from order_service.payment.provider.database import ChargeOutcome, Conflict, ProviderDatabase, RequestedCharge
from order_service.payment.provider.webhooks import WebhookSender

log = logging.getLogger(__name__)

TOKENS: Final = ("tok_approve", "tok_decline", "tok_timeout", "tok_late", "tok_twice", "tok_wrong_amount")
SILENT_TOKENS: Final = frozenset({"tok_timeout", "tok_late"})
BODY_SECONDS: Final = 10.0
"""Time limit for the body of a request."""
MAX_INTEGER: Final = 2**63 - 1
"""The greatest integer that the database can store."""
HANG_SECONDS: Final = 60.0
"""The time for which the connection of a client without a response is kept open."""


class _RequestBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Metadata(_RequestBody):
    """The data that the provider stores and returns uninterpreted."""

    order_id: Identifier | None = None
    user_id: Identifier | None = None


class NewCharge(_RequestBody):
    """The body of `POST /v1/charges`."""

    key: Identifier
    amount: int = Field(gt=0, le=MAX_INTEGER)
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    token: Token
    webhook_url: str | None = Field(default=None, pattern=r"^https?://", max_length=500)
    metadata: Metadata = Metadata()


class NewRefund(_RequestBody):
    """The body of `POST /v1/charges/{key}/refunds`."""

    key: Identifier
    amount: int = Field(gt=0, le=MAX_INTEGER)


class Control(_RequestBody):
    """The body of `POST /control`: the failures from now on. Fields left out mean normal operation."""

    down: bool = False
    """Close the connection instead of responding."""
    slow: float = Field(default=0, ge=0, le=60)
    """Seconds before each response."""
    fail: int = Field(default=0, ge=0)
    """The number of next requests that fail with status 500, without any effect."""


class ProviderServer:
    """The routes of the API. `late` is the delay of `tok_late`, in seconds."""

    def __init__(self, database: ProviderDatabase, webhooks: WebhookSender, key: str, *, late: float) -> None:
        self.database = database
        self.webhooks = webhooks
        self.late = late
        self.control = Control()
        self._key = f"Bearer {key}".encode()
        self._timers: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        """Return the application. It resumes late captures that were pending before a restart."""
        middlewares = [_refuse_foreign_pages, _read_body, self._simulate_failures]
        app = web.Application(middlewares=middlewares, client_max_size=64 * 1024)
        app.add_routes(
            [
                web.post("/v1/charges", self._charge),
                web.get("/v1/charges/{key}", self._read),
                web.post("/v1/charges/{key}/void", self._void),
                web.post("/v1/charges/{key}/refunds", self._refund),
                web.get("/v1/history", self._history),
                web.post("/control", self._set_control),
                web.get("/livez", self._ready),
                web.get("/readyz", self._ready),
            ]
        )
        app.on_startup.append(self._resume)
        app.on_cleanup.append(self._stop)
        return app

    # ---- simulated failures -----------------------------------------------------------------------------------------

    @web.middleware
    async def _simulate_failures(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in {"/control", "/livez", "/readyz"}:
            return await handler(request)
        if self.control.down:
            return _disconnect(request)
        if self.control.slow:
            await asyncio.sleep(self.control.slow)
        if self.control.fail:
            self.control = self.control.model_copy(update={"fail": self.control.fail - 1})
            return _problem(500, "internal", "simulated failure")
        return await self._handle_authenticated(request, handler)

    async def _handle_authenticated(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not hmac.compare_digest(_bytes_of(request.headers.get("Authorization", "")), self._key):
            return _problem(401, "unauthenticated", "the API key is missing or wrong")
        try:
            return await handler(request)
        except Conflict as conflict:
            return _problem(409, conflict.type, conflict.detail)
        except ValidationError as error:
            return _problem(422, "invalid", first_error(error))

    async def _set_control(self, request: web.Request) -> web.Response:
        try:
            self.control = Control.model_validate_json(await request.read())
        except ValidationError as error:
            return _problem(422, "invalid", first_error(error))
        return web.json_response(self.control.model_dump())

    async def _ready(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    # ---- charges ----------------------------------------------------------------------------------------------------

    async def _charge(self, request: web.Request) -> web.StreamResponse:
        body = NewCharge.model_validate_json(await request.read())
        if body.webhook_url and not self.webhooks.accepts(body.webhook_url):
            return _problem(422, "invalid", "webhook_url must be HOLDFAST_WEBHOOK_URL or an address of this machine")
        if body.token not in TOKENS:
            return _problem(422, "unknown-token", f"{body.token!r} is not a known token")
        requested = RequestedCharge(
            key=body.key,
            amount=body.amount,
            currency=body.currency,
            token=body.token,
            order_id=body.metadata.order_id,
            user_id=body.metadata.user_id,
            webhook_url=body.webhook_url,
        )
        late = time.time() + self.late if body.token == "tok_late" else None  # noqa: S105 - not a secret
        if not self.database.create_charge(requested, _outcome(body), captures_at=late):
            return web.json_response(self.database.charge(body.key))
        if late is not None:
            self._schedule_capture(body.key, late)
        if body.token in SILENT_TOKENS:
            await asyncio.sleep(HANG_SECONDS)
            return _disconnect(request)
        charge = self.database.charge(body.key)
        if charge is not None and body.webhook_url:
            if body.token == "tok_twice":  # noqa: S105 - not a secret
                await self.webhooks.deliver(body.webhook_url, charge)  # it arrives before the response
            self.webhooks.schedule(body.webhook_url, charge)
        return web.json_response(charge, status=201)

    async def _read(self, request: web.Request) -> web.Response:
        charge = self.database.charge(request.match_info["key"])
        return _unknown() if charge is None else web.json_response(charge)

    async def _void(self, request: web.Request) -> web.Response:
        charge = self.database.void(request.match_info["key"])
        return web.json_response(charge, status=200 if charge["status"] in {"voided", "declined"} else 409)

    async def _refund(self, request: web.Request) -> web.Response:
        body = NewRefund.model_validate_json(await request.read())
        refund = self.database.refund(request.match_info["key"], body.key, body.amount)
        return _unknown() if refund is None else web.json_response(refund)

    async def _history(self, request: web.Request) -> web.Response:
        try:
            after, limit = int(request.query.get("after", "0")), int(request.query.get("limit", "100"))
        except ValueError:
            return _problem(422, "invalid", "after and limit must be integers")
        if not -MAX_INTEGER <= after <= MAX_INTEGER:
            return _problem(422, "invalid", f"after must be an integer from {-MAX_INTEGER} to {MAX_INTEGER}")
        return web.json_response({"items": self.database.history(after, max(1, min(limit, 1000)))})

    # ---- late captures ----------------------------------------------------------------------------------------------

    def _schedule_capture(self, key: str, due_at: float) -> None:
        task = asyncio.create_task(self._capture_at(key, due_at))
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def _capture_at(self, key: str, due_at: float) -> None:
        await asyncio.sleep(max(0.0, due_at - time.time()))
        charge = self.database.charge(key)
        if charge is not None and self.database.settle_charge(key, ("captured", charge["amount"])):
            log.info("captured late: %s", key)
            if url := self.database.webhook_url(key):
                self.webhooks.schedule(url, self.database.charge(key) or {})

    async def _resume(self, _: web.Application) -> None:
        for key, due_at in self.database.scheduled_captures():
            self._schedule_capture(key, due_at)

    async def _stop(self, _: web.Application) -> None:
        for task in self._timers:
            task.cancel()
        await self.webhooks.close()
        self.database.close()


@web.middleware
async def _read_body(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Read the body, which the handlers then find complete, or disconnect the client that does not send it in time."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            await request.read()
    except TimeoutError:
        return _disconnect(request)
    return await handler(request)


@web.middleware
async def _refuse_foreign_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that a web page may have sent: `/control` needs no key, and the history is private."""
    headers = request.headers
    refusal = refusal_of_request(headers.getall("Host", ()), headers.getall("Origin", ()))
    return await handler(request) if refusal is None else _problem(403, "forbidden", refusal)


def _outcome(body: NewCharge) -> ChargeOutcome | None:
    """Return the immediate outcome of a charge, `None` if it stays pending."""
    match body.token:
        case "tok_timeout" | "tok_late":
            return None
        case "tok_decline":
            return "declined", None
        case "tok_wrong_amount":
            return "captured", max(body.amount - 1, 1)
        case _:
            return "captured", body.amount


def _bytes_of(header: str) -> bytes:
    """Return the bytes of a header, which aiohttp decodes as UTF-8 where they are."""
    return header.encode(errors="surrogateescape")


def _disconnect(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


def _unknown() -> web.Response:
    return _problem(404, "not-found", "no charge has this key")


def _problem(status: int, type_: str, detail: str) -> web.Response:
    return web.json_response({"type": type_, "detail": detail}, status=status)
