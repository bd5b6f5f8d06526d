"""What every inventory process does beside its agents: knock for carts that are due, and keep the tables in shape."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from infrastructure import metrics
from infrastructure.crashpoints import crashpoint
from infrastructure.envelope import Envelope
from infrastructure.postgres import Connection
from infrastructure.topics import Topic
from inventory_service.arrays import scalars, texts
from inventory_service.messages import REQUESTS, Expire
from inventory_service.store import LOG_KEPT, QUERIES, expiry_id

LOOK_EVERY: Final = 0.5
AT_ONCE: Final = 500
KNOCK_AGAIN: Final = 5.0
"""Seconds before a process knocks again for a cart that is still due: a busy topic is not helped by more knocks."""

TRIM_EVERY: Final = 60.0
TRIM_AT_ONCE: Final = 1000
OPTIONS: Final = "-c statement_timeout=10s -c lock_timeout=2s -c enable_seqscan=off -c jit=off"

Connect = Callable[[], Awaitable[Connection]]


class Knocker:
    """Sends `expire` down the shopper's own topic; the agent expires the cart if Postgres still says that it is due.

    So it does for a cart that a request found due: the agent then tells of that end once more, and surely.
    """

    def __init__(self, connect: Connect, publish: Callable[[Topic, Sequence[Envelope]], Awaitable[None]]) -> None:
        self.connect = connect
        self.publish = publish
        self._sent: dict[tuple[str, datetime, int], float] = {}

    async def run(self) -> None:
        """Look twice a second, for as long as the connection lasts; raises when it is lost."""
        async with await self.connect() as connection:
            while True:
                await self.look(connection)
                await asyncio.sleep(LOOK_EVERY)

    async def look(self, connection: Connection) -> int:
        """Knock for those that are due now, at most `AT_ONCE`; how many knocks that were."""
        due, untold = [
            await (await connection.execute(QUERIES[name], {"limit": AT_ONCE})).fetchall()
            for name in ("due_holders", "untold_expiries")
        ]
        late = time.monotonic() - KNOCK_AGAIN
        self._sent = {cart: at for cart, at in self._sent.items() if at > late}
        fresh: list[tuple[str, datetime, int]] = [cart for cart in (*due, *untold) if cart not in self._sent]
        if fresh:
            await self.publish(REQUESTS, [knock(*cart) for cart in fresh])
            crashpoint("inventory.knocked")
            self._sent |= dict.fromkeys(fresh, time.monotonic())
            metrics.KNOCKS.inc(len(fresh))
        if told := [cart for cart in untold if cart in fresh]:
            users, ends, revisions = zip(*told, strict=True)
            await connection.execute(QUERIES["forget_untold"], [texts(users), scalars(ends), scalars(revisions)])
        return len(fresh)


def knock(user: str, due: datetime, revision: int) -> Envelope:
    """The request to expire the cart of `user` that is due at `due`."""
    id_ = expiry_id(user, due, revision)
    return Envelope(
        id=f"{user}/{id_}/expire",
        source="/inventory",
        type=Expire.TYPE,
        subject=user,
        time=due,
        requestid=id_,
        data={"user_id": user, "due": due.astimezone(UTC).isoformat()},
    )


class Housekeeper:
    """Forgets old outcomes in small batches and makes the ledger's coming months."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect

    async def run(self) -> None:
        """Tidy once a minute; raises when the connection is lost."""
        while True:
            async with await self.connect() as connection:
                await connection.execute(QUERIES["make_ledger_months"])
                while True:
                    if await trim(connection) < TRIM_AT_ONCE:
                        break
                    await asyncio.sleep(0.1)  # let others have the disk
            await asyncio.sleep(TRIM_EVERY)


async def trim(connection: Connection) -> int:
    """Take at most `TRIM_AT_ONCE` outcomes that are older than `LOG_KEPT` out of the log; how many those were."""
    done = await connection.execute(QUERIES["trim_log"], {"keep": LOG_KEPT, "limit": TRIM_AT_ONCE})
    metrics.TRIMMED.inc(done.rowcount)
    return done.rowcount
