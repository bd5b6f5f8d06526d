"""Rates, CPU time and lag that `holdfast top` derives from two samples, and the table that shows them."""

import io
import subprocess
import sys
from typing import Any

import psutil
import pytest
from aiokafka import TopicPartition
from prometheus_client import CollectorRegistry, Counter, generate_latest
from rich.console import Console

from infrastructure.local import processes
from infrastructure.local.commands import consumer_lag, process_stats, top
from infrastructure.local.commands.process_stats import ALL, Counts, Sample, Snapshot
from infrastructure.observability import metrics

PLACES = [TopicPartition("carts", 0), TopicPartition("carts", 1), TopicPartition("stock", 0)]


def test_lag_is_the_number_of_uncommitted_records() -> None:
    end = dict(zip(PLACES, (10, 7, 5), strict=True))
    assert consumer_lag.records_behind(dict(zip(PLACES, (10, 4, 0), strict=True)), {}, end) == {"carts": 3, "stock": 5}


def test_in_a_partition_without_a_commit_every_record_counts() -> None:
    end = dict(zip(PLACES, (10, 7, 5), strict=True))
    first = dict(zip(PLACES, (0, 3, 0), strict=True))
    assert consumer_lag.records_behind({PLACES[0]: 9, PLACES[2]: 5}, first, end) == {"carts": 1 + 4, "stock": 0}


def test_a_commit_after_the_end_was_read_is_not_a_negative_lag() -> None:
    assert consumer_lag.records_behind({PLACES[0]: 12}, {}, {PLACES[0]: 10}) == {"carts": 0}


def test_a_counter_that_fell_was_reset() -> None:
    before = {("records", ALL): 10.0, ("outcomes", "held"): 5.0}
    after = {("records", ALL): 4.0, ("outcomes", "held"): 7.0, ("outcomes", "refused"): 1.0}
    assert process_stats.counter_increases(before, after) == {
        ("records", ALL): 4.0,
        ("outcomes", "held"): 2.0,
        ("outcomes", "refused"): 1.0,
    }


def test_cpu_time_counts_the_processes_that_still_run() -> None:
    before = {(1, 0.5): 10.0, (2, 0.5): 3.0}
    assert process_stats.cpu_seconds_used(before, {(1, 0.5): 10.25, (3, 0.9): 0.5}) == pytest.approx(0.75)
    assert process_stats.cpu_seconds_used(before, {(2, 7.0): 0.125}) == pytest.approx(0.125), (
        "a pid that another process has by now"
    )


def test_the_figures_are_parsed_from_the_services_metrics() -> None:
    """Metrics without a figure are ignored."""
    before = process_stats.parse_counts(generate_latest().decode())
    metrics.OUTCOMES.labels("held", "").inc(2)
    metrics.OUTCOMES.labels("refused", "sold_out").inc()
    metrics.OUTCOMES.labels("refused", "too_many").inc()
    metrics.RECORDS.labels("carts", "add").inc(3)
    metrics.EDGE_OUTCOME_SECONDS.observe(0.25)
    after = process_stats.parse_counts(generate_latest().decode())
    assert before is not None
    assert after is not None
    assert {key: value for key, value in process_stats.counter_increases(before, after).items() if value} == {
        ("outcomes", ALL): 4.0,
        ("outcomes", "held"): 2.0,
        ("outcomes", "refused"): 2.0,
        ("records", ALL): 3.0,
        ("wait", "sum"): pytest.approx(0.25),
        ("wait", "count"): 1.0,
    }


def test_foreign_metrics_have_no_figures_and_a_malformed_page_has_no_counts() -> None:
    registry = CollectorRegistry()
    Counter("foreign", "a metric of another program", registry=registry).inc()
    assert process_stats.parse_counts(generate_latest(registry).decode()) == {}
    assert process_stats.parse_counts("<html>{") is None


def test_a_process_is_found_with_all_its_descendants() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (grandchild,) = psutil.Process(parent.pid).children()
        found = processes.process_trees([parent.pid, 1 << 30])
        assert [process.pid for process in found[parent.pid]] == [parent.pid, grandchild.pid]
        assert found[1 << 30] == []
        assert {pid for pid, _ in processes.cpu_times(found[parent.pid])} == {parent.pid, grandchild.pid}
        parent.communicate(b"\n")


def sample_of(at: float, services: dict[str, tuple[int, float, Counts | None]]) -> Snapshot:
    """Return a sample of processes: pid, seconds of CPU time and counters of each."""
    entries: dict[str, dict[str, Any]] = {
        name: {"state": "ready", "pid": pid, "restarts": 1, "rss_bytes": 3 << 20, "pss_bytes": 3 << 20, "metrics": "m"}
        for name, (pid, _, _) in services.items()
    }
    looks = {
        name: Sample(at, pid, {(pid, 0.0): cpu} if pid else {}, counts) for name, (pid, cpu, counts) in services.items()
    }
    return Snapshot(at, {"http": "http://here", "state": "ready", "services": entries}, looks)


