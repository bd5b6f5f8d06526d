"""The client of the account service: sends commands, and reads the published keys.

The edge adds nothing to a command that the client could not send: the password or token in it is its only proof.
"""

from typing import Any, Final

import aiohttp
import orjson

from rest_api.protocol.problems import SLUGS, Problem
from rest_api.settings import EdgeSettings

CONNECTIONS: Final = 64
RETRY_AFTER: Final = 2
OK: Final = 200
REFUSED: Final = 422


class AccountClient:
    """Call `open` before use and `close` at the end; in between the service is unavailable if it cannot be reached."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._url = settings.accounts_url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=settings.accounts_timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Prepare the connections. None is made yet."""
        await self.close()
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        self._session = aiohttp.ClientSession(timeout=self._timeout, connector=connector, trust_env=False)

    async def execute(self, command: str, **fields: Any) -> dict[str, Any]:
        """Execute a command and return its result; fields that are `None` are left out.

        Raise `Problem` if it was refused, or if no answer arrives in time: it may have been executed then.
        """
        body = {name: value for name, value in fields.items() if value is not None}
        status, found = await self._request("POST", f"/commands/{command}", body)
        if status == OK:
            return found
        slug = found.get("problem")
        if status != REFUSED or slug not in SLUGS:
            raise _unavailable()
        raise Problem(slug, found.get("detail"), found.get("retry_after"), found.get("errors", ()))

    async def key_set(self) -> Any:
        """Return the published keys as a JSON Web Key Set. Raise `Problem` if the service is unavailable."""
        status, found = await self._request("GET", "/.well-known/jwks.json")
        if status != OK:
            raise _unavailable()
        return found

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _request(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            raise _unavailable()
        content = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json"} if content else {}
        try:
            async with self._session.request(
                method, self._url + path, data=content, headers=headers, allow_redirects=False
            ) as response:
                found = orjson.loads(await response.read()) if response.status in {OK, REFUSED} else {}
                return response.status, found if isinstance(found, dict) else {}
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            raise _unavailable() from None


def _unavailable() -> Problem:
    return Problem("unavailable", "accounts are unavailable", retry_after=RETRY_AFTER)
