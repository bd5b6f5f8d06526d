"""Failpoints: places between two effects where a test can make a process crash or freeze.

`HOLDFAST_CRASHPOINT=cart.noted:3` ends the process with status 137 when it reaches that failpoint for the third time,
like `kill -9`. `cart.noted:3:pause` stops it there, like SIGSTOP, until it gets SIGCONT. Each replica does so once: it
writes a file to its state directory first, so that its successor goes on. Without the variable a failpoint only looks
up its name.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from infrastructure.process.private_files import create_private_directory

VARIABLE: Final = "HOLDFAST_CRASHPOINT"
EXIT_KILLED: Final = 137

FAILPOINTS: Final = {
    "accounts.written": "an account, a session or a mail is written, nothing is committed",
    "accounts.committed": "the change is committed, nobody is answered and nothing is published",
    "accounts.published": "events and mails of accounts are stored in Kafka, the outbox does not know",
    "edge.claimed": "an idempotency key is claimed, the request is not sent",
    "edge.sent": "a request is stored in Kafka, its sender does not know",
    "edge.answered": "the response is known, it is not stored under its idempotency key",
    "cart.noted": "a request is pending in the table, it is not sent to inventory",
    "cart.placed": "a checkout is published to orders, it is not sent to inventory",
    "cart.asked": "the request is sent to inventory, it is not acknowledged",
    "cart.taken": "a decided cart is in the table, the outcome is not published",
    "cart.told": "the outcome is published, the decision is not acknowledged",
    "inventory.locked": "rows are locked and read, nothing is written",
    "inventory.written": "all writes are handed to the connection, nothing is committed",
    "inventory.committed": "the decision is committed, the outcome is not published",
    "inventory.told": "the outcome is stored in Kafka, the request is not acknowledged",
    "inventory.described": "products are published, their stock is not",
    "inventory.published": "stock is published, the position is not stored",
    "inventory.knocked": "the expiry request of a due cart is sent, nothing else is done",
    "insights.written": "figures are added up, nothing is committed",
    "insights.counted": "figures are committed, the events are not acknowledged",
    "insights.learnt": "the products of an order are counted, nothing is committed",
    "insights.published": "figures or a list are published, the position is not stored",
    "notifications.written": "notices are written, nothing is committed",
    "notifications.stored": "notices are stored, their requests are not acknowledged",
    "notifications.answered": "preferences are stored and published, the requests are not acknowledged",
    "notifications.noted": "the content of events is stored, the notices that follow are not requested",
    "notifications.asked": "a notice is requested, the event that it is about is not acknowledged",
    "notifications.warned": "the warning before a cart expires is requested, its row is still due",
    "notifications.handed_over": "the mail server, the provider or Kafka has a notice, its row does not say so",
    "notifications.put_aside": "a notice that failed is dead-lettered, its outcome is not published",
    "notifications.told": "the outcome of a notice is published, its row is still due",
    "orders.locked": "orders are locked and read, nothing is written",
    "orders.written": "events are written, nothing is committed",
    "orders.committed": "events are committed, nothing is published",
    "orders.told": "all messages that follow are stored in Kafka, the store does not know",
    "orders.marked": "the store knows what was published, the records that were processed are not acknowledged",
    "orders.claimed": "overdue orders are leased, nothing is done with them",
    "payment.stored": "the operation for the provider is stored, the request is not acknowledged",
    "payment.asked": "the provider has responded, the response is not stored",
    "payment.answered": "the response is stored, it is not published to orders",
    "payment.told": "the result is stored in Kafka, payment does not know that it was published",
    "delivery.stored": "a parcel is stored, the request is not acknowledged",
    "delivery.moved": "the carrier has responded, the response is not stored",
    "delivery.answered": "a move of a parcel is stored, it is not published to orders",
    "delivery.told": "the move is stored in Kafka, delivery does not know that it was published",
    "guard.put_aside": "a dead letter is stored, its record is neither acknowledged nor, if it failed, decided",
    "guard.sent_on": "a record from a wrong partition is sent to its own, the original is not acknowledged",
    "migrate.applied": "a migration is applied, it is not committed",
}
"""All failpoints, by name: what has been done there, and what has not. A test reaches each of them."""


class UnknownFailpointError(ValueError):
    """`HOLDFAST_CRASHPOINT` does not consist of the name of a failpoint and a count."""


def _armed() -> tuple[str, int, bool]:
    """Return the failpoint, the count and whether to pause, from the environment; an empty name if there is none."""
    value = os.environ.get(VARIABLE, "")
    if not value:
        return "", 0, False
    name, _, rest = value.partition(":")
    count, _, how = rest.partition(":")
    if name not in FAILPOINTS or not count.isdigit() or int(count) < 1 or how not in {"", "pause"}:
        known = ", ".join(FAILPOINTS)
        raise UnknownFailpointError(f"{VARIABLE}={value!r}: expected NAME:COUNT or NAME:COUNT:pause; names: {known}")
    return name, int(count), how == "pause"


_name, _left, _pause = _armed()


def _crash_or_freeze(name: str) -> None:
    """Crash or freeze here if the environment names this failpoint and this is the time to do so."""
    global _left  # noqa: PLW0603 - one countdown per process
    if name != _name:
        return
    _left -= 1
    if _left == 0 and _first_time():
        if _pause:
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            os._exit(EXIT_KILLED)


failpoint: Callable[[str], object] = _crash_or_freeze if _name else FAILPOINTS.__getitem__
"""Marks the failpoint of this name. Unless the environment arms one, the name is only looked up, so it must exist."""


def _first_time() -> bool:
    """Return whether this replica has not crashed here before, and record that it does now."""
    folder = Path(os.environ.get("HOLDFAST_STATE_DIR", ".holdfast/run/solo"))
    create_private_directory(folder)
    try:
        (folder / f"crashed-at-{_name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
