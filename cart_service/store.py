"""Where carts are kept: the Faust table, one small JSON value a shopper; in tests a plain dictionary."""

from collections.abc import Iterator
from typing import Protocol

from cart_service.model import Cart

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
        return _EMPTY if value is None else Cart.model_validate_json(value)

    def put(self, user_id: str, before: Cart, after: Cart) -> None:
        """Keep `after`, unless nothing changed."""
        if after is not before:
            self._unwritten[user_id] = after

    def write(self) -> None:
        """Put into the table what is not there yet."""
        unwritten, self._unwritten = self._unwritten, {}
        for user_id, cart in unwritten.items():
            self.table.put(user_id.encode(), cart.model_dump_json().encode())

    def pending(self) -> Iterator[tuple[str, str]]:
        """Every pending request as (user, id)."""
        self.write()
        for key, value in self.table.items():
            if not value.endswith(_NOTHING_PENDING + b"}"):  # most have none: do not parse a million carts for it
                for request in Cart.model_validate_json(value).pending:
                    yield key.decode(), request.id
