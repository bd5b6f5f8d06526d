"""Download of Kafka's jars: exactly the files in jgo.lock.toml, each verified against its sha256.

jgo provides the registry's address, and it resolves versions when the lock file is regenerated. It neither verifies
downloads against the lock file nor writes to a temporary name first, so this module downloads the jars itself: a jar
gets its final name only when it is complete and its checksum matches.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import tomllib
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infrastructure.local.errors import ChecksumMismatch, DownloadFailed, StackError, convert_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import requests

LOCK_FILE = Path(__file__).with_name("jgo.lock.toml")
MAX_DOWNLOADS = 8
RETRY_DELAYS = (0.5, 1.0, 2.0)
"""Seconds to wait before each retry of a download."""


@dataclass(frozen=True)
class Jar:
    """One file of the lock file; `path` is its path inside a Maven repository."""

    name: str
    path: str
    sha256: str

    def is_intact(self, repository: Path) -> bool:
        """Return whether the repository has this file with the right checksum."""
        try:
            return _sha256(repository / self.path) == self.sha256
        except FileNotFoundError:
            return False


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_lock_file(lock: Path = LOCK_FILE) -> list[Jar]:
    """Return the jars of a lock file, in file order."""
    jars = []
    for entry in tomllib.loads(lock.read_text())["dependencies"]:
        group, artifact, version = entry["groupId"], entry["artifactId"], entry["version"]
        suffix = f"-{entry['classifier']}" if entry.get("classifier") else ""
        folder = f"{group.replace('.', '/')}/{artifact}/{version}"
        file = f"{artifact}-{version}{suffix}.{entry['packaging']}"
        jars.append(Jar(f"{group}:{artifact}:{version}", f"{folder}/{file}", entry["sha256"]))
    return jars


def maven_repository() -> Path:
    """Return the path of this user's Maven repository, which every Java tool shares."""
    return Path(os.environ.get("M2_REPO") or Path.home() / ".m2/repository").absolute()


def ensure_jars(progress: Callable[[int, int], None] = lambda _done, _total: None) -> list[Path]:
    """Download the jars that are missing or damaged; return the paths of all locked jars.

    `progress(done, total)` counts downloads. It is not called if there is nothing to download.
    Raises `DownloadFailed`, `ChecksumMismatch`, `DiskFull` or `PermissionDenied`.
    """
    folder, jars = maven_repository(), load_lock_file()
    try:
        with ThreadPoolExecutor(MAX_DOWNLOADS) as pool:
            intact = pool.map(lambda jar: jar.is_intact(folder), jars)
            missing = [jar for jar, is_intact in zip(jars, intact, strict=True) if not is_intact]
        if missing:
            _fetch_all(missing, folder, progress)
    except OSError as error:
        raise convert_os_error(error, folder) from error
    return [folder / jar.path for jar in jars]


def jar_paths() -> list[Path]:
    """Return the paths of all locked jars without checking the files; call `ensure_jars` first."""
    return [maven_repository() / jar.path for jar in load_lock_file()]


def _registries() -> list[str]:
    """Return the registries to download from: HOLDFAST_MAVEN_URL (a company's mirror), else jgo's defaults."""
    if mirror := os.environ.get("HOLDFAST_MAVEN_URL"):
        return [mirror.rstrip("/")]
    from jgo.maven import MavenContext

    return [str(url).rstrip("/") for url in MavenContext().remote_repos.values()]


def _fetch_all(jars: Iterable[Jar], folder: Path, progress: Callable[[int, int], None]) -> None:
    """Download the jars, `MAX_DOWNLOADS` at a time; raise the error of the first one that fails."""
    import requests
    from requests.adapters import HTTPAdapter

    jars = list(jars)
    registries = _registries()
    cancelled, counter_lock, done = threading.Event(), threading.Lock(), 0
    progress(0, len(jars))
    with requests.Session() as session, ThreadPoolExecutor(MAX_DOWNLOADS) as pool:
        session.mount("https://", HTTPAdapter(pool_maxsize=MAX_DOWNLOADS))

        def fetch(jar: Jar) -> None:
            nonlocal done
            try:
                _fetch(jar, folder, session, registries, cancelled)
            except BaseException:
                cancelled.set()
                raise
            with counter_lock:
                done += 1
                progress(done, len(jars))

        jobs = [pool.submit(fetch, jar) for jar in jars]
        finished, rest = wait(jobs, return_when=FIRST_EXCEPTION)
        for job in rest:
            job.cancel()
        for job in finished:
            job.result()


def _fetch(
    jar: Jar, folder: Path, session: requests.Session, registries: list[str], cancelled: threading.Event
) -> None:
    """Download one jar with retries; raise the error of the last attempt. Return early if `cancelled` is set."""
    last_error: StackError | None = None
    for pause in (0.0, *RETRY_DELAYS):
        if cancelled.wait(pause):
            return
        for registry in registries:
            try:
                _fetch_once(jar, folder, session, f"{registry}/{jar.path}")
            except StackError as error:
                if isinstance(last_error, ChecksumMismatch) and isinstance(error, ChecksumMismatch):
                    # Damaged twice: the registry or a proxy sends wrong content, so a retry does not help.
                    raise
                last_error = error
            else:
                return
    assert last_error is not None
    raise last_error


def _fetch_once(jar: Jar, folder: Path, session: requests.Session, url: str) -> None:
    import requests

    target = folder / jar.path
    target.parent.mkdir(parents=True, exist_ok=True)
    # The name contains process and thread, so that concurrent `up` commands never write to the same file.
    part = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    digest = hashlib.sha256()
    try:
        with session.get(url, stream=True, timeout=(10, 30)) as answer, part.open("wb") as out:
            answer.raise_for_status()
            for chunk in answer.iter_content(1 << 16):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != jar.sha256:
            raise ChecksumMismatch(
                f"{jar.name} arrived damaged (its sha256 is not the locked one): run `holdfast up` again;"
                " if this repeats, ask the operator of your proxy or Maven mirror"
            )
        part.replace(target)
    except requests.RequestException as error:
        raise _download_error(jar, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _download_error(jar: Jar, error: requests.RequestException) -> StackError:
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        reason, remedy = "its certificate is not trusted", "set REQUESTS_CA_BUNDLE to your network's CA file"
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        reason, remedy = f"the registry answered {error.response.status_code}", "check HOLDFAST_MAVEN_URL or your proxy"
    elif isinstance(error, requests.exceptions.ProxyError):
        reason, remedy = "the proxy does not answer", "check HTTPS_PROXY"
    else:
        reason, remedy = "no network", "check the connection or your proxy settings"
    return DownloadFailed(
        f"cannot download {jar.name} ({reason}): {remedy}, then run `holdfast up` again; finished downloads are kept"
    )


def remove_partial_downloads(repository: Path | None = None, min_age: float = 3600.0) -> None:
    """Remove partial files of interrupted downloads from the folders of the locked jars."""
    repository = repository or maven_repository()
    for folder in {(repository / jar.path).parent for jar in load_lock_file()}:
        for part in folder.glob(".*.part"):
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > min_age:
                    part.unlink()
