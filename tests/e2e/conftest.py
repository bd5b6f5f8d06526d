"""A whole shop for the tests of this folder; each keeps to shoppers and products of its own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testkit.shop import Shop

SERVICES = "edge,cart,inventory,orders,payment,delivery,provider"


@pytest.fixture(scope="package")
def shop() -> Iterator[Shop]:
    """A shop as `holdfast up` makes it, two workers for the main job; notices and figures have tests of their own."""
    with tempfile.TemporaryDirectory(prefix="holdfast-shop-") as folder:
        running = Shop(Path(folder) / "root")
        running.up("--workers", "cart=2,inventory=2", "--only", SERVICES)
        try:
            yield running
        finally:
            running.down()