EDGE = {("http_requests", ALL): 100.0, ("http_requests", "200"): 100.0, ("wait", "sum"): 9.0, ("wait", "count"): 30.0}
BEFORE = sample_of(
    50.0,
    {
        "edge": (7, 1.0, EDGE),
        "cart-1": (8, 1.0, {("records", ALL): 20.0}),
        "inventory-1": (9, 1.0, {("records", ALL): 500.0, ("outcomes", ALL): 40.0, ("outcomes", "held"): 40.0}),
        "kafka": (10, 1.0, None),
        "postgres": (0, 0.0, None),
    },
)
AFTER = sample_of(
    52.0,
    {
        "edge": (7, 2.0, EDGE | {("http_requests", ALL): 110.0, ("http_requests", "503"): 10.0, ("sockets", ALL): 3.0}
                 | {("wait", "sum"): 9.4, ("wait", "count"): 34.0}),
        "cart-1": (88, 0.5, {("records", ALL): 30.0}),
        "inventory-1": (9, 1.0, {("records", ALL): 504.0, ("outcomes", ALL): 46.0, ("outcomes", "held"): 46.0}),
        "kafka": (10, 1.25, None),
        "postgres": (0, 0.0, None),
        "sms-1": (11, 1.0, {("records", ALL): 9000.0}),
    },
)  # fmt: skip


def test_two_samples_make_rates_per_second() -> None:
    report = process_stats.compare(BEFORE, AFTER, {"cart": {"carts": 4}})
    assert (report["seconds"], report["lag"], report["sockets"]) == (2.0, {"cart": {"carts": 4}}, 3)
    assert report["rates"]["http_requests"] == {ALL: 5.0, "503": 5.0}
    assert report["rates"]["outcomes"] == {ALL: 3.0, "held": 3.0}
    assert report["rates"]["dead_letters"] == {ALL: 0.0}
    assert report["rates"].keys() == process_stats.RATE_METRICS.keys()
    assert report["outcome_ms"] == pytest.approx(100.0)
    assert {name: entry["cpu_percent"] for name, entry in report["services"].items()} == {
        "edge": 50.0,
        "cart-1": 25.0,
        "inventory-1": 0.0,
        "kafka": 12.5,
        "postgres": None,
        "sms-1": None,
    }


def test_rates_reset_after_restart_and_skip_new_processes() -> None:
    services = process_stats.compare(BEFORE, AFTER, None)["services"]
    assert {name: entry["records"] for name, entry in services.items() if entry["records"] is not None} == {
        "edge": 0.0,
        "cart-1": 15.0,
        "inventory-1": 2.0,
    }
    assert services["cart-1"] | {"cpu_percent": 0, "records": 0} == {
        "state": "ready",
        "pid": 88,
        "restarts": 1,
        "rss_bytes": 3 << 20,
        "pss_bytes": 3 << 20,
        "cpu_percent": 0,
        "records": 0,
    }


def test_a_service_whose_metrics_could_not_be_read_before_has_no_rate() -> None:
    before = sample_of(50.0, {"cart-1": (8, 1.0, None)})
    after = sample_of(51.0, {"cart-1": (8, 1.0, {("records", ALL): 500.0})})
    report = process_stats.compare(before, after, {})
    assert report["services"]["cart-1"]["records"] is None
    assert report["rates"]["records"] == {ALL: 0.0}


def test_one_sample_has_no_rates() -> None:
    report = process_stats.compare(None, AFTER, None)
    assert (report["seconds"], report["rates"], report["lag"], report["outcome_ms"]) == (None, None, None, None)
    assert {entry["cpu_percent"] for entry in report["services"].values()} == {None}


def rendered(report: dict[str, Any], width: int) -> str:
    """Return the table for a terminal of this width, without its padding."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    with console.capture() as captured:
        console.print(top.render({"time": "2026-11-21T08:24:04.325Z", **report}, width))
    return "\n".join(" ".join(line.split()) for line in captured.get().splitlines())


LAG = {"cart": {"carts": 4, "stock": 0}, "sms": {}}


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_shows_every_value(width: int) -> None:
    text = rendered(process_stats.compare(BEFORE, AFTER, LAG), width)
    for line in (
        "08:24:04Z · http://here · ready · 3 sockets · outcomes in 100 ms",
        "edge ready 7 50.0 3 1 0.0",
        "postgres ready - - 3 1 -",
        "all 87.5 18",
        "cart 4 carts 4",
        "sms -",
        "http requests 5.0 503 5.0",
        "outcomes 3.0 held 3.0",
    ):
        assert line in text


def test_unknown_values_are_not_shown_as_zero() -> None:
    text = rendered(process_stats.compare(None, AFTER, None), 80)
    assert "edge ready 7 - 3 1 -" in text
    assert "Kafka does not answer" in text


def test_only_the_largest_parts_are_shown() -> None:
    parts = {f"topic-{number}": number for number in range(9)}
    text = rendered(process_stats.compare(BEFORE, AFTER, {"cart": parts}), 200)
    assert "cart 36 topic-8 8, topic-7 7, topic-6 6, topic-5 5 …" in text
