"""Fixtures that every suite shares: real servers.

They are started once a run, on ports and in directories of their own, and are gone afterwards; a test keeps to a
prefix.
A skipped test fails the run: what is not run proves nothing.
"""

import os
import secrets
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from infrastructure.process.settings import Settings
from tests.testkit.servers import PARTITIONS, Servers, start
from tests.testkit.shop import Shop


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Kafka, PostgreSQL and Redis, without a shop."""
    with tempfile.TemporaryDirectory(prefix="holdfast-servers-") as folder, start(Path(folder)) as running:
        yield running


@pytest.fixture
def prefix() -> str:
    """A prefix for the topics, schemas and keys of one test."""
    return f"t{secrets.token_hex(3)}."


@pytest.fixture
def settings(servers: Servers, prefix: str, tmp_path: Path) -> Settings:
    """Shared settings of a service in one test's own shop."""
    return servers.settings(prefix, state_dir=str(tmp_path))


OWN_SETTINGS = {"HOLDFAST_TEST_SERVERS", "HOLDFAST_TEST_INSTALL", "HOLDFAST_TEST_EFFORT", "HOLDFAST_CHROMIUM"}
SERVICES = "edge,cart,inventory,orders,payment,delivery,provider"


@pytest.fixture(scope="session")
def shop() -> Iterator[Shop]:
    """A whole shop with two workers of carts and inventory, without notices and figures.

    Each test keeps to shoppers and products of its own, and leaves every process ready.
    """
    with tempfile.TemporaryDirectory(prefix="holdfast-shop-") as folder:
        running = Shop(Path(folder) / "root")
        running.up("--workers", "cart=2,inventory=2", "--only", SERVICES)
        try:
            yield running
        finally:
            running.down()


# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("holdfast", deadline=None)
hypothesis.settings.load_profile("holdfast")


def pytest_configure() -> None:
    # Started in the background by a shell (`make test &`) we inherit an ignored SIGINT, and so would our children.
    # SIGTERM ends the run like Ctrl-C: fixtures stop their servers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # A shop that somebody runs beside the tests must not be theirs.
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        if name not in OWN_SETTINGS and not _external(name):
            del os.environ[name]
    os.environ["HOLDFAST_PARTITIONS"] = str(PARTITIONS)
    # Brokers of tests live for minutes: the second compiler would cost more than its code saves.
    os.environ["HOLDFAST_KAFKA_JVM"] = "-Xms64m -Xmx256m -XX:TieredStopAtLevel=1"


def _external(name: str) -> bool:
    return os.environ.get("HOLDFAST_TEST_SERVERS") == "external" and name in {
        "HOLDFAST_KAFKA",
        "HOLDFAST_POSTGRES_URL",
        "HOLDFAST_REDIS_URL",
    }


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line("a skipped test fails the run: what is not run proves nothing", red=True)
