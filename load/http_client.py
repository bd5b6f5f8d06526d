"""HTTP client of the shop: tokens, catalogue, orders. It waits for a shop that is restarting."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp

from contracts.url_paths import encode_segment
from load.protocol import backoff_seconds

MAX_CONCURRENT_REQUESTS: Final = 16
"""Maximum number of requests and handshakes that one process has open, so that shoppers connect without overloading."""
MAX_ATTEMPTS: Final = 10


class ShopUnavailableError(RuntimeError):
    """The shop does not answer, or not by the contract; the message has the details."""


class ConnectionRejectedError(RuntimeError):
    """The shop rejected the connection for good: reconnecting would not help."""


@dataclass(frozen=True, slots=True)
class Guest:
    """Credentials of a shopper."""

    user_id: str
    token: str
    expires_at: str


@dataclass(frozen=True, slots=True)
class HttpReply:
    """HTTP response: its status, and its JSON body or an empty one."""

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        """Slug of the problem, or empty for a success."""
        return str(self.body.get("type", "")).rpartition("/")[2] if self.status >= 400 else ""  # noqa: PLR2004 - an HTTP status


class ShopClient:
    """HTTP client of the shop at `url` (`http://127.0.0.1:8080`). `chance` returns numbers uniform in [0, 1)."""

    def __init__(self, url: str, *, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._has_answered = False
        self.url = url.rstrip("/")
        self.stream_url = "ws" + self.url.removeprefix("http") + "/v1/stream"
        self.request_slots = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15))

    async def __aenter__(self) -> Self:
        """Return the client; nothing is sent yet."""
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Close the HTTP session."""
        await self._http.close()

    async def create_guest(self, token: str | None = None) -> Guest:
        """Create a guest, or return the same guest with a new token if `token` is still valid."""
        body = await self._body("POST", "/v1/guests", token)
        return Guest(body["user_id"], body["token"], body["expires_at"])

    async def create_guests(self, number: int) -> Sequence[Guest]:
        """Create `number` guests."""
        return await asyncio.gather(*(self.create_guest() for _ in range(number)))

    async def available_units(self, product: str) -> int | None:
        """Return the available quantity in the catalogue (at most 250 ms old), or `None` for an unknown product."""
        try:
            return int((await self.get(f"/v1/products/{encode_segment(product)}"))["available"])
        except LookupError:
            return None

    async def get(self, path: str, token: str | None = None) -> Mapping[str, Any]:
        """Return the body at `path`. Raise `LookupError` for a 404, `ShopUnavailableError` for any other error."""
        return await self._body("GET", path, token)

    async def list_all(self, path: str, token: str | None = None) -> list[Mapping[str, Any]]:
        """Return all items of the list at `path`, fetched page by page; errors are as in `get`."""
        items: list[Mapping[str, Any]] = []
        page: Mapping[str, Any] = {"after": ""}
        while page["after"] is not None:
            page = await self.get(path + (f"&{urlencode({'after': page['after']})}" if page["after"] else ""), token)
            items += page["items"]
        return items

    async def wait_until_listed(self, product: str, seconds: float = 60.0) -> None:
        """Wait until the catalogue has `product`; raise `ShopUnavailableError` after `seconds`."""
        end = time.monotonic() + seconds
        while await self.available_units(product) is None:
            if time.monotonic() > end:
                raise ShopUnavailableError(
                    f"{product} was seeded, but the catalogue does not show it after {seconds:g} s"
                )
            await asyncio.sleep(0.05)

    async def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        wait: int | None = None,
    ) -> HttpReply:
        """Send a request and return its response; `key` is its idempotency key, which makes retries safe.

        With `wait`, the shop may take that many seconds to answer with the outcome.

        The request is retried after 429 and 503, and after connection errors if the shop has answered before. Raise
        `ShopUnavailableError` when all attempts have failed.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if key:
            headers["Idempotency-Key"] = key
        if wait is not None:
            headers["Prefer"] = f"wait={wait}"
        async with self.request_slots:
            for attempt in range(MAX_ATTEMPTS):
                try:
                    async with self._http.request(method, self.url + path, headers=headers, json=body) as answer:
                        self._has_answered = True
                        if answer.status not in {429, 503}:
                            return HttpReply(answer.status, await _json(answer))
                        pause = retry_after_seconds(
                            answer.headers.get("Retry-After"), backoff_seconds(attempt, self._chance())
                        )
                except (aiohttp.ClientError, TimeoutError) as error:
                    if not self._has_answered:
                        raise ShopUnavailableError(
                            f"no shop answers at {self.url} ({error}): start one with `holdfast up`"
                        ) from error
                    pause = backoff_seconds(attempt, self._chance())
                await asyncio.sleep(pause)
        raise ShopUnavailableError(f"{method} {self.url}{path}: no answer after {MAX_ATTEMPTS} attempts")

    async def _body(self, method: str, path: str, token: str | None) -> Mapping[str, Any]:
        answer = await self.request(method, path, token=token)
        if answer.status == 404:  # noqa: PLR2004 - an HTTP status
            raise LookupError(path)
        if answer.status >= 400:  # noqa: PLR2004 - an HTTP status
            raise ShopUnavailableError(f"{method} {self.url}{path} failed with {answer.status}: {dict(answer.body)}")
        return answer.body


async def _json(answer: aiohttp.ClientResponse) -> Mapping[str, Any]:
    """Return the body as an object; a body that is not a JSON object is returned under `text`."""
    try:
        body = await answer.json(content_type=None)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"text": (await answer.text())[:500]}


def retry_after_seconds(retry_after: str | None, otherwise: float) -> float:
    """Return the seconds that a `Retry-After` header asks for, or `otherwise`."""
    return float(retry_after) if retry_after and retry_after.isdigit() else otherwise
