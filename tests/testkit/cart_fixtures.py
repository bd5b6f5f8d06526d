"""A cart line with its price, and a table in memory, for the tests of carts."""

from datetime import UTC, datetime

from contracts import inventory

NOW = datetime(2026, 11, 21, tzinfo=UTC)
GBP = inventory.Money(amount=255, currency="GBP")
LINE = inventory.Line(product="TEAPOT", quantity=2, price=GBP)
TOTAL = inventory.Money(amount=510, currency="GBP")


class MemoryTable:
    """A table in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.kept[key] = value

    def items(self) -> list[tuple[bytes, bytes]]:
        return list(self.kept.items())
