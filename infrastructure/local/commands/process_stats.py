"""Measurements of a running shop: a sample of every process, and rates between two samples."""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import psutil
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from infrastructure.local import processes
from infrastructure.local.commands import output
from infrastructure.local.commands.consumer_lag import Lag
from infrastructure.local.servers import probes
from infrastructure.local.state import Root
from infrastructure.observability import metrics

ALL: Final = "all"
Counts = Mapping[tuple[str, str], float]
"""Sums of one process's counters, by figure and by the value of its label; `ALL` is the sum over all values."""
CpuTimes = Mapping[tuple[int, float], float]
"""Seconds of CPU time, by pid and creation time of the process."""


def _metric_name(metric: Counter | Gauge | Histogram) -> str:
    """Return a metric's name as the parser of `/metrics` has it, without a counter's `_total`."""
    return str(next(iter(metric.describe())).name)


@dataclass(frozen=True)
class RateMetric:
    """Counter whose rate is reported."""

    metric: Counter
    label: str = ""
    """Label by which the rate is broken down; empty: not at all."""


RATE_METRICS: Final = {
    "http_requests": RateMetric(metrics.EDGE_REQUESTS, "status"),
    "frames_in": RateMetric(metrics.EDGE_FRAMES_IN),
    "frames_out": RateMetric(metrics.EDGE_FRAMES_OUT),
    "records": RateMetric(metrics.RECORDS),
    "outcomes": RateMetric(metrics.OUTCOMES, "outcome"),
    "order_events": RateMetric(metrics.ORDER_EVENTS, "event"),
    "notices": RateMetric(metrics.NOTICES, "status"),
    "retries": RateMetric(metrics.RETRIES, "error"),
    "dead_letters": RateMetric(metrics.DEAD_LETTERS, "reason"),
}
_COUNTERS: Final = {_metric_name(figure.metric): (name, figure.label) for name, figure in RATE_METRICS.items()}
_WAIT: Final = _metric_name(metrics.EDGE_OUTCOME_SECONDS)
_SOCKETS: Final = _metric_name(metrics.EDGE_SOCKETS)


@dataclass(frozen=True)
class Sample:
    """Sample of one process."""

    at: float
    """Time of the sample, in seconds of the monotonic clock."""
    pid: int
    cpu: CpuTimes
    counts: Counts | None
    """Sums of the counters; `None` if `/metrics` could not be read."""


@dataclass(frozen=True)
class Snapshot:
    """Samples of all processes of a shop."""

    at: float
    """Time of the first sample, in seconds of the monotonic clock."""
    status: dict[str, Any]
    """Object that `holdfast status --json` prints."""
    samples: Mapping[str, Sample]
    """Samples by the name of the process."""


def take_snapshot(root: Root) -> Snapshot | None:
    """Sample all processes of a shop; return `None` if no shop has ever run in this root directory.

    The processes are sampled in parallel: any number of frozen ones delays the result by one second.
    """
    started, status = time.monotonic(), output.status(root)
    if status is None:
        return None
    services: dict[str, dict[str, Any]] = status["services"]
    families = processes.process_trees(entry["pid"] for entry in services.values() if entry["pid"])
    with ThreadPoolExecutor(max(1, len(services))) as pool:
        samples = list(pool.map(lambda entry: _take_sample(entry, families.get(entry["pid"], [])), services.values()))
    return Snapshot(started, status, dict(zip(services, samples, strict=True)))


def _take_sample(entry: Mapping[str, Any], family: Iterable[psutil.Process]) -> Sample:
    text = probes.get_page(entry["metrics"]) if entry["metrics"] else None
    at, cpu = time.monotonic(), processes.cpu_times(family)
    return Sample(at, entry["pid"], cpu, None if text is None else parse_counts(text))


