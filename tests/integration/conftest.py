"""Fixtures of the tests of one service: an edge with its default settings, shared by the files that need no other."""

import secrets
from collections.abc import Iterator

import pytest

from tests.testkit.edge import Running, running_edge
from tests.testkit.servers import Servers


@pytest.fixture(scope="session")
def edge(servers: Servers) -> Iterator[Running]:
    """An edge with its default settings; each test keeps to users and products of its own."""
    with running_edge(servers, f"e{secrets.token_hex(3)}.") as running:
        yield running
