"""The provider's HTTP API, and what it does to those who use it: answers late, twice, wrongly, or not at all.

| token | a charge with it |
|---|---|
| `tok_approve` | is captured, and told by webhook after the answer |
| `tok_decline` | is declined |
| `tok_timeout` | is never answered and never decided, until it is voided |
| `tok_late` | is never answered, and captured after `late` seconds unless it was voided by then |
| `tok_twice` | is captured, and told by webhook before the answer and once more after it |
| `tok_wrong_amount` | is captured with one minor unit too little |
"""

import asyncio
import hmac
import logging
import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infrastructure.envelope import first_fault
from inventory_service.messages import Printable
from order_service.messages import Token
from order_service.payment.provider.books import Books, Conflict, Outcome, Wanted
from order_service.payment.provider.webhooks import Webhooks

log = logging.getLogger(__name__)

TOKENS: Final = ("tok_approve", "tok_decline", "tok_timeout", "tok_late", "tok_twice", "tok_wrong_amount")
SILENT: Final = frozenset({"tok_timeout", "tok_late"})
HANG_SECONDS: Final = 60.0
"""How long a client that waits for an answer which never comes is left waiting."""


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Metadata(_Asked):
    """What the provider keeps and sends back unread."""

    order_id: Printable | None = None
    user_id: Printable | None = None


class NewCharge(_Asked):
    """`POST /v1/charges`."""

    key: Printable
    amount: int = Field(gt=0)
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    token: Token
    webhook_url: str | None = Field(default=None, pattern=r"^https?://", max_length=500)
    metadata: Metadata = Metadata()


class NewRefund(_Asked):
    """`POST /v1/charges/{key}/refunds`."""

    key: Printable
    amount: int = Field(gt=0)


class Control(_Asked):
    """`POST /control`: how the provider is from now on. What is left out is as usual."""

    down: bool = False
    """No question is answered; the line is cut."""
    slow: float = Field(default=0, ge=0, le=60)
    """Seconds before each answer."""
    fail: int = Field(default=0, ge=0)
    """So many questions are answered 500, and not acted on."""


