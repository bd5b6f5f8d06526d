"""The expiry scanner: finds carts that are due and sends an expiry request for each."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from contracts.envelope import Envelope
from contracts.inventory import REQUESTS, Expire
from contracts.topics import Topic
from infrastructure.observability import metrics
from infrastructure.process.failpoints import failpoint
from infrastructure.storage.postgres import Connection
from inventory_service.pg_arrays import array_literals
from inventory_service.store import QUERIES, expiry_id

log = logging.getLogger(__name__)

SCAN_SECONDS: Final = 0.5
SCAN_LIMIT: Final = 500
"""Carts found by one query of one scan."""
RESEND_SECONDS: Final = 5.0
"""Delay before a process sends another request for a cart that is still due: more requests do not help a busy topic."""


class ExpiryScanner:
    """Scanner that sends `expire` requests; the agent expires a cart only if Postgres still says that it is due.

    The requests go to the shopper's own partition, in order with the shopper's other requests. A cart whose expiry was
    found by another request gets an `expire` request as well: its handler publishes the outcome again, in case the
    worker that decided the expiry crashed before it published anything.

    `connect` returns a connection with `store.BACKGROUND_OPTIONS`; `publish` returns after the acknowledgements.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        publish: Callable[[Topic, Sequence[Envelope]], Awaitable[None]],
    ) -> None:
        self.connect = connect
        self.publish = publish
        self._sent: dict[tuple[str, datetime, int], float] = {}

    async def run(self) -> None:
        """Scan twice per second until cancelled; raises when the connection is lost."""
        async with await self.connect() as connection:
            while True:
                await self.scan(connection)
                await asyncio.sleep(SCAN_SECONDS)

    async def scan(self, connection: Connection) -> int:
        """Send a request for each cart that is due or undelivered, and return the number of requests."""
        due, undelivered = [
            await (await connection.execute(QUERIES[name], {"limit": SCAN_LIMIT})).fetchall()
            for name in ("due_holders", "undelivered_expiries")
        ]
        resend_before = time.monotonic() - RESEND_SECONDS
        self._sent = {cart: at for cart, at in self._sent.items() if at > resend_before}
        unsent: list[tuple[str, datetime, int]] = [cart for cart in (*due, *undelivered) if cart not in self._sent]
        if unsent:
            await self.publish(REQUESTS, [request for cart in unsent if (request := _expire_request(cart))])
            failpoint("inventory.knocked")
            self._sent |= dict.fromkeys(unsent, time.monotonic())
            metrics.EXPIRY_REQUESTS.inc(len(unsent))
        if delivered := [cart for cart in undelivered if cart in unsent]:
            values = array_literals(zip(*delivered, strict=True))
            await connection.execute(QUERIES["delete_undelivered_expiries"], values)
        return len(unsent)


def _expire_request(cart: tuple[str, datetime, int]) -> Envelope | None:
    """Return the request for a cart; `None`, with an entry in the log, for one that no request can be built for."""
    try:
        return expire_request(*cart)
    except (ValueError, OverflowError) as error:
        log.error("the cart of user %s cannot expire: %s", cart[0], error)  # noqa: TRY400 - the reason says it all
        return None


def expire_request(user: str, due: datetime, revision: int) -> Envelope:
    """Build the request to expire the cart of `user` that was due at `due`, at `revision`."""
    id_ = expiry_id(user, due, revision)
    return Envelope.of(
        Expire,
        source="/inventory",
        subject=user,
        request_id=id_,
        time=due,
        data={"user_id": user, "due": due.astimezone(UTC).isoformat()},
    )
