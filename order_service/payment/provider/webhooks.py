"""Sends signed webhooks about charges, with retries. Delivery is not guaranteed."""

import asyncio
import logging
from typing import Any, Final

import aiohttp
import orjson

from contracts.envelope import rfc3339
from infrastructure.process.clock import now
from infrastructure.process.loopback import is_loopback_url
from infrastructure.security.webhooks import HEADER, sign

log = logging.getLogger(__name__)

PAUSES: Final = (0.2, 1.0, 5.0, 20.0)
"""The pauses between attempts, in seconds. After the last attempt the shop must query by itself."""
TIMEOUT_SECONDS: Final = 2.0
_FIRST_REDIRECT: Final = 300


class WebhookSender:
    """A sender of webhooks: `{"type": "charge.<status>", "created", "data": charge}`, signed with `secret`.

    It sends to `configured_url` and to this machine only: a signature is a proof, and no client may have one made for
    another server.
    """

    def __init__(self, secret: str, configured_url: str = "") -> None:
        self._secret = secret
        self._configured_url = configured_url
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def accepts(self, url: str) -> bool:
        """Return whether webhooks may be sent to `url`."""
        return is_loopback_url(url) or (url == self._configured_url and bool(url))

    def schedule(self, url: str, charge: dict[str, Any]) -> None:
        """Deliver in the background, with retries until accepted."""
        task = asyncio.create_task(self._deliver_with_retries(url, charge))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def deliver(self, url: str, charge: dict[str, Any]) -> bool:
        """Make one attempt. Return True if the webhook was accepted."""
        if not self.accepts(url):  # stored before this was checked
            log.warning("no webhook is sent to %s: it is neither HOLDFAST_WEBHOOK_URL nor on this machine", url)
            return False
        body = orjson.dumps({"type": f"charge.{charge['status']}", "created": rfc3339(now()), "data": charge})
        headers = {"Content-Type": "application/json", HEADER: sign(self._secret, body, now())}
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS), trust_env=False)
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return response.status < _FIRST_REDIRECT
        except (aiohttp.ClientError, OSError) as error:
            log.info("webhook not accepted: %s: %s", type(error).__name__, error)
            return False

    async def close(self) -> None:
        """Cancel the deliveries in progress and close the HTTP session."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _deliver_with_retries(self, url: str, charge: dict[str, Any]) -> None:
        for pause in (*PAUSES, None):
            if await self.deliver(url, charge) or pause is None:
                return
            await asyncio.sleep(pause)
