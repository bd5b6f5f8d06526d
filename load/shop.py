"""The shop's HTTP side as a client sees it: tokens, the catalogue, orders; patient with a shop that is restarting."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import aiohttp

from load.protocol import backoff

CALLS_AT_ONCE: Final = 16
"""Requests and handshakes that one driver has open at a time: a crowd comes in, it does not break the door."""
PATIENT_ATTEMPTS: Final = 10


class ShopAwayError(RuntimeError):
    """The shop does not answer, or not as a shop does; the message says how."""


class TurnedAwayError(RuntimeError):
    """The shop closed the line for good: calling again would not help."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A shopper's credentials."""

    user_id: str
    token: str
    expires_at: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: its status, and its JSON body or an empty one."""

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        """The slug of the problem that it is; empty when it is none."""
        return str(self.body.get("type", "")).rpartition("/")[2] if self.status >= 400 else ""  # noqa: PLR2004 - an error


class Shop:
    """The shop's HTTP side at `url` (`http://127.0.0.1:8080`). `chance` is uniform in [0, 1)."""

    def __init__(self, url: str, *, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._met = False
        self.url = url.rstrip("/")
        self.stream_url = "ws" + self.url.removeprefix("http") + "/v1/stream"
        self.door = asyncio.Semaphore(CALLS_AT_ONCE)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15))

    async def __aenter__(self) -> Self:
        """Nothing is sent yet."""
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Close what is open."""
        await self._http.close()

    async def guest(self, token: str | None = None) -> Guest:
        """A new guest, or the same one with a fresh token when `token` still counts."""
        body = await self._body("POST", "/v1/guests", token)
        return Guest(body["user_id"], body["token"], body["expires_at"])

    async def guests(self, number: int) -> Sequence[Guest]:
        """`number` new guests."""
        return await asyncio.gather(*(self.guest() for _ in range(number)))

    async def available(self, product: str) -> int | None:
        """What the catalogue shows as available, at most 250 ms old; none for a product it does not know."""
        try:
            return int((await self.read(f"/v1/products/{product}"))["available"])
        except LookupError:
            return None

    async def read(self, path: str, token: str | None = None) -> Mapping[str, Any]:
        """The body of what is at `path`; `LookupError` for a 404, `ShopAwayError` for any other error."""
        return await self._body("GET", path, token)

    async def every(self, path: str, token: str | None = None) -> list[Mapping[str, Any]]:
        """All items of the list at `path`, page by page; errors as in `read`."""
        items: list[Mapping[str, Any]] = []
        page: Mapping[str, Any] = {"after": ""}
        while page["after"] is not None:
            page = await self.read(path + (f"&after={page['after']}" if page["after"] else ""), token)
            items += page["items"]
        return items

    async def wait_for(self, product: str, seconds: float = 60.0) -> None:
        """Return when the catalogue knows `product`; `ShopAwayError` when it doesn't soon."""
        end = time.monotonic() + seconds
        while await self.available(product) is None:
            if time.monotonic() > end:
                raise ShopAwayError(f"{product} was seeded, but the catalogue does not show it")
            await asyncio.sleep(0.05)

    async def send(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        wait: int | None = None,
    ) -> Answer:
        """The answer to a request; `key` is its idempotency key, which makes it safe to be sent again.

        With `wait`, the shop may take so many seconds to answer with what came of it.

        A shop that asks for patience gets it, and one that has answered before and is away now is waited for.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if key:
            headers["Idempotency-Key"] = key
        if wait is not None:
            headers["Prefer"] = f"wait={wait}"
        async with self.door:
            for attempt in range(PATIENT_ATTEMPTS):
                try:
                    async with self._http.request(method, self.url + path, headers=headers, json=body) as answer:
                        self._met = True
                        if answer.status not in {429, 503}:
                            return Answer(answer.status, await _json(answer))
                        pause = told_pause(answer.headers.get("Retry-After"), backoff(attempt, self._chance()))
                except (aiohttp.ClientError, TimeoutError) as error:
                    if not self._met:
                        raise ShopAwayError(f"no shop answers at {self.url} ({error})") from error
                    pause = backoff(attempt, self._chance())
                await asyncio.sleep(pause)
        raise ShopAwayError(f"{method} {self.url}{path}: no answer, asked {PATIENT_ATTEMPTS} times")

    async def _body(self, method: str, path: str, token: str | None) -> Mapping[str, Any]:
        answer = await self.send(method, path, token=token)
        if answer.status == 404:  # noqa: PLR2004 - the number is the name
            raise LookupError(path)
        if answer.status >= 400:  # noqa: PLR2004 - the number is the name
            raise ShopAwayError(f"{method} {self.url}{path} was answered {answer.status}: {dict(answer.body)}")
        return answer.body


async def _json(answer: aiohttp.ClientResponse) -> Mapping[str, Any]:
    """The body as an object; what is none stands under `text`."""
    try:
        body = await answer.json(content_type=None)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"text": (await answer.text())[:500]}


def told_pause(retry_after: str | None, otherwise: float) -> float:
    """The seconds that a `Retry-After` header asks for."""
    return float(retry_after) if retry_after and retry_after.isdigit() else otherwise
