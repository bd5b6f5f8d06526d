"""Plan of `holdfast up`: ports, workers and addresses, decided before anything is started."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infrastructure.local.errors import PortInUse, ServerUnavailable, UsageError
from infrastructure.local.events import Event
from infrastructure.local.servers import external, port_reservations, probes
from infrastructure.local.state import Root
from infrastructure.local.supervision import services, startup_plan


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PORT", "KAFKA_PORT", "KAFKA", "POSTGRES_URL", "REDIS_URL", "PROFILE"):
        monkeypatch.delenv(f"HOLDFAST_{name}", raising=False)


def test_workers_are_parsed_by_name() -> None:
    one_each = {kind.name: 1 for kind in services.SERVICE_TYPES}
    assert services.parse_workers("") == one_each
    assert services.parse_workers("inventory=2, cart=3") == one_each | {"cart": 3, "inventory": 2}


@pytest.mark.parametrize(
    "option", ["edge=2", "provider=2", "carts=2", "cart", "cart=", "cart=0", "cart=17", "cart=-1", "cart=²", "=2"]
)
def test_invalid_numbers_of_workers_are_wrong_use(option: str) -> None:
    with pytest.raises(UsageError, match="--workers"):
        services.parse_workers(option)


def test_a_port_is_the_previous_one_or_a_free_one() -> None:
    notes: list[Event] = []
    before = probes.free_port()
    assert startup_plan.reserve_port("http", {"http": before}, notes.append) == before
    assert not notes
    with socket.create_server(("127.0.0.1", before)):
        other = startup_plan.reserve_port("http", {"http": before}, notes.append)
    assert other != before
    assert f"port {before} is taken by" in notes[0].text
    assert notes[0].text.endswith(f"http uses {other}")


def test_a_requested_port_is_used_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = probes.free_port()
    monkeypatch.setenv("HOLDFAST_KAFKA_PORT", str(asked))
    assert startup_plan.reserve_port("kafka", {"kafka": 1}, print) == asked
    with socket.create_server(("127.0.0.1", asked)), pytest.raises(PortInUse, match="HOLDFAST_KAFKA_PORT"):
        startup_plan.reserve_port("kafka", {}, print)


@pytest.mark.parametrize("asked", ["0", "65536", "kafka", "-1", "\uff19"])
def test_a_port_must_be_a_port(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_KAFKA_PORT", asked)
    with pytest.raises(UsageError, match="must be a port"):
        startup_plan.reserve_port("kafka", {}, print)


def test_a_port_is_reserved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is reserved and not yet listened on is not given to a worker."""
    asked, other = probes.free_port(), probes.free_port()
    assert startup_plan.reserve_port("http", {"http": asked}, print) == asked
    candidates = iter((asked, other))
    monkeypatch.setattr(probes, "free_port", lambda: next(candidates))
    assert port_reservations.reserve_free_port() == other


def test_two_shops_that_start_together_choose_different_ports() -> None:
    chosen = probes.free_port()
    program = (
        "from infrastructure.local.servers import port_reservations;"
        f"print(port_reservations.reserve({chosen}), flush=True); input()"
    )
    argv, pipe = [sys.executable, "-c", program], subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=os.environ | services.python_path(), text=True) as shop:
        assert shop.stdout is not None
        assert shop.stdout.readline() == "True\n"
        assert not probes.is_port_in_use(chosen)
        assert startup_plan.reserve_port("http", {"http": chosen}, lambda _: None) != chosen
        shop.kill()
    assert startup_plan.reserve_port("http", {"http": chosen}, lambda _: None) == chosen


def test_a_port_in_closing_connections_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as accepted:
            assert probes.is_port_in_use(port)
            accepted.close()
            client.recv(1)
    assert not probes.is_port_in_use(port)


def test_the_addresses_of_holdfast_env_are_not_external_servers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = Root(tmp_path / "root")
    root.create()
    first = startup_plan.make_plan(root, startup_plan.UpOptions(infra_only=True), print)
    root.save({"ports": first.ports, **first.addresses})
    for name, variable in external.ADDRESS_VARIABLES.items():
        monkeypatch.setenv(variable, first.addresses[name])
    again = startup_plan.make_plan(root, startup_plan.UpOptions(infra_only=True), print)
    assert not again.external
    assert again.addresses == first.addresses
    assert [part.name for part in again.servers] == ["kafka", "postgres", "redis"]


