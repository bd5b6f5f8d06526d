"""The port to the provider: its HTTP API, spoken so that a question without an answer is never taken for a no.

`Unavailable` is raised when the provider could not be reached or can't do anything now; the breaker counts it. A charge
that was sent and not answered is `NoAnswer`: perhaps it was made, so it is asked about, not made again.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self

import aiohttp
from pydantic import BaseModel, ValidationError, model_validator

from infrastructure.breaker import Unavailable
from inventory_service.messages import Money
from order_service.payment.model import (
    Answer,
    Ask,
    Create,
    GiveBack,
    NoAnswer,
    NotThere,
    Outcome,
    Read,
    Refusal,
    Step,
    Tombstone,
)

_OVERLOADED: Final = 429
_FIRST_SERVER_ERROR: Final = 500


class _Said(BaseModel):
    """A charge or a refund as the provider describes it; what we do not need is left out."""

    status: Literal["pending", "captured", "declined", "voided", "refunded"]
    amount: int | None = None
    currency: str | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _what_was_taken_is_said(self) -> Self:
        if self.status in {"captured", "refunded"} and self.money is None:
            raise ValueError(f"{self.status}, but how much?")
        return self

    @property
    def money(self) -> Money | None:
        """The sum, where one is said."""
        complete = self.amount is not None and self.currency is not None
        return Money.model_validate({"amount": self.amount, "currency": self.currency}) if complete else None


class Provider:
    """A session with the provider; `timeout` is in seconds, for each answer. Use it as a context manager."""

    def __init__(self, url: str, key: str, *, timeout: float, webhook_url: str = "", concurrency: int = 16) -> None:
        self.url = url.rstrip("/")
        self.webhook_url = webhook_url
        self._headers = {"Authorization": f"Bearer {key}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._connections = concurrency + 1
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open; nothing is asked yet."""
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
        """Hang up."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(self, step: Step, ask: Ask) -> Answer:
        """Ask once; `Unavailable` when there is no telling from the answer."""
        path = f"/v1/charges/{step.payment_id}"
        match ask:
            case Create(amount=amount, token=token):
                body = {
                    "key": step.key,
                    "amount": amount.amount,
                    "currency": amount.currency,
                    "token": token,
                    "metadata": {"order_id": step.order_id, "user_id": step.user_id},
                }
                if self.webhook_url:
                    body["webhook_url"] = self.webhook_url
                try:
                    return _answer(*await self._call("POST", "/v1/charges", body))
                except TimeoutError:
                    return NoAnswer("the provider did not answer in time")
            case Read():
                return _answer(*await self._heard("GET", path))
            case Tombstone():
                return _answer(*await self._heard("POST", f"{path}/void", {}))
            case GiveBack(amount=amount):
                body = {"key": step.key, "amount": amount.amount}
                return _answer(*await self._heard("POST", f"{path}/refunds", body))

    async def ping(self) -> None:
        """Return when the provider answers; `Unavailable` when it does not."""
        await self._heard("GET", "/v1/history?limit=1")

    async def history(self) -> list[dict[str, Any]]:
        """All that the provider remembers, in its order: `{"seq", "charge", "key", "type", "amount", "currency"}`."""
        items: list[dict[str, Any]] = []
        while True:
            after = items[-1]["seq"] if items else 0
            _, page = await self._heard("GET", f"/v1/history?after={after}&limit=1000")
            if not page.get("items"):
                return items
            items += page["items"]

    async def _heard(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        try:
            return await self._call(method, path, body)
        except TimeoutError:
            raise Unavailable("the provider did not answer in time") from None

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            raise RuntimeError("the session with the provider is not open")
        try:
            async with self._session.request(method, self.url + path, json=body) as response:
                status = response.status
                said = await response.json(content_type=None) if status < _FIRST_SERVER_ERROR else {}
        except TimeoutError:  # before OSError, of which it is one
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"the provider can't be reached: {type(error).__name__}: {error}") from None
        except ValueError:
            raise Unavailable("the provider answered what is no JSON") from None
        if status >= _FIRST_SERVER_ERROR or status in {401, 403, _OVERLOADED}:
            raise Unavailable(f"the provider answered {status}")
        return status, said if isinstance(said, dict) else {}


def _answer(status: int, said: dict[str, Any]) -> Answer:
    """What an answer means: a description of the charge or refund, whatever the status; else a refusal."""
    if "status" in said:
        try:
            told = _Said.model_validate(said)
        except ValidationError:
            raise Unavailable(f"the provider answered {status} and what makes no sense") from None
        return Outcome(told.status, told.money, told.reason)
    if status == 404:  # noqa: PLR2004 - the one that says so
        return NotThere()
    return Refusal(str(said.get("detail") or said.get("type") or f"status {status}")[:200])
