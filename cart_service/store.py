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
    """Carts by user."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def get(self, user_id: str) -> Cart:
        """The cart of a shopper; an empty one for who has none."""
        value = self.table.get(user_id.encode())
        return _EMPTY if value is None else Cart.model_validate_json(value)

    def put(self, user_id: str, before: Cart, after: Cart) -> None:
        """Keep `after`, unless nothing changed."""
        if after is not before:
            self.table.put(user_id.encode(), after.model_dump_json().encode())

    def pending(self) -> Iterator[tuple[str, str]]:
        """Every pending request as (user, id)."""
        for key, value in self.table.items():
            if not value.endswith(_NOTHING_PENDING + b"}"):  # most have none: do not parse a million carts for it
                for request in Cart.model_validate_json(value).pending:
                    yield key.decode(), request.id
