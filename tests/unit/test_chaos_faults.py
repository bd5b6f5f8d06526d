"""A fault has happened only when it was seen to: its victim was there, its signal came, its effect was felt."""

import asyncio
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import psutil
import pytest

from load.chaos.clients.payment_provider import PaymentProviderClient
from load.chaos.faults import nemesis, payments, processes
from load.chaos.faults.nemesis import FAULTS
from load.chaos.shop_under_test import ShopUnderTest
from load.http_client import ShopUnavailableError

# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def stage_of(folder: Path, monkeypatch: pytest.MonkeyPatch, state: str, pid: int) -> ShopUnderTest:
    stage = ShopUnderTest(folder)
    monkeypatch.setattr(stage, "services", lambda: {"cart-1": {"state": state, "pid": pid}})
    return stage


def test_only_live_processes_can_be_hit(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(tmp_path, monkeypatch, "ready", sleeper.pid)
    stopped = stage.signal("cart-1", signal.SIGSTOP)
    assert stopped is not None
    assert stage.signal("cart-1", signal.SIGCONT) == stopped
    assert stage.signal("cart-1", signal.SIGKILL) == stopped
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert stage.signal("cart-1", signal.SIGKILL) is None  # nobody has buried it yet
    assert stage.signal("cart-2", signal.SIGKILL) is None
    assert stage_of(tmp_path, monkeypatch, "restarting", 0).signal("cart-1", signal.SIGKILL) is None


@pytest.mark.parametrize(
    ("state", "pid", "replaced"), [("ready", 8, True), ("ready", 7, False), ("restarting", 8, False)]
)
async def test_a_process_that_is_not_replaced_is_reported(
    state: str, pid: int, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, old = stage_of(tmp_path, monkeypatch, state, pid), SimpleNamespace(pid=7)
    assert await stage.wait_until_replaced("cart-1", old, patience=0.01) is replaced  # type: ignore[arg-type]


class FakeShop:
    """The part of a shop under test that signals processes; the first signal finds the first of `there`, and so on."""

    def __init__(self, *there: str | None, back: bool = True) -> None:
        self.there = list(there)
        self.back = back

    def signal(self, *_: Any) -> str | None:
        return self.there.pop(0)

    async def wait_until_replaced(self, *_: Any) -> bool:
        return self.back

    def workers_of(self, kind: str) -> list[str]:
        return [f"{kind}-1"] if kind in {"cart", "edge"} else []

    @asynccontextmanager
    async def supervisor_frozen(self) -> AsyncIterator[None]:
        yield


def scene(stage: Any, **more: Any) -> Any:
    return SimpleNamespace(shop=stage, **more)


AIM = {"victim": "cart-1"}


@pytest.mark.parametrize("fault", ["kill-cart", "term-cart", "kill-redis", "kill-each"])
async def test_a_kill_needs_somebody_to_be_killed(fault: str) -> None:
    assert await FAULTS[fault].act(scene(FakeShop("it")), AIM) == {"hit": True}
    assert await FAULTS[fault].act(scene(FakeShop(None)), AIM) == {"hit": False}
    did = await FAULTS[fault].act(scene(FakeShop("it", back=False)), AIM)
    assert did == {"hit": True, "missing": ["cart-1"]}
    assert all(did.values())  # it was killed all the same, and is not killed again for being away


@pytest.mark.parametrize(
    ("there", "hit"), [(("it", "it"), True), ((None, "it"), False), (("it", None), False), (("it", "another"), False)]
)
async def test_a_zombie_was_stopped_and_went_on(there: tuple[str | None, ...], hit: bool) -> None:
    freeze = processes.freeze_fault("cart", 0.0, "for no time", zombies=True)
    assert await freeze.act(scene(FakeShop(*there)), AIM) == {"hit": hit}


async def test_a_rolling_restart_names_the_restarted_processes() -> None:
    act = FAULTS["rolling-restart"].act
    assert await act(scene(FakeShop("it", None)), {}) == {"restarted": ["edge-1"]}
    assert await act(scene(FakeShop(None, None)), {}) == {"restarted": []}
    assert (await act(scene(FakeShop("it", "it", back=False)), {}))["missing"] == ["edge-1", "cart-1"]


# ---- servers, lines, the provider -----------------------------------------------------------------------------------


class FakeRedis:
    """A Redis that does, or does not, execute its commands."""

    def __init__(self, *, obeys: bool) -> None:
        self.obeys = obeys
        self.kept: dict[str, str] = {}
        self.paused = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def set(self, key: str, value: str, **_: Any) -> None:
        self.kept[key] = value

    async def get(self, key: str) -> str | None:
        return self.kept.get(key)

    async def flushall(self) -> bool:
        if self.obeys:
            self.kept.clear()
        return True

    async def client_pause(self, _: int) -> bool:
        self.paused = self.obeys
        return True

    async def ping(self) -> bool:
        await asyncio.sleep(60 if self.paused else 0)
        return True


@pytest.mark.parametrize(("fault", "fact"), [("flush-redis", "flushed"), ("pause-redis", "silent")])
async def test_commands_to_redis_are_observed(fault: str, fact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nemesis, "SHORT_SECONDS", 0.1)
    for obeys in (True, False):
        memory = FakeRedis(obeys=obeys)
        did = await FAULTS[fault].act(scene(SimpleNamespace(redis=lambda memory=memory: memory)), {})
        assert set(did) == {fact}
        assert bool(did[fact]) is obeys


async def test_a_closed_connection_cannot_be_cut() -> None:
    async def hasty(_: Any) -> None:
        pass

    people = [
        SimpleNamespace(user=user, abort=lambda user=user: user == "ann", send_and_abort=hasty)
        for user in ("ann", "bob")
    ]
    where = scene(None, clients=people, products=[], sample_clients=lambda _: people[:1])
    assert await FAULTS["cut-clients"].act(where, {"cut": ["ann", "bob"]}) == {"were open": 1, "hasty": 1}
    assert not all((await FAULTS["cut-clients"].act(where, {"cut": ["bob"]})).values())


@pytest.mark.parametrize(
    ("how", "feels", "felt"),
    [
        ({"down": True}, (True, 0.0), True),
        ({"down": True}, (False, 0.0), False),
        ({"slow": 2.5}, (False, 2.6), True),
        ({"slow": 2.5}, (True, 0.0), False),
        ({"fail": 30}, (True, 0.0), True),
    ],
)
async def test_how_the_provider_is_today_is_felt(how: dict[str, Any], feels: tuple[bool, float], felt: bool) -> None:
    told: list[dict[str, Any]] = []

    async def control(**how: Any) -> None:
        told.append(how)

    async def refuses() -> tuple[bool, float]:
        return feels

    provider = SimpleNamespace(control=control, probe_refusal=refuses)
    did = await payments._provider(how, 0.0, "").act(scene(SimpleNamespace(provider=provider)), {})
    assert did == {"felt": felt}
    assert told == [how, {}]  # it is as usual again


async def test_an_absent_provider_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = PaymentProviderClient("http://127.0.0.1:1", "key", "secret")
    with pytest.raises(aiohttp.ClientConnectorError):
        await provider.probe_refusal()

    async def broken(*_: Any) -> dict[str, Any]:
        raise ShopUnavailableError("the provider answers 500")

    monkeypatch.setattr(provider, "_request", broken)
    assert (await provider.probe_refusal())[0]


async def test_a_provider_that_has_decided_nothing_yet_has_nothing_to_tell() -> None:
    async def history() -> list[dict[str, Any]]:
        return []

    stage = SimpleNamespace(provider=SimpleNamespace(history=history), webhook_url="")
    assert await FAULTS["webhooks"].act(scene(stage, clients=[], chance=random.Random(1)), {}) == {"told": 0}
