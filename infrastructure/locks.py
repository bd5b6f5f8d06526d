"""Crowd locks: while many want the last few of something, let one batch after the other ask Postgres.

They only thin the crowd. Nothing is right because of them and nothing is wrong without them: the row lock and the
CHECK in Postgres decide. So a lock that isn't free soon, or a Redis that is gone, slow, flushed or paused, is gone
without; what is lost is time, and never more than `PATIENCE` of it.
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

from infrastructure import metrics

log = logging.getLogger(__name__)

TTL_MS: Final = 1000
"""A lock whose owner died or sleeps frees itself after this long."""
PATIENCE: Final = 0.05
"""Seconds that a batch asks for its locks before it goes on without them."""
NAP: Final = 0.005
BREAK: Final = 1.0
"""Seconds without a further try after Redis failed."""

# All or none, so that two batches never each wait for what the other has. ARGV: token, TTL in ms.
_TAKE: Final = """
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 1 then return 0 end
end
for _, key in ipairs(KEYS) do
  redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
end
return 1
"""
# Only what is still ours: after the TTL a lock may be another's.
_GIVE: Final = """
local given = 0
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then given = given + redis.call('DEL', key) end
end
return given
"""


class Locks(Protocol):
    """Something that lets one after the other through, as well as it can."""

    def hold(self, names: Collection[str]) -> AbstractAsyncContextManager[bool]:
        """Go through with all of `names` locked (true), or after a short wait without (false). Never raises."""
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


class NoLocks:
    """The switch turned off: everyone goes through at once."""

    @asynccontextmanager
    async def hold(self, names: Collection[str]) -> AsyncIterator[bool]:
        """Go through; false unless there was nothing to lock."""
        yield not names

    async def close(self) -> None:
        """Nothing to give back."""


class RedisLocks:
    """Locks in Redis under `prefix`, shared by all processes of a shop."""

    def __init__(self, url: str, prefix: str) -> None:
        self.prefix = f"{prefix}lock:"
        self._redis = Redis.from_url(
            url,
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            retry=Retry(NoBackoff(), 0),  # the breaker is our retry; the client's own would wait for seconds
        )
        self._take = self._redis.register_script(_TAKE)
        self._give = self._redis.register_script(_GIVE)
        self._closed_until = 0.0

    @asynccontextmanager
    async def hold(self, names: Collection[str]) -> AsyncIterator[bool]:
        """Go through with all of `names` locked, or after at most about `PATIENCE` without."""
        keys = [self.prefix + name for name in sorted(set(names))]
        if not keys:
            yield True
            return
        token = secrets.token_hex(8)
        result = await self._ask(keys, token)
        metrics.LOCKS.labels(result).inc()
        try:
            yield result == "held"
        finally:
            if result == "held":
                await self._release(keys, token)

    async def close(self) -> None:
        """Give the connections back; one that Redis does not let go in time is dropped."""
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    async def _ask(self, keys: list[str], token: str) -> str:
        """`held`; `crowded` when another kept them all the while; `away` when Redis didn't answer in time."""
        if time.monotonic() < self._closed_until:
            return "away"
        result, end = "away", time.monotonic() + PATIENCE
        with metrics.LOCK_SECONDS.time():
            try:
                async with asyncio.timeout(PATIENCE):
                    while not await self._take(keys=keys, args=[token, TTL_MS]):
                        result = "crowded"
                        if time.monotonic() > end:  # the client's own wait_for, before Python 3.12, may eat a timeout
                            return result
                        await asyncio.sleep(NAP)
                    return "held"
            except TimeoutError:
                if result == "away":
                    self._break("no answer in time")
            except (RedisError, OSError) as error:
                result = "away"
                self._break(error)
        return result

    async def _release(self, keys: list[str], token: str) -> None:
        with suppress(TimeoutError):  # the TTL does it then
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._give(keys=keys, args=[token])
            except (RedisError, OSError) as error:
                self._break(error)

    def _break(self, reason: object) -> None:
        log.warning("going on without crowd locks for %.0f s: %s", BREAK, reason)
        self._closed_until = time.monotonic() + BREAK
