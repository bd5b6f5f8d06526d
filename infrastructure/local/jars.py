"""Kafka's jars: the exact files that jgo.lock.toml names, each checked against its sha256.

jgo knows the registry's address and resolves versions when the lock is made anew. It does not check
what it downloads against the lock, and it writes straight to the final name, so that is done here:
a jar appears under its name only when it is whole and the right one.
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

from infrastructure.local.errors import DamagedJar, Fault, NoNetwork, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import requests

LOCK = Path(__file__).with_name("jgo.lock.toml")
THREADS = 8
PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each further attempt at one jar."""


@dataclass(frozen=True)
class Jar:
    """One file of the lock; `place` is its path inside a Maven repository."""

    name: str
    place: str
    sha256: str

    def whole(self, repository: Path) -> bool:
        """Whether the repository has exactly this file."""
        try:
            return _sha256(repository / self.place) == self.sha256
        except FileNotFoundError:
            return False


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def locked(lock: Path = LOCK) -> list[Jar]:
    """The jars of a lock, in its order."""
    jars = []
    for entry in tomllib.loads(lock.read_text())["dependencies"]:
        group, artifact, version = entry["groupId"], entry["artifactId"], entry["version"]
        tail = f"-{entry['classifier']}" if entry.get("classifier") else ""
        folder = f"{group.replace('.', '/')}/{artifact}/{version}"
        file = f"{artifact}-{version}{tail}.{entry['packaging']}"
        jars.append(Jar(f"{group}:{artifact}:{version}", f"{folder}/{file}", entry["sha256"]))
    return jars


def repository() -> Path:
    """The Maven repository of this user, shared with every other Java tool."""
    return Path(os.environ.get("M2_REPO") or Path.home() / ".m2/repository").absolute()


def classpath(progress: Callable[[int, int], None] = lambda _done, _total: None) -> list[Path]:
    """Paths of all locked jars; fetches what is absent or damaged.

    `progress(done, total)` counts the jars to fetch and is not called when all are there.
    Raises NoNetwork, DamagedJar, DiskFull or NoRight.
    """
    place, jars = repository(), locked()
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda jar: jar.whole(place), jars)
            absent = [jar for jar, whole in zip(jars, found, strict=True) if not whole]
        if absent:
            _fetch_all(absent, place, progress)
    except OSError as error:
        raise explain(error, place) from error
    return [place / jar.place for jar in jars]


def paths() -> list[Path]:
    """The same paths without a look at the files: for who has just called `classpath`."""
    return [repository() / jar.place for jar in locked()]


def _registries() -> list[str]:
    """Where to fetch from: HOLDFAST_MAVEN_URL (a company's mirror), else what jgo has as its default."""
    if mirror := os.environ.get("HOLDFAST_MAVEN_URL"):
        return [mirror.rstrip("/")]
    from jgo.maven import MavenContext

    return [str(url).rstrip("/") for url in MavenContext().remote_repos.values()]


def _fetch_all(jars: Iterable[Jar], place: Path, progress: Callable[[int, int], None]) -> None:
    """Bring the jars, eight at a time; the first one that cannot be had ends it."""
    import requests
    from requests.adapters import HTTPAdapter

    jars = list(jars)
    registries = _registries()
    give_up, counted, done = threading.Event(), threading.Lock(), 0
    progress(0, len(jars))
    with requests.Session() as session, ThreadPoolExecutor(THREADS) as pool:
        session.mount("https://", HTTPAdapter(pool_maxsize=THREADS))

        def bring(jar: Jar) -> None:
            nonlocal done
            try:
                _fetch(jar, place, session, registries, give_up)
            except BaseException:
                give_up.set()
                raise
            with counted:
                done += 1
                progress(done, len(jars))

        jobs = [pool.submit(bring, jar) for jar in jars]
        finished, rest = wait(jobs, return_when=FIRST_EXCEPTION)
        for job in rest:
            job.cancel()
        for job in finished:
            job.result()


def _fetch(jar: Jar, place: Path, session: requests.Session, registries: list[str], give_up: threading.Event) -> None:
    """Bring one jar, trying again after a moment; raises the last fault."""
    fault: Fault | None = None
    for pause in (0.0, *PAUSES):
        if give_up.wait(pause):
            return
        for registry in registries:
            try:
                _fetch_once(jar, place, session, f"{registry}/{jar.place}")
            except Fault as error:
                if isinstance(fault, DamagedJar) and isinstance(error, DamagedJar):
                    # Twice the same rubbish is no accident of the line.
                    raise
                fault = error
            else:
                return
    assert fault is not None
    raise fault


def _fetch_once(jar: Jar, place: Path, session: requests.Session, url: str) -> None:
    import requests

    target = place / jar.place
    target.parent.mkdir(parents=True, exist_ok=True)
    # The process and thread in its name: two `up` at once must not write into one file.
    part = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    digest = hashlib.sha256()
    try:
        with session.get(url, stream=True, timeout=(10, 30)) as answer, part.open("wb") as out:
            answer.raise_for_status()
            for chunk in answer.iter_content(1 << 16):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != jar.sha256:
            raise DamagedJar(
                f"{jar.name} arrived damaged (its sha256 is not the locked one): run `holdfast up` again,"
                " and if it stays so, ask whoever runs your proxy or Maven mirror"
            )
        part.replace(target)
    except requests.RequestException as error:
        raise _network_fault(jar, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _network_fault(jar: Jar, error: requests.RequestException) -> Fault:
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        why, remedy = "its certificate is not trusted", "set REQUESTS_CA_BUNDLE to your network's CA file"
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        why, remedy = f"the registry answered {error.response.status_code}", "check HOLDFAST_MAVEN_URL or your proxy"
    elif isinstance(error, requests.exceptions.ProxyError):
        why, remedy = "the proxy does not answer", "check HTTPS_PROXY"
    else:
        why, remedy = "no network", "check the connection or your proxy settings"
    return NoNetwork(
        f"cannot download {jar.name} ({why}): {remedy}, then run `holdfast up` again; it goes on where it was"
    )


def sweep(place: Path | None = None, older_than: float = 3600.0) -> None:
    """Remove what interrupted downloads left beside the locked jars."""
    place = place or repository()
    for folder in {(place / jar.place).parent for jar in locked()}:
        for part in folder.glob(".*.part"):
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > older_than:
                    part.unlink()
