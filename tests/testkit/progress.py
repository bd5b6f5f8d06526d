"""A pytest plugin for long runs: one line per file with its time and what is left, with and without a terminal.

A run starts with how long it took last time, and ends with a command for each failed test that repeats it alone.
Times of earlier runs come from pytest's cache, and in a new clone from `durations.json`, which
`pytest --record-durations` writes. They also put the longest files first, so that two processes end at the same time.
"""

import json
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

RECORDED: Final = Path(__file__).with_name("durations.json")
FILES: Final = "holdfast/files"
"""Key in pytest's cache: seconds of each test file."""
RUNS: Final = "holdfast/runs"
"""Key in pytest's cache: seconds and date of the last whole run, by its arguments."""
UNIT: Final = "tests/unit/"
UNKNOWN_SECONDS: Final = 0.5
"""Guessed for each test of a file that was never timed."""


class Progress:
    """Counts finished tests by file. Active in the process that reports, not in the workers of pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.known = known_seconds(config)
        self.expected: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.began = time.monotonic()
        self.repeat: list[str] = []
        """Node ids of the failed tests, in the order of their failure."""
        self._collected_by_worker = False

    @property
    def processes(self) -> int:
        """Number of processes that run tests."""
        return int(getattr(self.config.option, "numprocesses", None) or 1)

    def expect(self, node_ids: Sequence[str]) -> None:
        """Set the tests of this run."""
        self.expected = Counter(_file(each) for each in node_ids)

    def seconds_left(self) -> float:
        """Estimate the seconds until the end: those of the tests that are not finished, shared by the processes."""
        left = 0.0
        for file, count in self.expected.items():
            whole = self.known.get(file, count * UNKNOWN_SECONDS)
            left += whole * (count - self.finished[file]) / count
        return left / self.processes

    def last_run(self) -> str:
        """Say how long the same run took last time, or how long it is expected to take."""
        last: dict[str, Any] = _cached(self.config, RUNS).get(_arguments(self.config), {})
        if last:
            return f"this run took {_spoken(last['seconds'])} last time ({last['date']})"
        return f"this run takes about {_spoken(self.seconds_left())}, by the times in {RECORDED.name}"

    # ---- pytest's hooks ---------------------------------------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Learn the tests of a run in one process."""
        if session.items:
            self.expect([item.nodeid for item in session.items])
            self._announce()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Learn the tests of a run in several processes; each of them collects the same."""
        if not self._collected_by_worker:
            self._collected_by_worker = True
            self.expect(ids)
            self._announce()

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Print no character for a test: its file gets a line, and its failure another."""
        if report.passed:
            return ("passed" if report.when == "call" else "", "", "")
        if report.failed:
            return ("failed" if report.when == "call" else "error", "", "")
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test; print a line when it was its file's last."""
        file = _file(report.nodeid)
        self.seconds[file] += report.duration
        if report.failed:
            self.failed[file] += 1
            if report.nodeid not in self.repeat:
                self.repeat.append(report.nodeid)
                self._print(f"  FAILED    {report.nodeid} ({report.when})", red=True)
        if report.when == "teardown":
            self.finished[file] += 1
            if self.finished[file] == self.expected[file]:
                self._print(self._line(file), red=bool(self.failed[file]))

    def pytest_terminal_summary(self) -> None:
        """Print the command that repeats each failed test alone."""
        if self.repeat:
            self._print("")
            self._print("Repeat one alone:", bold=True)
            for node_id in self.repeat:
                self._print(f"  .venv/bin/pytest {shlex.quote(node_id)}")

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Remember the times; those of a whole run only when it was one."""
        if not self.expected or self.finished != self.expected:
            return
        seconds = {file: round(taken, 1) for file, taken in self.seconds.items()}
        cache = getattr(self.config, "cache", None)
        if cache is not None:
            cache.set(FILES, {**_cached(self.config, FILES), **seconds})
        if cache is not None and exitstatus == 0:
            run = {"seconds": round(time.monotonic() - self.began), "date": datetime.now(UTC).date().isoformat()}
            cache.set(RUNS, {**_cached(self.config, RUNS), _arguments(self.config): run})
        if self.config.option.record_durations:
            RECORDED.write_text(json.dumps(dict(sorted({**_recorded(), **seconds}.items())), indent=1) + "\n")

    # ---- output -----------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        files = len(self.expected)
        if files > 1:
            self._print(f"{sum(self.expected.values())} tests in {files} files; {self.last_run()}")

    def _line(self, file: str) -> str:
        files = sum(1 for each, count in self.expected.items() if self.finished[each] < count)
        count = self.finished[file]
        what = f"{self.failed[file]} of {count} failed" if self.failed[file] else f"{count} passed"
        left = (
            f"{files} {'file' if files == 1 else 'files'} left, about {_spoken(self.seconds_left())}" if files else ""
        )
        return f"  {what:<16}{self.seconds[file]:7.1f} s  {file:<52}{left}".rstrip()

    def _print(self, line: str, **style: bool) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line, **style)
            reporter.flush()


def known_seconds(config: pytest.Config) -> dict[str, float]:
    """Return the seconds that each test file took last time: on this machine, else where they were recorded."""
    return {**_recorded(), **_cached(config, FILES)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that records times in the repository."""
    parser.addoption("--record-durations", action="store_true", help=f"write each file's seconds to {RECORDED.name}")


def pytest_configure(config: pytest.Config) -> None:
    """Report from the main process only."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config), "holdfast-progress")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the longest files first when several processes share them, after the unit tests.

    A session's fixtures have threads, and Hypothesis refuses to draw while another thread uses `random`.
    """
    if hasattr(config, "workerinput"):
        known = known_seconds(config)
        items.sort(key=lambda item: (not item.nodeid.startswith(UNIT), -known.get(_file(item.nodeid), 0.0)))


def _file(node_id: str) -> str:
    return node_id.partition("::")[0]


def _arguments(config: pytest.Config) -> str:
    return " ".join(config.invocation_params.args)


def _cached(config: pytest.Config, key: str) -> dict[str, Any]:
    cache = getattr(config, "cache", None)  # missing with `-p no:cacheprovider`
    found = cache.get(key, {}) if cache is not None else {}
    return found if isinstance(found, dict) else {}


def _recorded() -> Mapping[str, float]:
    found: dict[str, float] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    return found


def _spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