def parse_counts(text: str) -> Counts | None:
    """Return the sums of figures, open sockets and waiting times on a page of metrics; `None` if it is malformed."""
    sums: dict[tuple[str, str], float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                for key in _keys(family.name, sample.name, sample.labels):
                    sums[key] = sums.get(key, 0.0) + sample.value
    except ValueError:
        return None
    return sums


def _keys(family: str, sample: str, labels: Mapping[str, str]) -> list[tuple[str, str]]:
    if family == _WAIT and sample.endswith(("_sum", "_count")):
        return [("wait", sample.rpartition("_")[2])]
    if family == _SOCKETS:
        return [("sockets", ALL)]
    name, by = _COUNTERS.get(family, ("", ""))
    if not name:
        return []
    return [(name, ALL), (name, labels[by])] if by in labels else [(name, ALL)]


def compare(before: Snapshot | None, after: Snapshot, lag: Lag | None) -> dict[str, Any]:
    """Return the object that `holdfast top --json` prints, without its time: the state, and rates since `before`.

    Unknown values are `None`: every rate if `before` is `None`, and the lag if the broker does not answer.
    """
    services: dict[str, dict[str, Any]] = {}
    gains: list[Counts] = []
    for name, entry in after.status["services"].items():
        now, then = after.samples[name], before.samples.get(name) if before else None
        described = {key: entry.get(key) for key in ("state", "pid", "restarts", "rss_bytes", "pss_bytes")}
        services[name] = described | {"cpu_percent": None, "records": None}
        if then is None:
            continue
        seconds = now.at - then.at
        if now.pid and then.cpu:
            services[name]["cpu_percent"] = round(100 * cpu_seconds_used(then.cpu, now.cpu) / seconds, 1)
        same = now.pid == then.pid
        if now.counts is not None and (then.counts is not None or not same):
            rates = {
                key: value / seconds
                for key, value in counter_increases(then.counts if same else {}, now.counts).items()
            }
            services[name]["records"] = round(rates.get(("records", ALL), 0.0), 2)
            gains.append(rates)
    return {
        "seconds": round(after.at - before.at, 3) if before else None,
        "http": after.status["http"],
        "state": after.status["state"],
        "services": services,
        "lag": lag,
        "rates": _rates(gains) if before else None,
        "sockets": int(
            sum(sample.counts.get(("sockets", ALL), 0) for sample in after.samples.values() if sample.counts)
        ),
        "outcome_ms": _mean_wait_ms(gains),
    }


def cpu_seconds_used(before: CpuTimes, after: CpuTimes) -> float:
    """Return the CPU seconds used between two samples; new processes count from 0, ended ones are ignored."""
    return sum(max(0.0, seconds - before.get(process, 0.0)) for process, seconds in after.items())


def counter_increases(before: Counts | None, after: Counts) -> dict[tuple[str, str], float]:
    """Return the increase of each counter; a counter that fell was reset and counts from 0."""
    before = before or {}
    return {
        key: value - earlier if value >= (earlier := before.get(key, 0.0)) else value for key, value in after.items()
    }


def _rates(gains: Iterable[Counts]) -> dict[str, dict[str, float]]:
    """Return the rates of all figures, each with the label values that increased."""
    sums: dict[str, dict[str, float]] = {name: {ALL: 0.0} for name in RATE_METRICS}
    for each in gains:
        for (name, part), value in each.items():
            if name in sums and (value or part == ALL):
                sums[name][part] = sums[name].get(part, 0.0) + value
    return {name: {part: round(value, 2) for part, value in parts.items()} for name, parts in sums.items()}


def _mean_wait_ms(gains: Iterable[Counts]) -> float | None:
    """Return the mean milliseconds from a request's acceptance to its outcome at the edge; `None` without outcomes."""
    gains = list(gains)
    count = sum(each.get(("wait", "count"), 0.0) for each in gains)
    seconds = sum(each.get(("wait", "sum"), 0.0) for each in gains)
    return round(1000 * seconds / count, 1) if count else None
