"""The local stack's promises, on the real Kafka, PostgreSQL and Redis, with stub services.

Each fault that a machine can have is caused for real and has one row: its exit code, the sentence that
says what to do, and an `up` that works once that was done.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pytest

from infrastructure.local.servers import jars, probes
from tests.testkit.local_stack import INFRA, Mirror, Result, StubStack, own_jars, prepare, until
from tests.testkit.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOT_USER = os.geteuid() == 0
ORDINARY = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--") if ROOT_USER else ()
"""Root may write everywhere; inside a user namespace it is an ordinary user."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared servers, made once."""
    jars.ensure_jars()
    return prepare(tmp_path_factory.mktemp("template") / "root")


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[StubStack]:
    """A shop that never ran; afterwards nothing of it may run."""
    shop = StubStack(tmp_path)
    with shop.afterwards:
        yield shop
        ended = shop("down")
        assert ended.code == 0, ended.err
        assert not [process.cmdline() for process in shop.ours()]


@pytest.fixture
def shop(empty: StubStack, template: Path) -> StubStack:
    """A shop that can start at once."""
    empty.furnish(template)
    return empty


# -- the faults ---------------------------------------------------------------------------------------


def port_taken(shop: StubStack) -> Result:
    """Another process listens on a port that the user insists on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        shop.env["HOLDFAST_REDIS_PORT"] = str(other.getsockname()[1])
        return shop(*INFRA)


def already_running(shop: StubStack) -> Result:
    """A second `up` in the same root."""
    assert shop(*INFRA).code == 0
    return shop("up", "--detach")


def killed(shop: StubStack, moment: Callable[[], bool]) -> Result:
    """The supervisor crashes without a word."""
    process = shop.start("up", "--infra-only")
    until(moment)
    process.kill()
    out, err = process.communicate()
    return Result(process.returncode, out, err)


def killed_at_first_child(shop: StubStack) -> Result:
    """Between starting a process and noting its pid."""
    return killed(shop, lambda: any("valkey-server" in " ".join(p.cmdline()) for p in shop.ours()))


def killed_while_preparing(shop: StubStack) -> Result:
    """While initdb works."""
    shutil.rmtree(shop.root / "postgres")
    return killed(shop, (shop.root / "postgres/new").exists)


def killed_while_kafka_boots(shop: StubStack) -> Result:
    """PostgreSQL and Redis are up, Kafka is not."""
    return killed(shop, (shop.root / "logs/kafka.log").exists)


def half_written_download(shop: StubStack) -> Result:
    """The line breaks in the middle of a jar, again and again."""
    mirror = Mirror("cut")
    own_jars(shop, without="kafka-clients")
    with mirror.serve() as address:
        shop.env["HOLDFAST_MAVEN_URL"] = address
        result = shop(*INFRA)
    assert not list((shop.folder / "m2").rglob("kafka-clients*.jar")), "half a jar has a jar's name"
    network_is_back(shop)
    return result


def damaged_jar(shop: StubStack) -> Result:
    """A jar on the disk is not the locked one, and neither is what the registry sends."""
    own_jars(shop, without="kafka-clients").write_bytes(b"rubbish")
    with Mirror("spoil").serve() as address:
        shop.env["HOLDFAST_MAVEN_URL"] = address
        result = shop(*INFRA)
    network_is_back(shop)
    return result


def no_network(shop: StubStack) -> Result:
    """No jar is downloaded yet, and the network is away."""
    (shop.folder / "m2").mkdir()
    proxies = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
    shop.env |= {"M2_REPO": str(shop.folder / "m2"), **proxies}
    result = shop(*INFRA)
    network_is_back(shop)
    return result


def network_is_back(shop: StubStack) -> None:
    """The real jars again, as after a download."""
    shutil.rmtree(shop.folder / "m2", ignore_errors=True)
    shop.env.clear()


def disk_full(shop: StubStack) -> Result:
    """A small disk; root can mount one, others get a limit on what they may write."""
    if not ROOT_USER:
        return file_too_large(shop)
    kept = (shop.root / "stack.json").read_text()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "none", shop.root], check=True)
    shop.afterwards.callback(lambda: subprocess.run(["umount", "-l", shop.root], check=True))
    (shop.root / "stack.json").write_text(kept)
    result = shop(*INFRA)
    # Somebody makes room.
    subprocess.run(["mount", "-o", "remount,size=1g", shop.root], check=True)
    return result


def file_too_large(shop: StubStack) -> Result:
    """A full disk in the middle of a write: no file may grow past a megabyte."""
    shutil.rmtree(shop.root / "postgres")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        return shop(*INFRA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_right_to_write(shop: StubStack) -> Result:
    """The root directory belongs to somebody else."""
    shop.prefix = ORDINARY
    shop.root.chmod(0o500)
    shutil.rmtree(shop.root / "logs", ignore_errors=True)
    try:
        return shop(*INFRA)
    finally:
        shop.root.chmod(0o700)


def server_away(shop: StubStack) -> Result:
    """A server that is not ours is named, and is not there."""
    shop.env["HOLDFAST_REDIS_URL"] = f"redis://:secret@127.0.0.1:{probes.free_port()}/0"
    result = shop(*INFRA)
    assert "secret" not in result.err
    del shop.env["HOLDFAST_REDIS_URL"]
    return result


@dataclass(frozen=True)
class Fault:
    """One row: how it is caused (and taken away again), and what `holdfast up` did."""

    cause: Callable[[StubStack], Result]
    code: int
    says: str
    java: bool = False
    """True if Kafka has a part in the fault; else it is the tests' own broker, which saves the start of another."""


