"""Faults of processes: killed, terminated, frozen, replaced, duplicated, with a wrong clock."""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from infrastructure.local.supervision.services import SERVICE_TYPES
from infrastructure.process.failpoints import EXIT_KILLED, FAILPOINTS
from load.chaos.faults.context import Effect, Fault, FaultContext
from load.chaos.shop_under_test import choose

FROZEN_SECONDS: Final = 11.5
"""Longer than a consumer session: the partitions move to another worker, and then the frozen one resumes as a zombie.
"""
SHORT_SECONDS: Final = 3.0
SKEW_SECONDS: Final = 300
ORDER_PATH_SERVICES: Final = ("edge", "cart", "inventory", "orders", "payment", "delivery", "provider")
"""Services that an order needs; the others are hit by `kill-each`, `freeze-each` and `rolling-restart`."""
SAGA_SERVICES: Final = ("cart", "inventory", "orders", "payment")
"""Services in which a zombie or an extra worker could do harm."""


def choose_one(kind: str) -> Callable[[FaultContext], Effect]:
    """Return a target function that chooses one process of a kind at random."""
    return lambda context: {"victim": choose(context.shop.workers_of(kind), context.chance)}


def signal_fault(kind: str, number: signal.Signals, about: str) -> Fault:
    """Return a fault that sends a terminating signal to one process of a kind; the supervisor restarts it."""

    async def act(context: FaultContext, aim: Mapping[str, Any]) -> Effect:
        return await _signal_and_wait(context, aim["victim"], number)

    return Fault(about, act, choose_one(kind), ("restarts",))


async def _signal_and_wait(context: FaultContext, victim: str, number: signal.Signals) -> Effect:
    """Signal a process and wait for its successor. The effect has whether it was hit and whether it is missing."""
    old = context.shop.signal(victim, number)
    back = await context.shop.wait_until_replaced(victim, old)
    return {"hit": old is not None, **_missing([] if back else [victim])}


def _missing(names: Sequence[str]) -> Effect:
    """Return the processes that did not return; the checker excuses those that another fault may have kept."""
    return {"missing": list(names)} if names else {}


def freeze_fault(kind: str, seconds: float, about: str, *, zombies: bool = False) -> Fault:
    """Return a fault that stops one process of a kind for a time and then resumes it."""

    async def act(context: FaultContext, aim: Mapping[str, Any]) -> Effect:
        return await _freeze_and_resume(context, aim["victim"], seconds)

    return Fault(about, act, choose_one(kind), makes_zombies=zombies)


async def _freeze_and_resume(context: FaultContext, victim: str, seconds: float) -> Effect:
    """Stop a process for a time and resume it."""
    async with context.shop.supervisor_frozen():
        stopped = context.shop.signal(victim, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            resumed = context.shop.signal(victim, signal.SIGCONT)
    back = await context.shop.wait_until_replaced(victim, None)
    return {"hit": stopped is not None and stopped == resumed, **_missing([] if back else [victim])}


def _next_in_turn(context: FaultContext) -> Effect:
    return {"victim": context.next_process()}


async def _kill_next(context: FaultContext, aim: Mapping[str, Any]) -> Effect:
    return await _signal_and_wait(context, aim["victim"], signal.SIGKILL)


async def _freeze_next(context: FaultContext, aim: Mapping[str, Any]) -> Effect:
    return await _freeze_and_resume(context, aim["victim"], SHORT_SECONDS)


async def _rolling_restart(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    async def one_by_one(names: Sequence[str]) -> list[Effect]:
        return [await _signal_and_wait(context, name, signal.SIGTERM) for name in names]

    kinds = [context.shop.workers_of(kind.name) for kind in SERVICE_TYPES]
    each = {
        name: effect
        for names, done in zip(kinds, await asyncio.gather(*map(one_by_one, kinds)), strict=True)
        for name, effect in zip(names, done, strict=True)
    }
    missing = [name for name, effect in each.items() if "missing" in effect]
    return {"restarted": [name for name, effect in each.items() if effect["hit"]], **_missing(missing)}


async def _rebalance_storm(context: FaultContext, _: Mapping[str, Any]) -> Effect:
    joined = {}
    for kind in SAGA_SERVICES:
        worker = context.shop.extra_worker(kind, number=8)
        worker.start()
        try:
            joined[f"{kind} joined"] = await worker.wait_until_ready()
            await asyncio.sleep(2)
        finally:
            await worker.stop(signal.SIGKILL)
    return joined


async def _clock_skew(context: FaultContext, aim: Mapping[str, Any]) -> Effect:
    worker = context.shop.extra_worker(aim["kind"], number=7, HOLDFAST_CLOCK_SKEW_SECONDS=str(aim["seconds"]))
    worker.start()
    try:
        ready = await worker.wait_until_ready()
        await asyncio.sleep(4)
    finally:
        await worker.stop(signal.SIGTERM)
    return {"ready": ready}


def _aim_skew(context: FaultContext) -> Effect:
    return {
        "kind": context.chance.choice(SAGA_SERVICES),
        "seconds": context.chance.choice((-SKEW_SECONDS, SKEW_SECONDS)),
    }


async def _crash(context: FaultContext, aim: Mapping[str, Any]) -> Effect:
    """Start a worker that exits at a failpoint, and a successor that recovers from the state it left."""
    kind = aim["point"].partition(".")[0]
    first = context.shop.extra_worker(kind, number=6, HOLDFAST_CRASHPOINT=f"{aim['point']}:{aim['count']}")
    first.start()
    await first.wait_until_ready()
    status = await first.wait_for_exit(6)
    if status != EXIT_KILLED:
        await first.stop(signal.SIGTERM)
        return {"crashed": False}
    second = context.shop.extra_worker(kind, number=6)
    second.start()
    followed = await second.wait_until_ready()
    await second.stop(signal.SIGTERM)
    return {"crashed": True, "followed": followed}


def _aim_crash(context: FaultContext) -> Effect:
    points = [name for name in FAILPOINTS if name.partition(".")[0] in (*SAGA_SERVICES, "delivery")]
    return {"point": choose(points, context.chance), "count": context.chance.randint(1, 5)}


FAULTS: Final[Mapping[str, Fault]] = {
    **{
        f"kill-{kind}": signal_fault(kind, signal.SIGKILL, f"SIGKILL to one process of {kind}")
        for kind in ORDER_PATH_SERVICES
    },
    **{
        f"term-{kind}": signal_fault(kind, signal.SIGTERM, f"SIGTERM to one process of {kind}")
        for kind in ("edge", *SAGA_SERVICES)
    },
    **{
        f"freeze-{kind}": freeze_fault(
            kind, FROZEN_SECONDS, "SIGSTOP until after the consumer session's end, then SIGCONT", zombies=True
        )
        for kind in SAGA_SERVICES
    },
    "kill-each": Fault("SIGKILL to every process and server in turn", _kill_next, _next_in_turn, ("restarts",)),
    "freeze-each": Fault("every process and server in turn frozen for 3 s", _freeze_next, _next_in_turn),
    "crash": Fault(
        "a worker that crashes at a failpoint between two effects, and its successor",
        _crash,
        _aim_crash,
        mean_pause=1.0,
    ),
    "rolling-restart": Fault(
        "SIGTERM to all processes, one of each kind at a time", _rolling_restart, required_events=("restarts",)
    ),
    "rebalance-storm": Fault(
        "an extra worker of cart, inventory, orders and payment in turn, each killed after 5 s",
        _rebalance_storm,
        mean_pause=0.5,
    ),
    "clock-skew": Fault("an extra worker of one of these, with its clock five minutes off", _clock_skew, _aim_skew),
}
