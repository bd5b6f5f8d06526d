"""Files of the local stack: the root directory, the lock file of the jars, the logs."""

import errno
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest

from infrastructure.local import errors, processes, state
from infrastructure.local.commands import output
from infrastructure.local.events import Event
from infrastructure.local.servers import jars, kafka
from infrastructure.local.servers.postgres import Postgres
from infrastructure.local.state import Root, Secrets
from infrastructure.local.supervision import supervisor


def test_the_root_is_the_variable_or_the_nearest_above_or_a_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / "a/b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    monkeypatch.delenv("HOLDFAST_ROOT", raising=False)
    assert state.find_root().path == deep / ".holdfast"
    (tmp_path / ".holdfast").mkdir()
    assert state.find_root().path == tmp_path / ".holdfast"
    monkeypatch.setenv("HOLDFAST_ROOT", str(tmp_path / "elsewhere"))
    assert state.find_root().path == tmp_path / "elsewhere"


def test_secrets_are_created_once_and_readable_by_this_user_only(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    root.create()
    first = root.secrets()
    assert root.secrets() == first
    assert len({first.postgres, first.redis, first.signing}) == 3
    modes = {path.name: path.stat().st_mode & 0o777 for path in (root.path, root.path / "secrets.json")}
    assert modes == {"root": 0o700, "secrets.json": 0o600}


def test_missing_secrets_of_an_existing_database_are_not_created_again(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(errors.StackError, match="put it back"):
        Root(tmp_path).secrets()


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"'])
def test_a_damaged_state_file_counts_as_empty(content: str, tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(content)
    assert Root(tmp_path).load() == {}


def test_one_supervisor_at_a_time(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.create()
    with root.acquire_lock() as acquired:
        assert acquired
        assert root.has_supervisor()
        assert root.supervisor_pid() == os.getpid()
        with root.acquire_lock(timeout=0.1) as other:
            assert not other
    assert not root.has_supervisor()


def test_without_a_shop_a_command_ends_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_ROOT", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        state.require_running()
    assert ended.value.code == 1
    message = f"holdfast: {state.not_running(Root(tmp_path))}\n"
    assert capsys.readouterr() == ("", message)
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("named", "folder", "content", "expected"),
    [
        (False, None, None, "{here} has no .holdfast, nor has any directory above; start one with `holdfast up`"),
        (False, ".holdfast", None, "the nearest .holdfast is {here}/.holdfast, and no shop was ever started in it;"),
        (False, ".holdfast", {}, "the nearest .holdfast is {here}/.holdfast, and no shop was ever started in it;"),
        (False, ".holdfast", {"http": "x"}, "the nearest .holdfast is {here}/.holdfast, and its shop is stopped;"),
        (True, None, None, "HOLDFAST_ROOT is {here}/named, and it does not exist;"),
        (True, "named", None, "HOLDFAST_ROOT is {here}/named, and no shop was ever started in it;"),
        (True, "named", {"http": "x"}, "HOLDFAST_ROOT is {here}/named, and its shop is stopped;"),
    ],
)
def test_the_message_says_where_a_shop_was_looked_for_and_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    named: bool,
    folder: str | None,
    content: dict[str, str] | None,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if named:
        monkeypatch.setenv("HOLDFAST_ROOT", str(tmp_path / "named"))
    else:
        monkeypatch.delenv("HOLDFAST_ROOT", raising=False)
    if folder is not None:
        (tmp_path / folder).mkdir()
    if folder is not None and content is not None:
        Root(tmp_path / folder).save(dict(content))
    message = state.not_running(state.find_root())
    assert message.startswith("no shop runs here: ")
    assert expected.format(here=tmp_path) in message


def test_the_address_is_that_of_the_environment_or_of_the_shop_here_and_never_a_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_ROOT", str(tmp_path))
    monkeypatch.setenv("HOLDFAST_HTTP_URL", "http://127.0.0.1:3")
    assert state.find_http_url() == "http://127.0.0.1:3"
    monkeypatch.delenv("HOLDFAST_HTTP_URL")
    root = Root(tmp_path)
    root.create()
    addresses = {"http": "http://127.0.0.1:4", "kafka": "k", "postgres": "p", "redis": "r", "limits": "on"}
    root.save(dict(addresses))
    with root.acquire_lock():
        assert state.find_http_url() == "http://127.0.0.1:4"
    with pytest.raises(SystemExit):
        state.find_http_url()
    assert "its shop is stopped" in capsys.readouterr().err


def test_an_example_below_the_root_of_another_user_ends_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".holdfast").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("HOLDFAST_ROOT", "HOLDFAST_HTTP_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SystemExit) as ended:
        state.find_http_url()
    assert ended.value.code == 2
    assert "belongs to user id" in capsys.readouterr().err


def test_exports_are_quoted_for_the_shell(tmp_path: Path) -> None:
    root = Root(tmp_path / 'it\'s $HOME `x` "q"')
    root.create()
    url = f"postgresql://holdfast:{root.secrets().postgres}@127.0.0.1:5/holdfast"
    root.save({"http": "http://127.0.0.1:1", "kafka": "k:2", "postgres": url, "redis": "redis://r", "limits": "on"})
    with root.acquire_lock():
        lines = output.shell_exports(root)
    shown = subprocess.run(
        ["sh", "-c", f'{lines}\nprintf %s "$HOLDFAST_ROOT"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == str(root.path)


def test_the_lock_file_has_one_version_of_kafka_and_a_hash_for_every_jar() -> None:
    locked = tomllib.loads(jars.LOCK_FILE.read_text())["dependencies"]
    assert len({entry["version"] for entry in locked if entry["groupId"] == "org.apache.kafka"}) == 1
    assert all(len(entry["sha256"]) == 64 for entry in locked)
    assert len({jar.path for jar in jars.load_lock_file()}) == len(locked)


def test_neither_the_lock_file_nor_the_settings_name_a_registry() -> None:
    for file in (jars.LOCK_FILE, jars.LOCK_FILE.with_name("jgo.toml"), *kafka.CONFIG_FOLDER.iterdir()):
        assert "://" not in file.read_text(), file


def test_a_dead_letter_with_two_mebibytes_fits_into_a_message() -> None:
    settings = dict(
        line.split("=", 1)
        for line in (kafka.CONFIG_FOLDER / "server.properties").read_text().splitlines()
        if "=" in line
    )
    assert 2 << 20 < int(settings["message.max.bytes"]) <= int(settings["socket.request.max.bytes"])


def test_an_operating_system_error_becomes_an_error_with_a_remedy() -> None:
    full = errors.convert_os_error(OSError(errno.ENOSPC, "No space left"), "/data")
    assert (full.code, "make room" in str(full)) == (6, True)
    forbidden = errors.convert_os_error(PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data")
    assert (forbidden.code, "/data/x" in str(forbidden)) == (7, True)
    assert errors.convert_os_error(OSError(errno.EIO, "I/O error"), "/data").code == 1
    from_output = errors.convert_output("initdb: could not write: No space left on device", "/data")
    assert isinstance(from_output, errors.DiskFull)
    assert errors.convert_output("all is well", "/data") is None


def test_an_event_is_decoded_as_it_was_encoded() -> None:
    event = Event("ready", name="kafka", text="127.0.0.1:9092", how="started", seconds=2.5, pid=7)
    assert Event.decode(event.encode()) == event
    assert Event.decode(json.dumps({"kind": "note", "new_field": 1})) == Event("note")


def test_a_long_log_is_rotated_and_its_last_lines_are_found(tmp_path: Path) -> None:
    log = tmp_path / "edge.log"
    with log.open("a") as writer:
        writer.write("old\n" * 100)
        writer.flush()
        supervisor.rotate_log(log, max_bytes=100)
        writer.write("new\n\nnewest\n")
    assert log.read_text() == "new\n\nnewest\n"
    assert supervisor.last_lines(log, 2) == ["new", "newest"]
    assert (tmp_path / "edge.log.1").read_text() == "old\n" * 100
    assert supervisor.last_lines(tmp_path / "none.log", 5) == []


def test_the_pid_file_of_a_zombie_does_not_prevent_postgres_from_starting(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.create()
    postgres = Postgres(root, 0, Secrets.create())
    postgres.cluster.mkdir(parents=True)
    (postgres.cluster / "PG_VERSION").write_text("18")
    pid_file = postgres.cluster / "postmaster.pid"
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        pid_file.write_text(f"{child.pid}\n")
        postgres.prepare()
        assert not pid_file.exists()
    pid_file.write_text(f"{os.getpid()}\n")
    postgres.prepare()
    assert pid_file.exists(), "its owner is alive"


def test_memory_counts_shared_pages_once_where_the_system_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [psutil.Process()]
    shared = processes.proportional_bytes(own)
    assert shared is None or 0 < shared <= processes.resident_bytes(own)
    assert (shared is None) == (sys.platform != "linux")
    monkeypatch.setattr(psutil.Process, "memory_full_info", lambda _: None)
    assert processes.proportional_bytes(own) is None
    assert processes.proportional_bytes([]) == 0


@pytest.mark.parametrize(
    ("pss", "text"),
    [
        ((1, 2), "memory       3 MiB (each shared page counted once)"),
        ((1, None), "memory       6 MiB at most (resident; this system does not say what is shared by cart-1)"),
        (
            (None, None),
            "memory       10 MiB at most (resident; this system does not say what is shared by all processes)",
        ),
    ],
)
def test_the_line_about_memory_says_how_it_was_counted(pss: tuple[int | None, int | None], text: str) -> None:
    sizes = [None if size is None else size << 20 for size in pss]
    services = {
        name: {"rss_bytes": 5 << 20, "pss_bytes": size} for name, size in zip(("edge", "cart-1"), sizes, strict=True)
    }
    assert output.describe_memory(services) == text


def test_a_process_is_found_by_its_environment(tmp_path: Path) -> None:
    given = str(tmp_path / "run/cart-1")
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"HOLDFAST_STATE_DIR": given}
    ) as child:
        found = processes.find_by_environment("HOLDFAST_STATE_DIR", lambda value: value == given)
        assert [process.pid for process in found] == [child.pid]
        assert processes.resident_bytes(processes.process_trees([child.pid])[child.pid]) > 0
        processes.terminate(found)
        assert not processes.is_alive(found[0])
        assert processes.resident_bytes(processes.process_trees([child.pid])[child.pid]) == 0