FAULTS = (
    Fault(
        port_taken,
        3,
        r"port \d+ is taken by .+ \(pid \d+\): stop that program, or choose another with HOLDFAST_REDIS_PORT",
    ),
    Fault(already_running, 0, r"a shop is already running here"),
    Fault(killed_at_first_child, -9, ""),
    Fault(killed_while_preparing, -9, ""),
    Fault(killed_while_kafka_boots, -9, "", java=True),
    Fault(
        half_written_download,
        5,
        r"cannot download org.apache.kafka:kafka-clients:\S+ \(.+\): check .+, then run",
        java=True,
    ),
    Fault(damaged_jar, 4, r"kafka-clients:\S+ arrived damaged .+: run `holdfast up` again", java=True),
    Fault(no_network, 5, r"cannot download \S+ \(the proxy does not answer\): check HTTPS_PROXY", java=True),
    Fault(disk_full, 6, r"the disk is full at .+: make room there"),
    Fault(file_too_large, 6, r"the disk is full at .+: make room there"),
    Fault(no_right_to_write, 7, r"no permission to write to .+: change its owner, or set HOLDFAST_ROOT"),
    Fault(
        server_away, 8, r"HOLDFAST_REDIS_URL names redis://127.0.0.1:\d+/0, which cannot be used .+: start that server"
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.cause.__name__)
def test_a_fault_has_an_exit_code_a_sentence_and_a_remedy(shop: StubStack, fault: Fault, servers: Servers) -> None:
    """A fault is caused, reported and removed: then `up` works, with exactly one process of each kind."""
    if not fault.java:
        shop.use_kafka(servers.kafka)
    result = fault.cause(shop)
    assert result.code == fault.code, result.err
    assert re.search(fault.says, result.err), result.err
    assert "Traceback" not in result.err
    assert not result.out or fault.code == 0

    again = shop(*INFRA)
    assert again.code == 0, again.err
    services = shop.status()["services"]
    assert {name: entry["state"] for name, entry in services.items()} == dict.fromkeys(
        ("kafka", "postgres", "redis"), "ready"
    )
    running = [process.name() for process in shop.ours()]
    assert (running.count("java"), running.count("valkey-server")) == (int(fault.java), 1)


# -- a whole shop -------------------------------------------------------------------------------------


def test_a_shop_survives_what_happens_to_its_processes(empty: StubStack) -> None:
    """Crashes and freezes of any process are seen and repaired; everything stops in order."""
    shop, began = empty, time.monotonic()
    up = shop("up", "--detach", "--workers", "cart=2", "--no-limits")
    assert up.code == 0, up.err
    assert time.monotonic() - began < 30
    assert up.out.startswith("http ")
    content = shop.status()
    assert content["limits"] == "off"
    services = content["services"]
    ours = {"edge", "accounts", "cart-1", "cart-2", "inventory-1", "orders-1", "notifications-1"}
    assert set(services) == {*ours, "kafka", "postgres", "redis"}
    assert {entry["state"] for entry in services.values()} == {"ready"}
    assert all(entry["rss_bytes"] > 0 and entry["restarts"] == 0 for entry in services.values())
    assert (shop.root.stat().st_mode & 0o777, (shop.root / "secrets.json").stat().st_mode & 0o777) == (0o700, 0o600)

    psutil.Process(services["cart-1"]["pid"]).kill()
    psutil.Process(services["redis"]["pid"]).suspend()
    psutil.Process(services["edge"]["pid"]).suspend()
    # The parent of PostgreSQL crashes: its children must go before another can open the data.
    psutil.Process(services["postgres"]["pid"]).kill()
    hurt = ("cart-1", "redis", "edge", "postgres")
    until(lambda: all(shop.entry(name)["restarts"] == 1 for name in hurt))
    until(lambda: all(shop.entry(name)["state"] == "ready" for name in services))
    assert shop.status()["services"]["kafka"]["pid"] == services["kafka"]["pid"]

    [fork_server] = [each for each in shop.ours() if "infrastructure.process.fork_server" in each.cmdline()]
    fork_server.kill()
    psutil.Process(shop.entry("cart-1")["pid"]).kill()
    until(lambda: shop.entry("cart-1")["restarts"] == 2 and shop.entry("cart-1")["state"] == "ready")
    assert shop.entry("cart-2")["restarts"] == 0, "children outlive the process that they were forked from"

    supervisor = psutil.Process(shop.status()["supervisor"])
    supervisor.kill()
    assert shop("status").code == 1
    again = shop("up", "--detach")
    assert again.code == 0, again.err
    assert "reused" in again.err
    after = shop.status()["services"]
    assert "cart-2" not in after
    assert after["kafka"]["pid"] == services["kafka"]["pid"]
    assert after["inventory-1"]["pid"] != services["inventory-1"]["pid"]
    assert (shop.root / "run/seed/seeds").read_text() == "seed\n", "the catalogue is loaded once"

    exports = shop("env").out
    assert f"export HOLDFAST_HTTP_URL=http://127.0.0.1:{shop.ports['http']}\n" in exports
    query = subprocess.run(
        ["sh", "-c", f'{exports}\necho "$PGDATABASE $HOLDFAST_ROOT"'], capture_output=True, text=True, check=True
    )
    assert query.stdout == f"holdfast {shop.root}\n"
    assert shop("psql", "-Atc", "SELECT current_user").out == "holdfast\n"
    assert shop("kafka", "topics", "--create", "--topic", "greetings", "--partitions", "3").code == 0
    assert shop("kafka", "topics", "--list").out.split() == ["greetings"]
    assert "stub: serving" in shop("logs", "cart-1", "--lines", "5").out

    supervisor = psutil.Process(shop.status()["supervisor"])
    supervisor.kill()
    assert shop("down").code == 0
    assert not shop.ours()


def test_ctrl_c_stops_everything(shop: StubStack) -> None:
    """In the foreground, with the services, within 15 seconds and without an error."""
    process = shop.start("up")
    try:
        assert process.stdout is not None
        first = process.stdout.readline()  # the address, printed when all is ready
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert time.monotonic() - began < 15
    assert "stopped in" in err
    assert f"http://127.0.0.1:{shop.ports['http']}" in first + out
    assert not shop.ours()


def test_a_service_that_cannot_start_fails_the_up_with_its_own_words(shop: StubStack) -> None:
    """The detaching command has the supervisor's exit code and sentence, and nothing stays behind."""
    (shop.root / "run/cart-1").mkdir(parents=True)
    (shop.root / "run/cart-1/crash").touch()
    result = shop("up", "--detach")
    assert result.code == 1
    assert re.search(r"cart-1 ended with status 7; see `holdfast logs cart-1`.+\n\s+stub: told to crash", result.err), (
        result.err
    )
    assert not shop.ours()


def test_a_port_in_use_is_replaced_unless_it_was_requested(shop: StubStack) -> None:
    """The error names the owner of the port; a second shop can use the first one's servers."""
    with socket.create_server(("127.0.0.1", shop.ports["redis"])):
        result = shop(*INFRA)
    assert result.code == 0, result.err
    assert re.search(rf"port {shop.ports['redis']} is taken by .+ \(pid {os.getpid()}\): redis uses \d+", result.err)
    exports = dict(re.findall(r"export (\w+)=(.+)", shop("env").out))

    guest = StubStack(shop.folder / "guest")
    guest.env = {name: exports[name] for name in ("HOLDFAST_KAFKA", "HOLDFAST_POSTGRES_URL", "HOLDFAST_REDIS_URL")}
    assert guest(*INFRA).err.count("external") == 3
    assert {entry["state"] for entry in guest.status()["services"].values()} == {"ready"}
    assert guest("down").code == 0
    assert {entry["state"] for entry in shop.status()["services"].values()} == {"ready"}
