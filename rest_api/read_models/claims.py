"""Idempotency keys in the edge's schema: each request claims its key, and stores its response under it.

Claims are written in batches, and so are responses: one statement for all that wait, each kind on a connection of its
own. The pool is separate from the one for reads, so that no list that is slow to read delays a change.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import create_pool, load_queries
from rest_api.read_models.batching import Batcher
from rest_api.read_models.store import SERVICE, SQL_FOLDER, UNAVAILABLE_ERRORS

_QUERIES: Final = load_queries(SQL_FOLDER / "claims.sql")
CONNECTIONS: Final = 4
"""One for claims, one for responses, and two for statements that have not returned in time."""
OPTIONS: Final = " ".join(
    f"-c {option}"
    for option in (
        "statement_timeout=5000",
        # Each statement is a lookup by key, also when the statistics date from a time when the table was empty.
        "plan_cache_mode=force_generic_plan",
        "enable_seqscan=off",
        "enable_hashjoin=off",
        "enable_mergejoin=off",
    )
)


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """The record of an idempotency key that is already in use.

    `claim_age` is the age of the current claim in seconds; `status` and `response` are `None` until the request has
    been answered.
    """

    fingerprint: str
    claim_age: float
    status: int | None
    response: bytes | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that claims its key. `fingerprint` is its content."""

    user_id: str
    request_id: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a claim: the response, or no `status` if the request was not sent."""

    user_id: str
    request_id: str
    status: int | None = None
    response: bytes | None = None


class ClaimStore:
    """The claims of all requests with an idempotency key.

    Call `open` before use and `close` at the end. Methods raise one of `UNAVAILABLE_ERRORS` within some seconds if
    Postgres is unavailable, and at once while a statement does not return.
    """

    def __init__(self, settings: Settings) -> None:
        self._pool = create_pool(settings, SERVICE, size=CONNECTIONS, options=OPTIONS)
        self._claims: Batcher[Claim, IdempotencyRecord | None] = Batcher(
            self._write_claims, key=_claim_key, on_late=self._release_late
        )
        self._completions: Batcher[Completion, None] = Batcher(self._write_completions, key=_completion_key)
        self._releases: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Start the pool, which connects and reconnects in the background."""
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        await self._claims.close()
        await self._completions.close()
        await asyncio.gather(*self._releases, return_exceptions=True)
        await self._pool.close(timeout=2)

    async def claim(self, user_id: str, request_id: str, fingerprint: str) -> IdempotencyRecord | None:
        """Claim an idempotency key; return `None` on success, or the existing record."""
        return await self._claims.submit(Claim(user_id, request_id, fingerprint))

    async def take_over(self, user_id: str, request_id: str, seconds: float) -> bool:
        """Take over a claim that has been unanswered for `seconds`; return False if another request was faster."""
        parameters = {"user_id": user_id, "id": request_id, "seconds": seconds}
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_QUERIES["take_over"], parameters)
            return bool(await cursor.fetchall())

    async def release(self, user_id: str, request_id: str) -> None:
        """Make an unanswered claim available to the next request at once."""
        await self._completions.submit(Completion(user_id, request_id))

    async def store_response(self, user_id: str, request_id: str, status: int, response: bytes) -> None:
        """Store the response to the request that holds the claim. A final response is never replaced."""
        await self._completions.submit(Completion(user_id, request_id, status, response))

    async def _write_claims(self, claims: Sequence[Claim]) -> list[IdempotencyRecord | None]:
        """Claim the keys that are free; return the records of the others."""
        found: dict[tuple[str, str], IdempotencyRecord | None] = {}
        missing = list(claims)
        while missing:
            columns = {
                "users": [claim.user_id for claim in missing],
                "ids": [claim.request_id for claim in missing],
                "fingerprints": [claim.fingerprint for claim in missing],
            }
            async with self._pool.connection() as connection:
                rows = await (await connection.execute(_QUERIES["claim"], columns)).fetchall()
            for user_id, request_id, *record in rows:
                found[user_id, request_id] = None if record[0] is None else IdempotencyRecord(*record)
            missing = [claim for claim in missing if _claim_key(claim) not in found]
        return [found[_claim_key(claim)] for claim in claims]

    async def _write_completions(self, completions: Sequence[Completion]) -> list[None]:
        columns = {
            "users": [each.user_id for each in completions],
            "ids": [each.request_id for each in completions],
            "statuses": [each.status for each in completions],
            "answers": [each.response for each in completions],
        }
        async with self._pool.connection() as connection:
            await connection.execute(_QUERIES["complete"], columns)
        return [None] * len(completions)

    def _release_late(self, claims: Sequence[Claim], records: Sequence[IdempotencyRecord | None]) -> None:
        """Release the keys that were claimed after their requests had been refused."""
        for claim, record in zip(claims, records, strict=True):
            if record is None:
                task = asyncio.create_task(self._release_quietly(claim))
                self._releases.add(task)
                task.add_done_callback(self._releases.discard)

    async def _release_quietly(self, claim: Claim) -> None:
        with contextlib.suppress(*UNAVAILABLE_ERRORS):  # a later request takes the claim over
            await self.release(claim.user_id, claim.request_id)


def _claim_key(claim: Claim) -> tuple[str, str]:
    return claim.user_id, claim.request_id


def _completion_key(completion: Completion) -> tuple[str, str]:
    return completion.user_id, completion.request_id
