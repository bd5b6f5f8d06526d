"""The root directory of a shop: its data, its secrets and the state of its processes.

| in `.holdfast/` (0700) | |
|---|---|
| `lock` | file lock (flock) that the supervisor holds for life; contains the supervisor's pid |
| `stack.json` | addresses, ports and the state of every process |
| `secrets.json` | passwords, keys and signing secrets, created once |
| `kafka-client.properties` | how `holdfast kafka …` connects to a broker with TLS or passwords |
| `logs/<name>.log` | output of a process |
| `run/<name>/` | state directory of a service |
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
from urllib.parse import parse_qsl, unquote, urlsplit

from contracts.topics import PARTITIONS
from infrastructure.local.errors import StackError, UsageError, convert_os_error
from infrastructure.process.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT_NAME = ".holdfast"


def not_running(root: Root) -> str:
    """Return the message that no shop runs here: where it was looked for, what is there, and what to do."""
    if os.environ.get("HOLDFAST_ROOT"):
        looked = f"HOLDFAST_ROOT is {root.path}, and"
        remedy = "start one with `holdfast up`, or correct or unset HOLDFAST_ROOT"
    elif root.path.is_dir():
        looked = f"the nearest {ROOT_NAME} is {root.path}, and"
        remedy = "start one with `holdfast up`, or change to the directory of the shop that you mean"
    else:
        return (
            f"no shop runs here: {Path.cwd()} has no {ROOT_NAME}, nor has any directory above;"
            " start one with `holdfast up`, or change to the directory of the shop that you mean"
        )
    if not root.path.is_dir():
        found = "it does not exist"
    elif "http" in root.load():
        found = "its shop is stopped"
    else:
        found = "no shop was ever started in it"
    return f"no shop runs here: {looked} {found}; {remedy}"


def find_http_url() -> str:
    """Return the HTTP address of the shop: HOLDFAST_HTTP_URL, else that of the shop that runs here.

    If none runs here, print a message and exit with status 1: the shop of a default port may be somebody else's.
    """
    try:
        return os.environ.get("HOLDFAST_HTTP_URL") or require_running().http
    except StackError as fault:
        exit_with_error(str(fault), fault.code)


def find_root() -> Root:
    """Return the root directory: HOLDFAST_ROOT, else the nearest `.holdfast` here or above, else a new one here.

    Raises `UsageError` if the nearest one belongs to another user: it would receive secrets, or give commands to run.
    """
    if named := os.environ.get("HOLDFAST_ROOT"):
        return Root(Path(named).expanduser().resolve())
    here = Path.cwd()
    for folder in (here, *here.parents):
        found = folder / ROOT_NAME
        if found.is_dir():
            _require_own(found)
            return Root(found.resolve())
    return Root((here / ROOT_NAME).resolve())


def _require_own(found: Path) -> None:
    """Raise `UsageError` if a root directory, or the link to it, belongs to another user."""
    me = os.geteuid()
    for status in (found.lstat(), found.stat()):
        if status.st_uid != me:
            raise UsageError(
                f"{found} belongs to user id {status.st_uid}, not to you ({me}): work in another directory, or name the"
                f" root that you want with HOLDFAST_ROOT (HOLDFAST_ROOT={found} for this one)"
            )


@dataclass(frozen=True)
class Secrets:
    """Random secrets of one root directory."""

    postgres: str
    redis: str
    signing: str
    """Signs tokens."""
    webhooks: str
    """Signs the webhooks of the simulated payment provider."""
    provider_key: str
    """Authenticates the shop to the simulated payment provider."""
    accounts: str
    """Encrypts the keys of the account service."""

    @classmethod
    def create(cls) -> Secrets:
        """Return new random secrets."""
        passwords = secrets.token_hex(16), secrets.token_hex(16)
        return cls(*passwords, *(secrets.token_urlsafe(32) for _ in range(4)))


@dataclass(frozen=True)
class Root:
    """Root directory of a shop; `path` is absolute."""

    path: Path

    @property
    def lock_file(self) -> Path:
        """File that the supervisor keeps locked while it runs."""
        return self.path / "lock"

    def log_file(self, name: str) -> Path:
        """Return the log file of the process `name`."""
        return self.path / "logs" / f"{name}.log"

    def service_dir(self, name: str) -> Path:
        """Return the state directory of the service `name`."""
        return self.path / "run" / name

    def create(self) -> None:
        """Create missing directories, accessible to this user only. Raise `PermissionDenied` or `DiskFull`."""
        try:
            folders = (self.path, self.path / "logs", self.path / "run")
            for folder in folders:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for (
                folder
            ) in folders:  # after all are there: a directory that may not be written to is reported, not changed
                folder.chmod(0o700)
            with self.lock_file.open("a"):
                pass
        except OSError as error:
            raise convert_os_error(error, self.path) from error

    def load(self) -> dict[str, Any]:
        """Return the content of `stack.json`; empty if it is missing or damaged."""
        return self._read("stack.json")

    def save(self, state: dict[str, Any]) -> None:
        """Write `stack.json` atomically. Raises `PermissionDenied` or `DiskFull`."""
        self._write("stack.json", state)

    def secrets(self) -> Secrets:
        """Return this root's secrets; the first call creates them.

        Raises `StackError` if the file is missing although a database exists, since new secrets could not open it.
        """
        stored = self._read("secrets.json")
        if not stored and (self.path / "postgres").exists():
            raise StackError(
                f"{self.path}/secrets.json is missing, and the database cannot be opened without it:"
                f" put it back, or remove {self.path} to start with an empty shop"
            )
        # A root of an earlier version lacks the secrets that were added since.
        known = {name: value for name, value in stored.items() if name in Secrets.__dataclass_fields__}
        complete = asdict(Secrets.create()) | known
        if complete != known:
            self._write("secrets.json", complete)
        return Secrets(**complete)

    def _read(self, file: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / file).read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        except OSError as error:
            raise convert_os_error(error, self.path / file) from error
        return content if isinstance(content, dict) else {}

    def _write(self, file: str, content: dict[str, Any]) -> None:
        new = self.path / f"{file}.new"
        try:
            # The mode is set at creation, so that other users can never read the file.
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                json.dump(content, out, indent=1)
                out.flush()
                os.fsync(out.fileno())
            new.replace(self.path / file)
        except OSError as error:
            raise convert_os_error(error, self.path) from error

    @contextlib.contextmanager
    def acquire_lock(self, timeout: float = 1.0) -> Iterator[bool]:
        """Hold the lock of this root's supervisor; yield False if another process has it.

        `timeout` (seconds) is long enough for a process that only tests the lock at this moment, and for a child of a
        killed supervisor that inherited the lock and has not called exec yet.
        """
        with self.lock_file.open("a") as stream:
            end = time.monotonic() + timeout
            while not (acquired := _try_lock(stream.fileno(), fcntl.LOCK_EX)) and time.monotonic() < end:
                time.sleep(0.05)
            if acquired:
                stream.truncate(0)
                stream.write(str(os.getpid()))
                stream.flush()
            yield acquired

    def supervisor_pid(self) -> int:
        """Return the pid of the running supervisor, 0 if none runs."""
        try:
            return int(self.lock_file.read_text()) if self.has_supervisor() else 0
        except (OSError, ValueError):
            return 0

    def has_supervisor(self) -> bool:
        """Return whether a supervisor runs."""
        try:
            with self.lock_file.open("a") as stream:
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
    """Addresses of a running shop, and the secrets that clients need."""

    root: Path
    http: str
    kafka: str
    postgres_url: str
    redis_url: str
    secret: str
    webhook_secret: str
    provider_key: str
    accounts_secret: str
    limits: str
    metrics: dict[str, str]
    """Process name → URL of its `/metrics`, for every service (`edge`, `cart-1` …)."""
    partitions: int = PARTITIONS
    """Partitions of each keyed topic."""
    prefix: str = ""
    """Prefix of the shop's topics, schemas and keys."""
    provider: str = ""
    """URL of the simulated payment provider; empty if the shop has none."""

    def environment(self) -> dict[str, str]:
        """Return the settings that a sub-command of a service needs (`python -m inventory_service seed FILE`)."""
        host, port = self.http.removeprefix("http://").rsplit(":", 1)
        return {
            "HOLDFAST_KAFKA": self.kafka,
            "HOLDFAST_POSTGRES_URL": self.postgres_url,
            "HOLDFAST_REDIS_URL": self.redis_url,
            "HOLDFAST_HTTP_URL": self.http,
            "HOLDFAST_HTTP_HOST": host,
            "HOLDFAST_HTTP_PORT": port,
            "HOLDFAST_SECRET": self.secret,
            "HOLDFAST_ACCOUNTS_SECRET": self.accounts_secret,
            **self.provider_settings(),
            "HOLDFAST_PROFILE": os.environ.get("HOLDFAST_PROFILE", "local"),
            "HOLDFAST_PREFIX": os.environ.get("HOLDFAST_PREFIX", self.prefix),
            "HOLDFAST_LIMITS": self.limits,
            "HOLDFAST_PARTITIONS": str(self.partitions),
            "HOLDFAST_ROOT": str(self.root),
        }

    def provider_settings(self) -> dict[str, str]:
        """Return how to reach the simulated payment provider, and its secrets; empty if the shop has none."""
        if not self.provider:
            return {}
        return {
            "HOLDFAST_PROVIDER_URL": self.provider,
            "HOLDFAST_PROVIDER_KEY": self.provider_key,
            "HOLDFAST_WEBHOOK_SECRET": self.webhook_secret,
        }


