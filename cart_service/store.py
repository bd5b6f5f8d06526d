"""Storage of carts: the Faust table, with one small JSON value per user. Tests use a plain dictionary."""

import logging
from collections.abc import Iterator
from typing import Protocol

from pydantic import ValidationError

from cart_service.model import Cart

log = logging.getLogger(__name__)

_EMPTY = Cart()
_NO_PENDING = b'"pending":[]'


class Table(Protocol):
    """Bytes by key, implemented by `PartitionedTable` of `infrastructure.messaging`, and by a dictionary in tests."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value that was set last, or `None`."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of `key`."""

    def items(self) -> list[tuple[bytes, bytes]]:
        """Return all entries of the partitions that are assigned to this worker."""


class CartStore:
    """Carts by user, with buffered writes: ten changes of a cart before `flush` cost one write to the table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._unwritten: dict[str, Cart] = {}

    def get(self, user_id: str) -> Cart:
        """Return the cart of a user; an empty cart if the user has none."""
        if (cart := self._unwritten.get(user_id)) is not None:
            return cart
        value = self.table.get(user_id.encode())
        return _EMPTY if value is None else decode_cart(user_id, value)

    def put(self, user_id: str, before: Cart, after: Cart) -> None:
        """Buffer `after` as the cart of a user until the next `flush`, unless it is the same object as `before`."""
        if after is not before:
            self._unwritten[user_id] = after

    def flush(self) -> None:
        """Write all buffered carts to the table."""
        while self._unwritten:  # one by one, so that a failed write loses nothing
            user_id, cart = next(iter(self._unwritten.items()))
            try:
                value = cart.model_dump_json().encode()
            except (ValueError, OverflowError) as error:
                # The table is a copy: the next decision of inventory restores the cart. The other carts are written.
                log.error("the cart of user %s cannot be written: %s", user_id, error)  # noqa: TRY400
            else:
                self.table.put(user_id.encode(), value)
            del self._unwritten[user_id]

    def pending_requests(self) -> Iterator[tuple[str, str]]:
        """Yield every pending request as (user id, request id)."""
        self.flush()
        for key, value in self.table.items():
            if not value.endswith(_NO_PENDING + b"}"):  # skip parsing the many carts without pending requests
                user_id = key.decode(errors="replace")
                for request in decode_cart(user_id, value).pending:
                    yield user_id, request.id


def decode_cart(user_id: str, value: bytes) -> Cart:
    """Decode a cart from a value of the table; return an empty cart if the value is invalid.

    An empty cart is safe here: the table is a copy, and the next decision of inventory for this user restores all of
    it.
    """
    try:
        return Cart.model_validate_json(value)
    except ValidationError as error:
        log.warning(
            "the stored cart of user %s is invalid and is treated as empty: %s", user_id, error.errors()[0]["msg"]
        )
        return _EMPTY
