"""The cache of the broker's classes: written once by a broker that ends by itself, used by the next, never needed."""

import os
import time
from pathlib import Path

import pytest

from infrastructure.local.servers.java_cache import MAX_ATTEMPTS, UNUSED_DAYS, JavaCache

JAVA = """#!/bin/sh
for option; do
  case $option in
    -XX:AOTCache=*) grep -q whole "${option#-XX:AOTCache=}"; exit $? ;;
  esac
done
"""


@pytest.fixture
def java(tmp_path: Path) -> Path:
    """A Java that accepts a cache with the word `whole`."""
    binary = tmp_path / "java/bin/java"
    binary.parent.mkdir(parents=True)
    binary.write_text(JAVA)
    binary.chmod(0o700)
    (tmp_path / "java/release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="25.0.2"\n')
    return binary


def make(java: Path, *options: str) -> JavaCache:
    return JavaCache("broker", [str(java), *options], java.parents[2] / "caches")


def written_file(options: list[str]) -> Path:
    return Path(options[0].removeprefix("-XX:AOTCacheOutput="))


def files(java: Path) -> list[str]:
    return sorted(file.suffix for file in (java.parents[2] / "caches").iterdir())


def test_a_cache_is_written_once_and_used_from_then_on(java: Path) -> None:
    cache = make(java, "-cp", "a.jar")
    written_file(cache.options()).write_text("whole")
    assert cache.is_writing
    cache.keep()
    assert not cache.is_writing
    assert make(java, "-cp", "a.jar").options()[0] == f"-XX:AOTCache={cache.file}"
    assert make(java, "-cp", "b.jar").options()[0].startswith("-XX:AOTCacheOutput="), (
        "another class path, another cache"
    )
    java.write_text(JAVA + "\n")
    assert make(java, "-cp", "a.jar").options()[0].startswith("-XX:AOTCacheOutput="), "another Java"


@pytest.mark.parametrize("content", ["", "cut"])
def test_a_cache_that_java_refuses_is_not_kept(content: str, java: Path) -> None:
    cache = make(java)
    written_file(cache.options()).write_text(content)
    cache.keep()
    assert not cache.file.exists()
    assert files(java) == [".attempts"]


def test_after_two_attempts_no_stop_is_delayed_any_more(java: Path) -> None:
    for _ in range(MAX_ATTEMPTS):
        cache = make(java)
        assert cache.options()
        cache.keep()
    cache = make(java)
    assert cache.options() == []
    assert not cache.is_writing
    cache.keep()


def test_a_restart_after_a_crash_leaves_no_partial_file(java: Path) -> None:
    cache = make(java)
    cache.options()
    cache.options()
    cache.keep()
    assert files(java) == [".attempts"]


@pytest.mark.parametrize("release", ['JAVA_VERSION="24.0.1"\n', "", None])
def test_an_older_or_unknown_java_gets_no_option(release: str | None, java: Path) -> None:
    file = java.parents[1] / "release"
    file.unlink()
    if release is not None:
        file.write_text(release)
    assert make(java).options() == []


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(java: Path) -> None:
    (java.parents[2] / "caches").write_text("a file")
    cache = make(java)
    assert cache.options() == []
    cache.keep()


def test_caches_of_other_versions_are_removed_after_a_month(java: Path) -> None:
    old, young, foreign = (java.parents[2] / "caches" / name for name in ("broker-1.aot", "broker-2.aot", "other.aot"))
    old.parent.mkdir()
    for file in (old, young, foreign):
        file.write_text("whole")
    for file in (old, foreign):
        os.utime(file, (time.time() - (UNUSED_DAYS + 1) * 86_400,) * 2)
    cache = make(java)
    written_file(cache.options()).write_text("whole")
    cache.keep()
    assert cache.file.exists()
    assert [file.exists() for file in (old, young, foreign)] == [False, True, True]
