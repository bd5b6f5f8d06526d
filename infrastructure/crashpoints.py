"""Places between two effects at which a process can be made to die or freeze, to prove that it may.

`HOLDFAST_CRASHPOINT=cart.noted:3` ends the process with status 137 the third time it comes to that point, as `kill -9`
would; `cart.noted:3:pause` stops it there as SIGSTOP does, until somebody continues it. Each replica does so once: it
leaves a file in its state directory first, so that its successor lives. Without the variable, a point costs nothing.
"""

import os
import signal
from pathlib import Path
from typing import Final

VARIABLE: Final = "HOLDFAST_CRASHPOINT"
KILLED: Final = 137

POINTS: Final = {
    "edge.claimed": "an idempotency key is claimed, nothing is sent",
    "edge.sent": "a request is stored in Kafka, its sender does not know",
    "edge.answered": "an answer is known, it is not kept for its idempotency key",
    "cart.noted": "a request is pending in the table, inventory is not asked",
    "cart.placed": "orders are told of a checkout, inventory is not asked",
    "cart.asked": "inventory is asked, the request is not acknowledged",
    "cart.taken": "a decided cart is in the table, its shopper is not told",
    "cart.told": "the shopper is told, the decision is not acknowledged",
    "inventory.locked": "rows are locked and read, nothing is written",
    "inventory.written": "everything is written, nothing is committed",
    "inventory.committed": "it is committed, nobody is told",
    "inventory.told": "the outcome is stored in Kafka, the request is not acknowledged",
    "inventory.described": "products are made known, their stock is not",
    "inventory.published": "stock is made known, how far is not stored",
    "inventory.knocked": "a due cart is knocked at, nothing else is",
    "insights.written": "figures are added up, nothing is committed",
    "insights.counted": "figures are committed, the events are not acknowledged",
    "insights.learnt": "an order's products are counted, nothing is committed",
    "insights.published": "figures or a list are made known, how far is not stored",
    "notifications.written": "notices are written, nothing is committed",
    "notifications.stored": "notices are stored, their requests are not acknowledged",
    "notifications.answered": "wishes are stored and told, the requests are not acknowledged",
    "notifications.noted": "what events say is stored, the notices they are worth are not asked for",
    "notifications.asked": "a notice is asked for, the event it tells of is not acknowledged",
    "notifications.warned": "the warning of a cart's end is asked for, its row is due still",
    "notifications.handed_over": "the mail server, the provider or Kafka has a notice, its row does not say so",
    "notifications.put_aside": "a notice that failed is a dead letter, nothing is made known of it",
    "notifications.told": "what became of a notice is made known, its row is due still",
    "orders.locked": "orders are locked and read, nothing is written",
    "orders.written": "events are written, nothing is committed",
    "orders.committed": "events are committed, nobody is told or asked",
    "orders.told": "what follows is stored in Kafka, the store does not know",
    "orders.marked": "the store knows what was told, what was decided on is not acknowledged",
    "orders.claimed": "orders whose deadline has come are taken, nothing is done with them",
    "payment.stored": "what is wanted of the provider is stored, the request is not acknowledged",
    "payment.asked": "the provider has answered, its answer is not stored",
    "payment.answered": "the answer is stored, orders are not told",
    "payment.told": "the answer is stored in Kafka, payment does not know that it was told",
    "delivery.stored": "a parcel is stored, the request is not acknowledged",
    "delivery.moved": "the carrier has answered, its answer is not stored",
    "delivery.answered": "a parcel's move is stored, orders are not told",
    "delivery.told": "a move is stored in Kafka, delivery does not know that it was told",
    "guard.put_aside": "a dead letter is stored, its record is not acknowledged",
    "guard.sent_on": "a record from a wrong partition lies on its own, the first is not acknowledged",
    "migrate.applied": "a migration is done, not committed",
}
"""Every point there is; a test comes to each of them."""


class UnknownCrashPointError(ValueError):
    """`HOLDFAST_CRASHPOINT` does not name a point and a count."""


def _armed() -> tuple[str, int, bool]:
    """The point, the count and whether to pause, as the environment says; an empty name when none is armed."""
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return "", 0, False
    name, _, rest = wanted.partition(":")
    count, _, how = rest.partition(":")
    if name not in POINTS or not count.isdigit() or int(count) < 1 or how not in {"", "pause"}:
        known = ", ".join(POINTS)
        raise UnknownCrashPointError(f"{VARIABLE} is NAME:COUNT or NAME:COUNT:pause, not {wanted!r}; names: {known}")
    return name, int(count), how == "pause"


_name, _left, _pause = _armed()


def crashpoint(name: str) -> None:
    """Die or freeze here, if this is the point and the time that the environment names."""
    global _left  # noqa: PLW0603 - a countdown of the process
    if name != _name:
        return
    _left -= 1
    if _left == 0 and _first_time():
        if _pause:
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            os._exit(KILLED)


def _first_time() -> bool:
    folder = Path(os.environ.get("HOLDFAST_STATE_DIR", ".holdfast/run/solo"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / f"crashed-at-{_name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
