"""A worker for tests of `/livez`: it works, or gets stuck, as its record says, or in a layer below.

Run as `python -m tests.testkit.stuck_worker`. Its topic is `cart.requests.v1`; a `holdfast.cart.check` of the product
    GRACE      is handled at once,
    DEAF       never returns, and does not hear that its time is over,
    ASLEEP     blocks the whole event loop,
    ABSENT     fails as if a dependency were away, again and again.
`STUCK_IN` names a fault of its first life in a state directory, which its successor does not have:
    recovery   its table waits for a record that never comes,
    reading    it has partitions, and asks nobody for their records,
    fetcher    its fetcher has crashed, and nothing reports it,
    partition  of one partition, that of `user-0`, nothing gets to it.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from faust.tables.recovery import Recovery

from contracts import cart
from infrastructure.messaging import liveness, worker
from infrastructure.messaging.batch_processor import Handler, ReceivedMessage, Transient
from infrastructure.messaging.faust import driver
from infrastructure.messaging.faust.driver import LoopConsumer, LoopConsumerThread
from infrastructure.observability import logs
from infrastructure.process.settings import Settings
from tests.testkit.servers import partition


async def handle(batch: Sequence[ReceivedMessage[cart.Request]]) -> None:
    """Do as the record says."""
    for received in batch:
        match getattr(received.message, "product", ""):
            case "DEAF":
                while True:
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(3600)
            case "ASLEEP":
                time.sleep(3600)  # noqa: ASYNC251 - that is the fault
            case "ABSENT":
                raise Transient("away")


async def fail(received: ReceivedMessage[cart.Request], error: Exception) -> None:
    """Do nothing: there is no permanent failure to report."""


def _wait_for_a_record_that_never_comes() -> None:
    setattr(Recovery, "need_recovery", lambda _: True)  # noqa: B010 - a planted bug, and seen as one


def _never_ask() -> None:
    async def nothing(*_: Any) -> None:
        await asyncio.sleep(3600)

    LoopConsumerThread._pace_fetches = lambda *_: nothing  # type: ignore[method-assign]  # a planted bug


def _kill_the_fetcher() -> None:
    async def nothing(*_: Any) -> None:
        raise MemoryError("planted")

    LoopConsumerThread._pace_fetches = lambda *_: nothing  # type: ignore[method-assign]  # a planted bug


def _lose_one_partition() -> None:
    take_over = LoopConsumer._pass_on

    async def lossy(self: LoopConsumer, place: Any, message: Any) -> None:
        if place.partition != partition(b"user-0"):
            await take_over(self, place, message)

    LoopConsumer._pass_on = lossy  # type: ignore[method-assign]  # a planted bug


FAULTS: Final[Mapping[str, Callable[[], None]]] = {
    "recovery": _wait_for_a_record_that_never_comes,
    "reading": _never_ask,
    "fetcher": _kill_the_fetcher,
    "partition": _lose_one_partition,
}


def main() -> int:
    """Run until stopped; a stall shows after two seconds."""
    liveness.STALL_SECONDS = 2.0  # type: ignore[misc] # the point of this script: not half a minute a test
    driver.IDLE_FETCH_MAX_WAIT_MS = 500  # type: ignore[misc] # as much shorter than a stall as in a service
    settings = Settings()
    logs.configure("stuck", settings)
    fault, lived = os.environ.get("STUCK_IN"), Path(settings.state_dir) / "lived"
    if fault and not lived.exists():
        lived.touch()
        FAULTS[fault]()
    stuck = worker.Worker(settings, "stuck", topics=[cart.REQUESTS])
    stuck.create_table("carts")
    stuck.add_agent(Handler(cart.REQUESTS, cart.REQUEST_REGISTRY, handle, fail))
    return asyncio.run(stuck.run())


if __name__ == "__main__":
    sys.exit(main())
