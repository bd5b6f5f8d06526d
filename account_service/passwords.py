"""Hashing of passwords (argon2id, RFC 9106), in threads and with a bounded number at once.

A hash takes tens of milliseconds of a core and tens of MiB on purpose. So only as many run as the machine can carry,
some more wait, and the rest is refused at once: a flood of logins costs the other services of the machine little.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from account_service.model import Password

T = TypeVar("T")

_NOBODY: Final = Password(b"no account has this password hash")


class HashingBusyError(Exception):
    """So many passwords are being hashed that this one would wait for long. Try again in a second."""


class Hasher:
    """Hashes and verifies passwords, `threads` at a time, while up to `waiting` more wait. Close it at the end."""

    def __init__(self, *, memory_kib: int, passes: int, threads: int, waiting: int) -> None:
        self._argon2 = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._most = threads + waiting
        self._at_work = 0
        self._hash_of_nobody = self._argon2.hash(_NOBODY.normalized)

    async def hash(self, password: Password) -> str:
        """Return the encoded hash of a password, with its salt and parameters. Raise `HashingBusyError`."""
        return await self._run(lambda: self._argon2.hash(password.normalized))

    async def verify(self, stored: str | None, entered: Password | None) -> bool:
        """Return whether `entered` is the password of the hash `stored`. Raise `HashingBusyError`.

        Without a stored hash or a possible password the answer is no, after the same time.
        """
        password = entered or _NOBODY
        matches = await self._run(lambda: self._matches(stored or self._hash_of_nobody, password))
        return matches and stored is not None and entered is not None

    def needs_rehash(self, stored: str) -> bool:
        """Return whether a hash was made with other parameters than today's."""
        return self._argon2.check_needs_rehash(stored)

    def close(self) -> None:
        """End the threads after the hashes in hand."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _matches(self, stored: str, password: Password) -> bool:
        try:
            return self._argon2.verify(stored, password.normalized)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._at_work >= self._most:
            raise HashingBusyError("too many passwords are being hashed")
        loop = asyncio.get_running_loop()
        job = self._threads.submit(work)
        self._at_work += 1
        # A job in hand goes on although its caller is cancelled, and counts until it ends.
        job.add_done_callback(lambda _: _call(loop, self._finish))
        return await asyncio.wrap_future(job)

    def _finish(self) -> None:
        self._at_work -= 1


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function)
