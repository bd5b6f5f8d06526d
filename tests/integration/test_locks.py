"""Contention locks: one after the other while Redis is well, and at once without them when it isn't."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress

import pytest
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from infrastructure.observability import metrics
from infrastructure.process.settings import Settings
from infrastructure.storage import contention_locks as module
from infrastructure.storage.contention_locks import (
    ACQUIRE_SECONDS,
    ContentionLocks,
    NoContentionLocks,
    RedisContentionLocks,
)

Make = Callable[[], ContentionLocks]


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    async with Redis.from_url(settings.redis_url) as client:
        yield client


@pytest.fixture
async def make(settings: Settings) -> AsyncIterator[Callable[[], RedisContentionLocks]]:
    """Makes the locks of one more process."""
    made: list[RedisContentionLocks] = []

    def another() -> RedisContentionLocks:
        made.append(RedisContentionLocks(settings.redis_url, settings.prefix))
        return made[-1]

    yield another
    for each in made:
        await each.close()


def counted(result: str) -> float:
    value: float = metrics.LOCKS.labels(result)._value.get()
    return value


# ---- both -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["redis", "none"])
async def any_locks(request: pytest.FixtureRequest, make: Callable[[], RedisContentionLocks]) -> ContentionLocks:
    return make() if request.param == "redis" else NoContentionLocks()


async def test_everyone_comes_through(any_locks: ContentionLocks) -> None:
    through = []

    async def go(number: int) -> None:
        async with any_locks.hold({"A", "B"}):
            through.append(number)

    await asyncio.gather(*(go(number) for number in range(10)))
    assert sorted(through) == [*range(10)]


async def test_nothing_to_lock_is_nothing_to_wait_for(any_locks: ContentionLocks) -> None:
    async with any_locks.hold(()) as held:
        assert held


async def test_an_error_inside_a_lock_is_raised_unchanged(any_locks: ContentionLocks) -> None:
    with pytest.raises(KeyError):
        async with any_locks.hold({"A"}):
            raise KeyError
    async with any_locks.hold({"A"}) as held:
        assert held is isinstance(any_locks, RedisContentionLocks)


# ---- Redis ----------------------------------------------------------------------------------------------------------


async def test_a_lock_keeps_others_out_until_it_is_given_back(
    make: Callable[[], RedisContentionLocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine this process may sleep for longer than a lock lives, or than a batch asks for it.
    monkeypatch.setattr(module, "TTL_MS", 60_000)
    monkeypatch.setattr(module, "ACQUIRE_SECONDS", 1.0)
    one, two = make(), make()
    async with one.hold({"A", "B"}) as held:
        assert held
        async with two.hold({"B", "C"}) as also:
            assert not also, "after a short wait it goes on without"
        async with two.hold({"C"}) as free:
            assert free, "all or none: C was not kept by the try above"
    async with two.hold({"A", "B"}) as held:
        assert held


async def test_a_timeout_that_the_client_swallows_is_one_all_the_same(
    make: Callable[[], RedisContentionLocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`asyncio.wait_for` of Python 3.11, when it is cancelled just as what it waits for is done, returns that."""
    locks, tries = make(), 0

    async def taken(**_: object) -> int:
        nonlocal tries
        tries += 1
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(ACQUIRE_SECONDS * 4 if tries == 1 else 0)
        return int(tries > 1000)

    monkeypatch.setattr(locks, "_acquire_script", taken)
    async with locks.hold({"A"}) as held:
        assert not held
    assert tries < 3


async def test_contending_batches_go_through_one_after_the_other(make: Callable[[], RedisContentionLocks]) -> None:
    inside, most, got = 0, 0, 0

    async def go() -> None:
        nonlocal inside, most, got
        async with make().hold({"A"}) as held:
            if held:
                got += 1
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.001)
                inside -= 1

    await asyncio.gather(*(go() for _ in range(5)))
    assert (most, got >= 1) == (1, True)


async def test_a_lock_whose_owner_died_frees_itself(
    make: Callable[[], RedisContentionLocks], redis: Redis, prefix: str
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(make().hold({"A"}))
        assert 0 < await redis.pttl(f"{prefix}lock:A") <= module.TTL_MS
        while True:
            if not await redis.exists(f"{prefix}lock:A"):
                break
            await asyncio.sleep(0.05)
        async with make().hold({"A"}) as held:
            assert held


async def test_a_flushed_lock_of_another_is_not_given_back_by_me(
    make: Callable[[], RedisContentionLocks], redis: Redis, prefix: str
) -> None:
    other = AsyncExitStack()
    async with make().hold({"A"}):
        await redis.delete(f"{prefix}lock:A")  # as FLUSHALL does
        assert await other.enter_async_context(make().hold({"A"}))
    assert await redis.exists(f"{prefix}lock:A")
    await other.aclose()
    assert not await redis.exists(f"{prefix}lock:A")


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """A Redis that is paused: it takes everything and says nothing."""
    writers: list[asyncio.StreamWriter] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


async def test_without_an_answer_from_redis_locks_are_skipped_for_a_while(silent: str) -> None:
    locks = RedisContentionLocks(silent, "x.")
    away, asked = counted("away"), metrics.LOCK_SECONDS._sum.get()
    for _ in range(50):
        async with locks.hold({"A"}) as held:
            assert not held
    assert counted("away") - away == 50
    assert metrics.LOCK_SECONDS._sum.get() - asked < 50 * module.ACQUIRE_SECONDS, (
        "the breaker spared most of them the wait"
    )
    await locks.close()


async def test_a_redis_that_is_gone_is_gone_without() -> None:
    locks = RedisContentionLocks("redis://127.0.0.1:1/0", "x.")
    for _ in range(3):
        async with locks.hold({"A"}) as held:
            assert not held
    await locks.close()


async def test_a_redis_that_comes_back_is_used_again(
    settings: Settings, silent: str, make: Callable[[], RedisContentionLocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BREAK_SECONDS", 0.0)
    locks = make()
    well, locks._redis.connection_pool = (
        locks._redis.connection_pool,
        Redis.from_url(silent, socket_timeout=0.05).connection_pool,
    )
    async with locks.hold({"A"}) as held:
        assert not held
    await locks._redis.connection_pool.disconnect()
    locks._redis.connection_pool = well
    async with locks.hold({"A"}) as held:
        assert held


async def test_a_redis_that_goes_while_a_lock_is_held_is_no_trouble(
    make: Callable[[], RedisContentionLocks], redis: Redis
) -> None:
    locks = make()
    async with locks.hold({"A"}) as held:
        assert held
        locks._release_script = redis.register_script("error('gone')")


async def test_a_redis_that_hangs_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    locks = RedisContentionLocks("redis://127.0.0.1:1/0", "t.")

    async def late() -> None:
        raise RedisTimeoutError

    monkeypatch.setattr(locks._redis, "aclose", late)
    await locks.close()
