"""Where carts are kept: the Faust table, one small JSON value a shopper; in tests a plain dictionary."""

import logging
from collections.abc import Iterator
from typing import Protocol

from pydantic import ValidationError

from cart_service.model import Cart

log = logging.getLogger(__name__)

_EMPTY = Cart()
_NOTHING_PENDING = b'"pending":[]'


class Table(Protocol):
    """Bytes by key, as `infrastructure.faust_app.PartitionedTable` and a test's dictionary hold them."""

    def get(self, key: bytes) -> bytes | None:
        """The value last set; none when there is none."""

    def put(self, key: bytes, value: bytes) -> None:
        """Keep `value`."""

    def items(self) -> list[tuple[bytes, bytes]]:
        """All that is this worker's."""


class Carts:
    """Carts by user. What was put is in the table at the next `write`: ten changes of a cart are written once."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._unwritten: dict[str, Cart] = {}

    def get(self, user_id: str) -> Cart:
        """The cart of a shopper; an empty one for who has none."""
        if (cart := self._unwritten.get(user_id)) is not None:
            return cart
        value = self.table.get(user_id.encode())
        return _EMPTY if value is None else read(user_id, value)

    def put(self, user_id: str, before: Cart, after: Cart) -> None:
        """Keep `after`, unless nothing changed."""
        if after is not before:
            self._unwritten[user_id] = after

    def write(self) -> None:
        """Put into the table what is not there yet."""
        while self._unwritten:  # one by one: what the table does not take is not forgotten
            user_id, cart = next(iter(self._unwritten.items()))
            self.table.put(user_id.encode(), cart.model_dump_json().encode())
            del self._unwritten[user_id]

    def pending(self) -> Iterator[tuple[str, str]]:
        """Every pending request as (user, id)."""
        self.write()
        for key, value in self.table.items():
            if not value.endswith(_NOTHING_PENDING + b"}"):  # most have none: do not parse a million carts for it
                user_id = key.decode(errors="replace")
                for request in read(user_id, value).pending:
                    yield user_id, request.id


def read(user_id: str, value: bytes) -> Cart:
    """The cart in a value of the table; an empty one when it can't be read.

    It is a copy, and the next decision that inventory tells of this shopper brings the whole of it back.
    """
    try:
        return Cart.model_validate_json(value)
    except ValidationError as error:
        log.warning("the kept cart of %s can't be read and is taken as empty: %s", user_id, error.errors()[0]["msg"])
        return _EMPTY
