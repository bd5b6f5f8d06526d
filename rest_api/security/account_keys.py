"""The public keys of the account service at this edge: read every few seconds, and kept while the service is away.

A new key is published minutes before it signs, so a token with an unknown key is rare, and leads to one read per second
at most.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from infrastructure.process import clock
from infrastructure.security.key_set import decode_key_set, encode_key_set
from rest_api.protocol.problems import Problem

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 5.0
UNKNOWN_KEY_SECONDS: Final = 1.0
"""Least time between two reads because of a token with an unknown key."""


class AccountKeys:
    """The key set; `fetch` returns it as JSON, and raises `Problem` if the account service is unavailable."""

    def __init__(self, fetch: Callable[[], Awaitable[Any]]) -> None:
        self._fetch = fetch
        self._keys: Mapping[str, Ed25519PublicKey] | None = None
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")

    async def with_key(self, kid: str) -> Mapping[str, Ed25519PublicKey]:
        """Return the keys, after one more read if `kid` is not among them.

        Raise `Problem` if no keys were ever read: then nobody can say whether a token is valid.
        """
        if self._keys is None or kid not in self._keys:
            async with self._reading:
                now = clock.now().timestamp()
                if (self._keys is None or kid not in self._keys) and now - self._read_at >= UNKNOWN_KEY_SECONDS:
                    await self._read(now)
        return self._require()

    async def key_set(self) -> dict[str, Any]:
        """Return the keys as a JSON Web Key Set. Raise `Problem` if none were ever read."""
        if self._keys is None:
            async with self._reading:
                await self._read(clock.now().timestamp())
        return encode_key_set(self._require())

    async def run(self) -> None:
        """Read the keys every few seconds, indefinitely."""
        while True:
            async with self._reading:
                await self._read(clock.now().timestamp())
            await asyncio.sleep(REFRESH_SECONDS)

    async def _read(self, now: float) -> None:
        """Read the keys; without an answer, the known ones stay."""
        self._read_at = now
        try:
            self._keys = decode_key_set(await self._fetch())
        except Problem:
            log.info("the keys of accounts cannot be read; the known ones stay valid")
        except ValueError as error:
            log.warning("the account service publishes no key set: %s", error)

    def _require(self) -> Mapping[str, Ed25519PublicKey]:
        if self._keys is None:
            raise Problem("unavailable", "tokens of accounts cannot be checked now", retry_after=2)
        return self._keys
