"""The root directory: where one shop keeps its data, its secrets and what runs just now.

| in `.holdfast/` (0700) | |
|---|---|
| `lock` | held (flock) by the supervisor as long as it lives, with its pid |
| `stack.json` | addresses, ports and the state of every process |
| `secrets.json` | passwords and the token-signing secret, made once |
| `logs/<name>.log` | what a process prints |
| `run/<name>/` | a service's own state directory |
| `kafka/`, `postgres/`, `redis/` | the servers' data |
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from infrastructure.local.errors import Fault, explain
from infrastructure.topics import PARTITIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = ".holdfast"
NO_SHOP = "no shop runs here: start one with `holdfast up`"


def find_root() -> Root:
    """HOLDFAST_ROOT, else the nearest `.holdfast` here or above, else a new one here."""
    if named := os.environ.get("HOLDFAST_ROOT"):
        return Root(Path(named).expanduser().resolve())
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / NAME).is_dir():
            return Root((folder / NAME).resolve())
    return Root((here / NAME).resolve())


@dataclass(frozen=True)
class Secrets:
    """Random, one set for each root."""

    postgres: str
    redis: str
    signing: str


@dataclass(frozen=True)
class Root:
    """One root directory; `path` is absolute."""

    path: Path

    @property
    def lock(self) -> Path:
        """The file whose flock is the supervisor's life."""
        return self.path / "lock"

    def log(self, name: str) -> Path:
        """Where the process `name` prints to."""
        return self.path / "logs" / f"{name}.log"

    def run(self, name: str) -> Path:
        """The state directory of the service `name`."""
        return self.path / "run" / name

    def make(self) -> None:
        """Create what is missing, for this user's eyes only. Raises NoRight or DiskFull."""
        try:
            for folder in (self.path, self.path / "logs", self.path / "run"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            with self.lock.open("a"):
                pass
        except OSError as error:
            raise explain(error, self.path) from error

    def load(self) -> dict[str, Any]:
        """What was written last, empty when nothing was."""
        return self._read("stack.json")

    def save(self, state: dict[str, Any]) -> None:
        """Write `stack.json`, whole or not at all."""
        self._write("stack.json", state)

    def secrets(self) -> Secrets:
        """This root's secrets, made at the first call."""
        kept = self._read("secrets.json")
        if not kept:
            if (self.path / "postgres").exists():
                raise Fault(
                    f"{self.path}/secrets.json is lost, and its database cannot be opened without it:"
                    f" put it back, or remove {self.path} and start anew"
                )
            made = Secrets(secrets.token_hex(16), secrets.token_hex(16), secrets.token_urlsafe(32))
            self._write("secrets.json", asdict(made))
            return made
        return Secrets(**kept)

    def _read(self, file: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / file).read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        except OSError as error:
            raise explain(error, self.path / file) from error
        return content if isinstance(content, dict) else {}

    def _write(self, file: str, content: dict[str, Any]) -> None:
        new = self.path / f"{file}.new"
        try:
            # Made with its mode: there is no moment at which others could read it.
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                json.dump(content, out, indent=1)
                out.flush()
                os.fsync(out.fileno())
            new.replace(self.path / file)
        except OSError as error:
            raise explain(error, self.path) from error

    @contextlib.contextmanager
    def hold(self, patience: float = 1.0) -> Iterator[bool]:
        """Be this root's one supervisor; yields False when another process is.

        `patience` (seconds) covers a reader that tests the lock at this moment, and a child of a killed
        supervisor between its fork and its exec.
        """
        with self.lock.open("a") as stream:
            end = time.monotonic() + patience
            while not (mine := _try_lock(stream.fileno(), fcntl.LOCK_EX)) and time.monotonic() < end:
                time.sleep(0.05)
            if mine:
                stream.truncate(0)
                stream.write(str(os.getpid()))
                stream.flush()
            yield mine

    def holder(self) -> int:
        """The pid of the supervisor that lives, 0 when none does."""
        try:
            return int(self.lock.read_text()) if self.held() else 0
        except (OSError, ValueError):
            return 0

    def held(self) -> bool:
        """Whether a supervisor lives."""
        try:
            with self.lock.open("a") as stream:
                return not _try_lock(stream.fileno(), fcntl.LOCK_SH)
        except OSError:
            return False


def _try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Stack:
    """A running shop: its addresses, and the secrets to use them with."""

    root: Path
    http: str
    kafka: str
    postgres_url: str
    redis_url: str
    secret: str
    limits: str
    metrics: dict[str, str]
    """Process name → URL of its `/metrics`, for every service (`edge`, `cart-1` …)."""
    partitions: int = PARTITIONS
    """Partitions of each keyed topic."""
    provider: str = ""
    """Where the simulated payment provider answers; empty when there is none."""

    def environment(self) -> dict[str, str]:
        """The settings a sub-command of a service needs (`python -m inventory_service seed FILE`)."""
        host, port = self.http.removeprefix("http://").rsplit(":", 1)
        return {
            "HOLDFAST_KAFKA": self.kafka,
            "HOLDFAST_POSTGRES_URL": self.postgres_url,
            "HOLDFAST_REDIS_URL": self.redis_url,
            "HOLDFAST_HTTP_URL": self.http,
            "HOLDFAST_HTTP_HOST": host,
            "HOLDFAST_HTTP_PORT": port,
            "HOLDFAST_SECRET": self.secret,
            "HOLDFAST_PROFILE": os.environ.get("HOLDFAST_PROFILE", "local"),
            "HOLDFAST_PREFIX": os.environ.get("HOLDFAST_PREFIX", ""),
            "HOLDFAST_LIMITS": self.limits,
            "HOLDFAST_PARTITIONS": str(self.partitions),
            "HOLDFAST_ROOT": str(self.root),
            **({"HOLDFAST_PROVIDER_URL": self.provider} if self.provider else {}),
        }


def running() -> Stack:
    """The shop that runs here; without one, says so and ends this process with exit code 1."""
    stack = find_running(find_root())
    if stack is None:
        die(NO_SHOP)
    return stack


def find_running(root: Root) -> Stack | None:
    """The shop of this root when its supervisor lives and its addresses are known, else None."""
    if not root.held():
        return None
    state = root.load()
    try:
        return Stack(
            root=root.path,
            http=state["http"],
            kafka=state["kafka"],
            postgres_url=state["postgres"],
            redis_url=state["redis"],
            secret=root.secrets().signing,
            limits=state["limits"],
            partitions=int(state.get("partitions", PARTITIONS)),
            metrics={n: e["metrics"] for n, e in state.get("services", {}).items() if e.get("metrics")},
            provider=f"http://127.0.0.1:{port}" if (port := state.get("ports", {}).get("provider")) else "",
        )
    except KeyError:
        return None


def die(sentence: str, code: int = 1) -> NoReturn:
    """End the command with one sentence on standard error."""
    print(f"holdfast: {sentence}", file=sys.stderr)  # noqa: T201 - a command's last words
    raise SystemExit(code)
