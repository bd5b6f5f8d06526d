"""A worker for tests of `/livez`: its one handler works, or gets stuck, as the record that comes says.

Run as `python -m tests.stuck_worker`. Its topic is `cart.requests.v1`; a `holdfast.cart.check` of the product
    GRACE      is handled at once,
    DEAF       never returns, and does not hear that its time is over,
    ASLEEP     blocks the whole event loop,
    ABSENT     fails as if a dependency were away, again and again.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from cart_service import messages as cart
from infrastructure import logs, worker
from infrastructure.guard import Handler, Received, Transient
from infrastructure.settings import Settings


async def handle(batch: Sequence[Received[cart.Request]]) -> None:
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


async def fail(received: Received[cart.Request], error: Exception) -> None:
    """Nothing to tell anybody."""


def main() -> int:
    """Run until told to stop; a stall shows after two seconds."""
    worker.STALL_SECONDS = 2.0  # type: ignore[misc] # the point of this script: not half a minute a test
    settings = Settings()
    logs.configure("stuck", settings)
    stuck = worker.Worker(settings, "stuck", topics=[cart.REQUESTS])
    stuck.agent(Handler(cart.REQUESTS, cart.REQUEST_VOCABULARY, handle, fail))
    return asyncio.run(stuck.run())


if __name__ == "__main__":
    sys.exit(main())
