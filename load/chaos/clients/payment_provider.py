"""Client of the simulated payment provider: control its behaviour, read its records, send webhooks in its name."""

import json
import time
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from infrastructure.security.webhooks import HEADER, sign
from load.chaos.checks.observed_state import ProviderCharge
from load.http_client import ShopUnavailableError

PAGE: Final = 1000
SECONDS: Final = 10.0


class PaymentProviderClient:
    """Client of the provider's HTTP API at `url`; `key` authenticates, `secret` signs webhooks."""

    def __init__(self, url: str, key: str, secret: str) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._secret = secret

    async def control(self, **how: Any) -> None:
        """Make the provider `down`, `slow` (seconds per answer) or `fail` (number of requests); without any, normal."""
        await self._request("POST", "/control", json=how)

    async def probe_refusal(self) -> tuple[bool, float]:
        """Return whether the provider rejects a request now or closes the connection, and the seconds until then.

        Raise `aiohttp.ClientConnectorError` if the provider does not run.
        """
        started = time.monotonic()
        try:
            await self._request("GET", "/v1/history?limit=1")
        except aiohttp.ClientConnectorError:  # the provider does not run
            raise
        except (aiohttp.ClientError, ShopUnavailableError):
            return True, time.monotonic() - started
        return False, time.monotonic() - started

    async def history(self) -> list[dict[str, Any]]:
        """Return all decisions of the provider in order: `seq`, `charge`, `key`, `type`, `amount`, `order_id`."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["seq"] if found else 0
            page = await self._request("GET", f"/v1/history?after={after}&limit={PAGE}")
            found += page["items"]
            if len(page["items"]) < PAGE:
                return found

    async def send_webhook(
        self, webhook_url: str, entry: dict[str, Any], user: str, *, late: float = 0, forged: bool = False
    ) -> int:
        """Send a webhook about a past decision and return the response status.

        The signature is `late` seconds old, and made with a wrong secret if `forged`.
        """
        charge = {
            "key": entry["charge"],
            "status": entry["type"],
            "metadata": {"order_id": entry["order_id"], "user_id": user},
        }
        body = json.dumps({"type": f"charge.{entry['type']}", "data": charge}).encode()
        moment = datetime.fromtimestamp(datetime.now(UTC).timestamp() - late, UTC)
        headers = {HEADER: sign("another secret" if forged else self._secret, body, moment)}
        async with self._session() as http, http.post(webhook_url, data=body, headers=headers) as answer:
            return answer.status

    async def _request(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._key}"}
        async with self._session() as http, http.request(method, self.url + path, headers=headers, **more) as answer:
            if not answer.ok:
                raise ShopUnavailableError(
                    f"{method} {path} at the payment provider failed with {answer.status}: {await answer.text()}"
                )
            body: dict[str, Any] = await answer.json()
            return body

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS))


def charges_by_payment(history: list[dict[str, Any]], orders: set[str]) -> dict[str, ProviderCharge]:
    """Return, by payment, the provider's operations for these orders."""
    captured: dict[str, list[int]] = {}
    refunded: dict[str, dict[str, int]] = {}
    order_of: dict[str, str] = {}
    for entry in history:
        if entry["order_id"] not in orders:
            continue
        charge = entry["charge"]
        order_of[charge] = entry["order_id"]
        if entry["type"] == "captured":
            captured.setdefault(charge, []).append(entry["amount"])
        elif entry["type"] == "refunded":
            refunded.setdefault(charge, {})[entry["key"]] = entry["amount"]
    return {
        charge: ProviderCharge(order, tuple(captured.get(charge, ())), refunded.get(charge, {}))
        for charge, order in order_of.items()
    }