class Server:
    """The routes over the books. `late` in seconds."""

    def __init__(self, books: Books, webhooks: Webhooks, key: str, *, late: float) -> None:
        self.books = books
        self.webhooks = webhooks
        self.late = late
        self.control = Control()
        self._key = f"Bearer {key}".encode()
        self._timers: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        """The application; what was to be captured late before a restart still is."""
        app = web.Application(middlewares=[self._mood], client_max_size=64 * 1024)
        app.add_routes(
            [
                web.post("/v1/charges", self._charge),
                web.get("/v1/charges/{key}", self._read),
                web.post("/v1/charges/{key}/void", self._void),
                web.post("/v1/charges/{key}/refunds", self._refund),
                web.get("/v1/history", self._history),
                web.post("/control", self._controlled),
                web.get("/livez", self._ready),
                web.get("/readyz", self._ready),
            ]
        )
        app.on_startup.append(self._resume)
        app.on_cleanup.append(self._stop)
        return app

    # ---- how it is today --------------------------------------------------------------------------------------------

    @web.middleware
    async def _mood(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in {"/control", "/livez", "/readyz"}:
            return await handler(request)
        if self.control.down:
            return _hang_up(request)
        if self.control.slow:
            await asyncio.sleep(self.control.slow)
        if self.control.fail:
            self.control = self.control.model_copy(update={"fail": self.control.fail - 1})
            return _problem(500, "internal", "something broke")
        return await self._for_owner(request, handler)

    async def _for_owner(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), self._key):
            return _problem(401, "unauthenticated", "the API key is missing or wrong")
        try:
            return await handler(request)
        except Conflict as conflict:
            return _problem(409, conflict.type, conflict.detail)
        except ValidationError as error:
            return _problem(422, "invalid", first_fault(error))

    async def _controlled(self, request: web.Request) -> web.Response:
        try:
            self.control = Control.model_validate_json(await request.read())
        except ValidationError as error:
            return _problem(422, "invalid", first_fault(error))
        return web.json_response(self.control.model_dump())

    async def _ready(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    # ---- charges ----------------------------------------------------------------------------------------------------

    async def _charge(self, request: web.Request) -> web.StreamResponse:
        asked = NewCharge.model_validate_json(await request.read())
        if asked.token not in TOKENS:
            return _problem(422, "unknown-token", f"{asked.token!r} is no token of ours")
        wanted = Wanted(
            key=asked.key,
            amount=asked.amount,
            currency=asked.currency,
            token=asked.token,
            order_id=asked.metadata.order_id,
            user_id=asked.metadata.user_id,
            webhook_url=asked.webhook_url,
        )
        late = time.time() + self.late if asked.token == "tok_late" else None  # noqa: S105 - not one that opens anything
        if not self.books.begin(wanted, _outcome(asked), captures_at=late):
            return web.json_response(self.books.charge(asked.key))
        if late is not None:
            self._later(asked.key, late)
        if asked.token in SILENT:
            await asyncio.sleep(HANG_SECONDS)
            return _hang_up(request)
        charge = self.books.charge(asked.key)
        if charge is not None and asked.webhook_url:
            if asked.token == "tok_twice":  # noqa: S105 - not one that opens anything
                await self.webhooks.deliver(asked.webhook_url, charge)  # it arrives before our own answer
            self.webhooks.soon(asked.webhook_url, charge)
        return web.json_response(charge, status=201)

    async def _read(self, request: web.Request) -> web.Response:
        charge = self.books.charge(request.match_info["key"])
        return _unknown() if charge is None else web.json_response(charge)

    async def _void(self, request: web.Request) -> web.Response:
        charge = self.books.void(request.match_info["key"])
        return web.json_response(charge, status=200 if charge["status"] in {"voided", "declined"} else 409)

    async def _refund(self, request: web.Request) -> web.Response:
        asked = NewRefund.model_validate_json(await request.read())
        given = self.books.refund(request.match_info["key"], asked.key, asked.amount)
        return _unknown() if given is None else web.json_response(given)

    async def _history(self, request: web.Request) -> web.Response:
        try:
            after, limit = int(request.query.get("after", "0")), int(request.query.get("limit", "100"))
        except ValueError:
            return _problem(422, "invalid", "after and limit are numbers")
        return web.json_response({"items": self.books.history(after, max(1, min(limit, 1000)))})

    # ---- what comes late --------------------------------------------------------------------------------------------

    def _later(self, key: str, moment: float) -> None:
        task = asyncio.create_task(self._capture_at(key, moment))
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def _capture_at(self, key: str, moment: float) -> None:
        await asyncio.sleep(max(0.0, moment - time.time()))
        charge = self.books.charge(key)
        if charge is not None and self.books.decide(key, ("captured", charge["amount"])):
            log.info("captured late: %s", key)
            if url := self.books.webhook_url(key):
                self.webhooks.soon(url, self.books.charge(key) or {})

    async def _resume(self, _: web.Application) -> None:
        for key, moment in self.books.late():
            self._later(key, moment)

    async def _stop(self, _: web.Application) -> None:
        for task in self._timers:
            task.cancel()
        await self.webhooks.close()
        self.books.close()


def _outcome(asked: NewCharge) -> Outcome | None:
    """What a charge comes to at once; none for those that stay undecided."""
    match asked.token:
        case "tok_timeout" | "tok_late":
            return None
        case "tok_decline":
            return "declined", None
        case "tok_wrong_amount":
            return "captured", max(asked.amount - 1, 1)
        case _:
            return "captured", asked.amount


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


def _unknown() -> web.Response:
    return _problem(404, "not-found", "no charge has this key")


def _problem(status: int, type_: str, detail: str) -> web.Response:
    return web.json_response({"type": type_, "detail": detail}, status=status)
