"""Contention locks in Redis: while many requests compete for the last few units, batches go to Postgres one at a time.

They only reduce contention. Correctness never depends on them: the row lock and the CHECK in Postgres decide. If a lock
is not free within `ACQUIRE_SECONDS`, or Redis is down, slow, flushed or paused, the batch proceeds without it. That
costs time, at most `ACQUIRE_SECONDS`, never correctness.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final, Protocol

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from infrastructure.observability import metrics

log = logging.getLogger(__name__)

TTL_MS: Final = 1000
"""Milliseconds after which a lock expires whose owner crashed or hangs."""
ACQUIRE_SECONDS: Final = 0.05
"""Seconds that a batch waits for its locks before it proceeds without them."""
POLL_SECONDS: Final = 0.005
"""Seconds between two attempts to acquire."""
BREAK_SECONDS: Final = 1.0
"""Seconds without any attempt after Redis failed."""

# All locks or none, so that two batches never wait for each other. ARGV: token, TTL in ms.
_ACQUIRE: Final = """
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then return 0 end
end
for _, key in ipairs(KEYS) do
  redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
end
return 1
"""
# Only locks that are still ours: after the TTL another batch may hold them.
_RELEASE: Final = """
local released = 0
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then released = released + redis.call('DEL', key) end
end
return released
"""


class ContentionLocks(Protocol):
    """Best-effort locks by name."""

    def hold(self, names: Collection[str]) -> AbstractAsyncContextManager[bool]:
        """Yield true with all of `names` locked, or false, after a short wait, without any lock. Never raises."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class NoContentionLocks:
    """No contention locks: they are switched off in the settings."""

    @asynccontextmanager
    async def hold(self, names: Collection[str]) -> AsyncIterator[bool]:
        """Yield at once: true if there was nothing to lock, else false."""
        yield not names

    async def close(self) -> None:
        """Do nothing: there are no connections."""


class RedisContentionLocks:
    """Contention locks in Redis under `prefix`, shared by all processes of a shop."""

    def __init__(self, url: str, prefix: str) -> None:
        self.prefix = f"{prefix}lock:"
        self._redis = Redis.from_url(
            url,
            socket_timeout=ACQUIRE_SECONDS,
            socket_connect_timeout=ACQUIRE_SECONDS,
            retry=Retry(NoBackoff(), 0),  # `BREAK_SECONDS` is our retry policy; the client's own would wait for seconds
        )
        self._acquire_script = self._redis.register_script(_ACQUIRE)
        self._release_script = self._redis.register_script(_RELEASE)
        self._broken_until = 0.0

    @asynccontextmanager
    async def hold(self, names: Collection[str]) -> AsyncIterator[bool]:
        """Yield true with all of `names` locked, or false after about `ACQUIRE_SECONDS` seconds at most."""
        keys = [self.prefix + name for name in sorted(set(names))]
        if not keys:
            yield True
            return
        token = secrets.token_hex(8)
        result = await self._acquire(keys, token)
        metrics.LOCKS.labels(result).inc()
        try:
            yield result == "held"
        finally:
            if result == "held":
                await self._release(keys, token)

    async def close(self) -> None:
        """Close the connections; one that Redis does not close in time is dropped."""
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    async def _acquire(self, keys: list[str], token: str) -> str:
        """Return `held`, `crowded` if another batch kept a lock for all of the time, or `away` if Redis failed."""
        if time.monotonic() < self._broken_until:
            return "away"
        result, end = "away", time.monotonic() + ACQUIRE_SECONDS
        with metrics.LOCK_SECONDS.time():
            try:
                async with asyncio.timeout(ACQUIRE_SECONDS):
                    while not await self._acquire_script(keys=keys, args=[token, TTL_MS]):
                        result = "crowded"
                        if time.monotonic() > end:  # before Python 3.12 the client's own wait_for may swallow a timeout
                            return result
                        await asyncio.sleep(POLL_SECONDS)
                    return "held"
            except TimeoutError:
                if result == "away":
                    self._break("no answer in time")
            except (RedisError, OSError) as error:
                result = "away"
                self._break(error)
        return result

    async def _release(self, keys: list[str], token: str) -> None:
        with suppress(TimeoutError):  # then the locks expire
            try:
                async with asyncio.timeout(ACQUIRE_SECONDS):
                    await self._release_script(keys=keys, args=[token])
            except (RedisError, OSError) as error:
                self._break(error)

    def _break(self, reason: object) -> None:
        log.warning("going on without contention locks for %.0f s: %s", BREAK_SECONDS, reason)
        self._broken_until = time.monotonic() + BREAK_SECONDS
