"""How long shoppers wait for a worker that is killed for good, and for one that is asked to end.

`python -m tests.faults.silences` does both to each of two workers of carts and of inventory, under load, and prints the
longest time in which a shopper of that worker's got no answer, in seconds. The exit status is 1 when that is more
than the target. Nothing is allowed for the machine, so it should have nothing else to do; the tests in
`tests/faults/test_faust.py` run beside others, and have bounds that show only whether it works at all.
"""

import asyncio
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.testkit.processes import Processes, Replica, processes
from tests.testkit.servers import start
from tests.testkit.topic_client import Shoppers, shoppers
from tests.testkit.worker_pairs import KILLED, MODULES, SESSION, keep_shopping_for, users_of

TARGETS: Final = {signal.SIGKILL: KILLED, signal.SIGTERM: 1.0}
"""Seconds; a dead one's place is kept for as long as its session lasts."""


def main() -> int:
    """Measure; one JSON object on standard output, and what is wrong with it on the other."""
    with tempfile.TemporaryDirectory(prefix="holdfast-silences-") as folder, start(Path(folder) / "servers") as servers:
        settings = servers.settings()
        with processes(servers, settings, Path(folder)) as shop:
            shop.seed(MUG=100_000, HOT=10)
            for kind, module in MODULES.items():
                shop.start(module, f"{kind}-1", f"{kind}-2")
            for replica in shop.replicas:
                replica.wait_ready()
            measured, wrong = asyncio.run(_measure(shop))
    print(json.dumps(measured))
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


async def _measure(shop: Processes) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Seconds by what was done and to whom, and a sentence for each that is above its target."""
    measured: dict[str, dict[str, float]] = {number.name: {} for number in TARGETS}
    wrong = []
    async with shoppers(shop.settings) as pool:
        for number, target in TARGETS.items():
            for replica in shop.replicas:
                silence = await _silence(shop, pool, replica, number)
                measured[number.name][replica.name] = round(silence, 2)
                if silence > target:
                    wrong.append(f"{number.name} to {replica.name}: {silence:.2f} s of silence, at most {target:g}")
        await pool.check()
    return measured, wrong


async def _silence(shop: Processes, pool: Shoppers, victim: Replica, number: signal.Signals) -> float:
    """Return the longest wait of a shopper of `victim`, or silence for all of them; `victim` then runs again."""
    await keep_shopping_for(2, pool)
    await pool.settled()
    kind = next(kind for kind, module in MODULES.items() if module == victim.module)
    theirs = await users_of(shop, kind, victim)
    shopping = asyncio.create_task(keep_shopping_for(SESSION + 6, pool))
    await asyncio.sleep(1)
    victim.kept = False
    victim.kill(number)
    began = time.monotonic()
    await shopping
    await pool.settled()
    silence = max(pool.silence(began, of=theirs), pool.longest_wait(began, of=theirs))
    victim.again()
    for replica in shop.replicas:
        replica.wait_ready()
    return silence


if __name__ == "__main__":
    sys.exit(main())
