"""Hashing of passwords: bounded, with the same work for nobody as for somebody, and parameters that may rise."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from account_service.model import Password
from account_service.passwords import Hasher, HashingBusyError

RIGHT, WRONG = Password(b"a long way to the sea"), Password(b"another way to the sea")


@contextmanager
def hasher(memory: int = 19456, passes: int = 2, threads: int = 2, waiting: int = 4) -> Iterator[Hasher]:
    made = Hasher(memory_kib=memory, passes=passes, threads=threads, waiting=waiting)
    yield made
    made.close()


async def test_a_password_is_verified_and_its_hash_has_the_parameters() -> None:
    with hasher() as here:
        stored = await here.hash(RIGHT)
        assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert stored != await here.hash(RIGHT), "each hash has a salt"
        assert await here.verify(stored, RIGHT)
        assert not await here.verify(stored, WRONG)
        assert not await here.verify(stored, None)
        assert not await here.verify("not a hash", RIGHT)


async def test_nobody_costs_a_hash_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with hasher() as here:
        stored, work = await here.hash(RIGHT), []
        matches = here._matches

        def counted(*given: Any) -> Any:
            work.append(given[0])
            return matches(*given)

        monkeypatch.setattr(here, "_matches", counted)
        assert not await here.verify(stored, WRONG)
        assert not await here.verify(None, WRONG)
        assert not await here.verify(None, None)
        assert [each.rpartition("$")[0].rpartition("$")[0] for each in work] == ["$argon2id$v=19$m=19456,t=2,p=1"] * 3


async def test_a_hash_with_earlier_parameters_is_still_valid_and_made_again() -> None:
    with hasher() as before, hasher(passes=3) as now:
        stored = await before.hash(RIGHT)
        assert await now.verify(stored, RIGHT)
        assert (before.needs_rehash(stored), now.needs_rehash(stored)) == (False, True)
        assert not now.needs_rehash(await now.hash(RIGHT))


async def test_a_flood_is_refused_at_once_and_the_rest_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with hasher(threads=2, waiting=4) as here:
        at_once, most, go = 0, 0, threading.Event()
        lock = threading.Lock()

        def slow(*_: object) -> bool:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            assert go.wait(30)
            with lock:
                at_once -= 1
            return True

        monkeypatch.setattr(here, "_matches", slow)
        logins = [asyncio.create_task(here.verify("x", RIGHT)) for _ in range(64)]
        while sum(each.done() for each in logins) < 58:
            await asyncio.sleep(0)
        go.set()
        results = await asyncio.gather(*logins, return_exceptions=True)
        assert (results.count(True), most) == (6, 2)
        assert all(isinstance(each, HashingBusyError) for each in results if each is not True)
        while here._at_work:
            await asyncio.sleep(0)
        assert await here.verify("x", RIGHT), "there is room again"


async def test_a_hash_whose_caller_is_gone_counts_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with hasher(threads=1, waiting=0) as here:
        begun, go = threading.Event(), threading.Event()

        def slow(*_: object) -> bool:
            begun.set()
            return go.wait(30)

        monkeypatch.setattr(here, "_matches", slow)
        login = asyncio.create_task(here.verify("x", RIGHT))
        assert await asyncio.to_thread(begun.wait, 30)
        login.cancel()
        await asyncio.gather(login, return_exceptions=True)
        with pytest.raises(HashingBusyError):
            await here.verify("x", RIGHT)
        go.set()