def test_limits_cannot_be_disabled_in_production(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOLDFAST_PROFILE", "production")
    with pytest.raises(UsageError, match="production"):
        startup_plan.make_plan(Root(tmp_path), startup_plan.UpOptions(limits=False), print)


def test_addresses_are_parsed_as_clients_parse_them() -> None:
    assert external.endpoints("kafka", "one:9093, two") == [("one", 9093), ("two", 9092)]
    assert external.endpoints("postgres", "postgresql://me:p%40ss@db/shop") == [("db", 5432)]
    assert external.endpoints("redis", "redis://:secret@[::1]:7000/0") == [("::1", 7000)]
    with pytest.raises(ServerUnavailable, match="HOLDFAST_KAFKA"):
        external.endpoints("kafka", "host:port")


def test_a_shown_address_has_no_password() -> None:
    assert external.without_password("postgres", "postgresql://me:secret@db:5433/shop?sslmode=require") == (
        "postgresql://me@db:5433/shop?sslmode=require"
    )
    assert external.without_password("redis", "redis://:secret@cache/0") == "redis://cache/0"


@pytest.mark.parametrize("name", ["kafka", "postgres", "redis"])
def test_an_unreachable_server_is_one_sentence_without_a_password(name: str) -> None:
    port = probes.free_port()
    address = {
        "kafka": f"127.0.0.1:{port}",
        "postgres": f"postgresql://me:secret@127.0.0.1:{port}/shop",
        "redis": f"redis://:secret@127.0.0.1:{port}/0",
    }[name]
    with pytest.raises(ServerUnavailable) as caught:
        external.require_usable(name, address)
    assert "start that server or correct the address" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- secrets and addresses ------------------------------------------------------------------------------------------


def service_settings(root: Root, **ports: int) -> dict[str, str]:
    root.create()
    addresses = dict.fromkeys(("kafka", "postgres", "redis"), "x")
    plan = startup_plan.StartupPlan({"http": 1, **ports}, "http://127.0.0.1:1", addresses)
    return startup_plan._service_settings(root, plan, limits=True)


def test_tokens_webhooks_and_the_provider_have_different_secrets_of_this_root(tmp_path: Path) -> None:
    names = ("HOLDFAST_SECRET", "HOLDFAST_WEBHOOK_SECRET", "HOLDFAST_PROVIDER_KEY")
    shops = [service_settings(Root(tmp_path / name), provider=2) for name in ("a", "b")]
    assert len({shop[name] for shop in shops for name in names}) == 6


@pytest.mark.parametrize("suffix", ["", "_FILE"])
def test_the_secrets_of_a_real_provider_stay_and_those_of_the_simulated_one_are_the_roots(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {f"HOLDFAST_{name}{suffix}": f"of the provider {name}" for name in ("WEBHOOK_SECRET", "PROVIDER_KEY")}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    root = Root(tmp_path)
    real, simulated = service_settings(root), service_settings(root, provider=2)
    assert not real.keys() & {"HOLDFAST_WEBHOOK_SECRET", "HOLDFAST_PROVIDER_KEY"}
    assert simulated["HOLDFAST_PROVIDER_KEY"] == root.secrets().provider_key
    assert simulated["HOLDFAST_WEBHOOK_SECRET"] == root.secrets().webhooks


@pytest.mark.parametrize("profile", ["local", "production"])
@pytest.mark.parametrize("name", ["HOLDFAST_HTTP_HOST", "HOLDFAST_HEALTH_HOST", "HOLDFAST_PROVIDER_HOST"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.20"])
def test_up_listens_on_this_machine_only(
    profile: str, name: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_PROFILE", profile)
    monkeypatch.setenv(name, host)
    with pytest.raises(UsageError, match=rf"{name} is .*HOLDFAST_PROFILE=production"):
        startup_plan.make_plan(Root(tmp_path), startup_plan.UpOptions(), print)