def require_running() -> Stack:
    """Return the shop that runs here; if none does, print a message and exit with status 1."""
    root = find_root()
    stack = find_running(root)
    if stack is None:
        exit_with_error(not_running(root))
    return stack


def find_running(root: Root) -> Stack | None:
    """Return the shop of this root; `None` unless its supervisor runs and its addresses are known."""
    if not root.has_supervisor():
        return None
    state = root.load()
    own = root.secrets()
    try:
        return Stack(
            root=root.path,
            http=state["http"],
            kafka=state["kafka"],
            postgres_url=state["postgres"],
            redis_url=state["redis"],
            secret=own.signing,
            webhook_secret=own.webhooks,
            provider_key=own.provider_key,
            accounts_secret=own.accounts,
            limits=state["limits"],
            partitions=int(state.get("partitions", PARTITIONS)),
            prefix=state.get("prefix", ""),
            metrics={n: e["metrics"] for n, e in state.get("services", {}).items() if e.get("metrics")},
            provider=f"http://127.0.0.1:{port}" if (port := state.get("ports", {}).get("provider")) else "",
        )
    except KeyError:
        return None


_LIBPQ_VARIABLES = {"application_name": "PGAPPNAME", "dbname": "PGDATABASE"}
"""Variables of libpq whose name is not that of the parameter, with PG before it."""


def postgres_variables(url: str) -> dict[str, str]:
    """Return the `PG…` environment variables with which PostgreSQL's clients connect to a URL."""
    parts = urlsplit(url)
    others = {_LIBPQ_VARIABLES.get(name, f"PG{name.upper()}"): value for name, value in parse_qsl(parts.query)}
    return {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port or 5432),
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": unquote(parts.path.lstrip("/")),
        **others,
    }


def exit_with_error(sentence: str, code: int = 1) -> NoReturn:
    """Exit with one sentence on standard error."""
    print(escape_controls(f"holdfast: {sentence}"), file=sys.stderr)  # noqa: T201 - the error message of a command
    raise SystemExit(code)
