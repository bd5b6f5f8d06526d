"""The client of the provider's HTTP API. A missing response is never treated as a rejection.

`Unavailable` is raised if the provider cannot be reached or reports an internal failure; the circuit breaker counts it.
A charge without a response is `NoResponse`: it may have been made, so it is queried instead of sent again.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self

import aiohttp
from pydantic import BaseModel, ValidationError, model_validator

from contracts.inventory import Money
from contracts.url_paths import encode_segment
from infrastructure.security.breaker import Unavailable
from order_service.payment.model import (
    CreateCharge,
    CreateRefund,
    KeyUnknown,
    NoResponse,
    Operation,
    ProviderCall,
    ProviderResponse,
    QueryCharge,
    Rejection,
    StatusReport,
    VoidCharge,
)

_OVERLOADED: Final = 429
_FIRST_SERVER_ERROR: Final = 500


class _ChargeDescription(BaseModel):
    """The provider's description of a charge or a refund, reduced to the fields in use."""

    status: Literal["pending", "captured", "declined", "voided", "refunded"]
    amount: int | None = None
    currency: str | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _has_amount(self) -> Self:
        if self.status in {"captured", "refunded"} and self.money is None:
            raise ValueError(f"status {self.status} requires amount and currency")
        return self

    @property
    def money(self) -> Money | None:
        """The amount, `None` if the response has none."""
        complete = self.amount is not None and self.currency is not None
        return Money.model_validate({"amount": self.amount, "currency": self.currency}) if complete else None


class ProviderClient:
    """A client of the provider; `timeout` limits each response, in seconds. Use it as a context manager."""

    def __init__(self, url: str, key: str, *, timeout: float, webhook_url: str = "", concurrency: int = 16) -> None:
        self.url = url.rstrip("/")
        self.webhook_url = webhook_url
        self._headers = {"Authorization": f"Bearer {key}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._connections = concurrency + 1
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the HTTP session. No request is sent yet."""
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=self._connections),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the HTTP session."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def execute(self, operation: Operation, call: ProviderCall) -> ProviderResponse:
        """Make one call. Raise `Unavailable` if the response is not usable."""
        path = f"/v1/charges/{encode_segment(operation.payment_id)}"
        match call:
            case CreateCharge(amount=amount, token=token):
                body = {
                    "key": operation.key,
                    "amount": amount.amount,
                    "currency": amount.currency,
                    "token": token,
                    "metadata": {"order_id": operation.order_id, "user_id": operation.user_id},
                }
                if self.webhook_url:
                    body["webhook_url"] = self.webhook_url
                try:
                    return _to_response(*await self._call("POST", "/v1/charges", body))
                except TimeoutError:
                    return NoResponse("the provider did not respond in time")
            case QueryCharge():
                return _to_response(*await self._call_or_unavailable("GET", path))
            case VoidCharge():
                return _to_response(*await self._call_or_unavailable("POST", f"{path}/void", {}))
            case CreateRefund(amount=amount):
                body = {"key": operation.key, "amount": amount.amount}
                return _to_response(*await self._call_or_unavailable("POST", f"{path}/refunds", body))

    async def ping(self) -> None:
        """Return if the provider responds, else raise `Unavailable`."""
        await self._call_or_unavailable("GET", "/v1/history?limit=1")

    async def history(self) -> list[dict[str, Any]]:
        """Return the provider's whole history in order, as `{"seq", "charge", "key", "type", "amount", "currency"}`."""
        items: list[dict[str, Any]] = []
        while True:
            after = items[-1]["seq"] if items else 0
            _, page = await self._call_or_unavailable("GET", f"/v1/history?after={after}&limit=1000")
            if not page.get("items"):
                return items
            items += page["items"]

    async def _call_or_unavailable(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        try:
            return await self._call(method, path, body)
        except TimeoutError:
            raise Unavailable("the provider did not respond in time") from None

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            raise RuntimeError("the session is not open: use the client as a context manager")
        try:
            async with self._session.request(method, self.url + path, json=body, allow_redirects=False) as response:
                status = response.status
                content = await response.json(content_type=None) if status < _FIRST_SERVER_ERROR else {}
        except TimeoutError:  # a subclass of OSError, handled by the caller
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"the provider cannot be reached: {type(error).__name__}: {error}") from None
        except ValueError:
            raise Unavailable("the response of the provider is not JSON") from None
        if status >= _FIRST_SERVER_ERROR or status in {401, 403, _OVERLOADED}:
            raise Unavailable(f"the provider responded with status {status}")
        return status, content if isinstance(content, dict) else {}


def _to_response(status: int, content: dict[str, Any]) -> ProviderResponse:
    """Return the meaning of a response: whatever its status, a described charge or refund takes precedence."""
    if "status" in content:
        try:
            description = _ChargeDescription.model_validate(content)
        except ValidationError:
            raise Unavailable(f"the response of the provider (status {status}) has an invalid body") from None
        return StatusReport(description.status, description.money, description.reason)
    if status == 404:  # noqa: PLR2004 - not found
        return KeyUnknown()
    return Rejection(str(content.get("detail") or content.get("type") or f"status {status}")[:200])
