"""A ratio is given only when it can be believed; a knee is found; a page says what the records say."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from load.baselines import bare_hold
from load.baselines.bare_hold import PgbenchError
from load.bench import chart, report
from load.bench.experiments import EXPERIMENTS, GROWTH, LATENCY
from load.bench.inventory_drain import TimedOutcome, _summarize_drain
from load.bench.machine import ProcessMeter, busy_seconds, cpu_seconds, mebibytes_by_name, rss_bytes
from load.bench.rounds import SideResult, compute_ratio, interference_reason
from load.bench.significance import Inconclusive, Pair, Ratio, Spread, compare, knee, next_rate, slope, spread

STEADY = [Pair(20, 10), Pair(22, 11), Pair(27, 9)]


def test_three_steady_pairs_make_a_ratio() -> None:
    assert compare(STEADY) == Ratio(Spread(2.0, 2.0, 3.0), 3, 0)


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([], "0 of 0 pairs"),
        (STEADY[:2], "2 of 2 pairs count, 3 are needed"),
        ([Pair(20, 10), Pair(20, 20), Pair(20, 10)], "the base drifted between 10 and 20"),
        ([Pair(1, 10), Pair(1, 14), Pair(1, 20), Pair(1, 30)], "drifted"),
        ([*STEADY[:2], Pair(27, 9, "the driver itself was late")], "the driver itself was late"),
        ([*STEADY[:2], Pair(27, 0)], "the base is zero"),
    ],
)
def test_a_drifting_or_faulty_run_results_in_a_sentence(pairs: list[Pair], why: str) -> None:
    found = compare(pairs)
    assert isinstance(found, Inconclusive)
    assert "could not be trusted" in found.reason
    assert why in found.reason


def test_a_drifting_pair_is_dropped_when_enough_are_left() -> None:
    found = compare([*STEADY, Pair(20, 40), Pair(1, 10, "late")])
    assert isinstance(found, Ratio)
    assert (found.pairs, found.dropped, found.spread.median) == (3, 2, 2.0)


def test_ours_may_drift_as_it_likes() -> None:
    assert isinstance(compare([Pair(1, 10), Pair(100, 10), Pair(10_000, 10)]), Ratio)


@given(st.floats(min_value=12, max_value=12_000))
def test_the_knee_of_any_shop_is_found_to_a_fifth(true_knee: float) -> None:
    tried: dict[float, bool] = {}
    while (rate := next_rate(tried)) is not None:
        assert rate not in tried
        tried[rate] = rate <= true_knee
    assert len(tried) <= 12
    assert true_knee / 1.2 <= knee(tried) <= true_knee


def test_a_shop_that_never_keeps_up_has_no_knee() -> None:
    tried: dict[float, bool] = {}
    while (rate := next_rate(tried)) is not None:
        tried[rate] = False
    assert knee(tried) == 0


def test_slopes() -> None:
    assert slope([(10, 5), (100, 5), (1000, 5)]) == pytest.approx(0)
    assert slope([(10, 1), (100, 10), (1000, 100)]) == pytest.approx(1)
    assert slope([(10, 1)]) is None
    assert slope([(10, 0), (100, 1)]) is None
    assert spread([]) is None


def record_of(experiment: str, *rounds: dict[str, dict[str, float]], faults: Any = None) -> dict[str, Any]:
    return {
        "experiment": experiment,
        "at": "2026-11-21T09:00:00+00:00",
        "machine": {"cpus": 2, "cpu": "a", "memory_gib": 4.0, "system": "Linux", "python": "3.11"},
        "options": {"rounds": len(rounds), "seconds": 1.0, "quick": False},
        "rounds": [
            {
                "order": [*each],
                "load": [0.1, 0.2],
                "seconds": 1.0,
                "sides": {side: {"figures": values, "faults": faults or {}} for side, values in each.items()},
            }
            for each in rounds
        ],
    }


def three(ours: float, base: float, **more: Any) -> dict[str, Any]:
    one = {"holdfast": {"p50@10": ours, "p50@100": ours}, "bare echo": {"p50@10": base, "p50@100": base}}
    return record_of("latency", one, one, one, **more)


def test_a_row_is_divided_by_its_base() -> None:
    found = compute_ratio(three(9, 3), LATENCY.rows[0])
    assert isinstance(found, Ratio)
    assert found.spread.median == 3
    late = compute_ratio(three(9, 3, faults={"p50@10": "late"}), LATENCY.rows[0])
    assert isinstance(late, Inconclusive)


def test_the_page_has_a_table_a_ratio_or_the_reason_there_is_none(tmp_path: Path) -> None:
    report.save(tmp_path, three(9, 3, faults={"p50@100": "the driver itself was late"}))
    sizes = {f"catalogue_hold@{size}": 50.0 for size in (100, 10_000)}
    report.save(tmp_path, record_of("growth", {"holdfast": sizes}))
    page = report.write(tmp_path).read_text()
    assert "| p50 at 10/s | 9 ms | 3 ms | **3.00** \N{MULTIPLICATION SIGN} bare echo (" in page
    assert "the driver itself was late" in page
    assert "a hold by size of the catalogue 0.00" in page
    for each in (*LATENCY.charts, *GROWTH.charts):
        root = ET.fromstring((tmp_path / each.file).read_text())
        assert root.tag.endswith("svg")
    assert json.loads((tmp_path / "raw" / "latency.json").read_text())["rounds"]


def test_a_page_says_what_the_numbers_mean_for_the_records_that_it_has(tmp_path: Path) -> None:
    assert report.meaning({}) == []
    latency = {"holdfast": {"p50@100": 9.5, "p99@100": 30.0}, "plain FastAPI": {"p50@100": 1.6}}
    report.save(tmp_path, record_of("latency", latency))
    report.save(tmp_path, record_of("start", {"holdfast": {"first_p99": 300.0, "warm_p99": 40.0}}))
    page = report.write(tmp_path).read_text()
    assert "a shopper waits 9.5 ms for the outcome of an add, and one in a hundred waits 30 ms" in page
    assert "answers in 1.6 ms" in page
    assert "p99 is 300 ms instead of 40 ms" in page
    assert "DBOS" not in page
    opponents = {"holdfast": {"p50@100": 8.0, "saturation": 1400.0}, "DBOS": {"p50@100": 11.0, "saturation": 200.0}}
    (beside,) = report.meaning({"opponents": record_of("opponents", opponents)})
    assert beside.startswith("Beside DBOS,")
    assert beside.endswith("8 ms to 11 ms, and the saturated throughput 1,400 to 200 per second.")


def test_a_page_has_a_row_per_process_largest_first(tmp_path: Path) -> None:
    figures = {"up_s": 9.0, "memory.edge": 30.0, "memory.kafka": 200.0, "rest.edge": 3.0, "rest.kafka": 12.0}
    report.save(tmp_path, record_of("start", {"holdfast": figures}))
    page = report.write(tmp_path).read_text()
    assert "| `up` until ready | 9 s |" in page
    kafka, edge = "| kafka | 200 MiB | 12 % of a core | - | - |", "| edge | 30 MiB | 3 % of a core | - | - |"
    assert f"{kafka}\n{edge}\n" in page
    assert "memory.edge" not in page


def test_a_page_says_how_its_sides_were_warmed_up_and_what_drove_them(tmp_path: Path) -> None:
    windows = [{"p50": 3.0}, {"p50": 2.0}]
    record = three(9, 3) | {
        "driver": "SCHED_FIFO 1",
        "skipped": ["DBOS is not installed."],
        "warm_up": {"bare echo": {"windows": windows, "steady": False, "figure": "p50", "change": 0.33}},
    }
    report.save(tmp_path, record)
    page = report.write(tmp_path).read_text()
    assert "bare echo was not steady (p50 still changed by 33%)" in page
    assert "driver: its own process, SCHED_FIFO 1" in page
    assert "DBOS is not installed.\n" in page


def test_the_time_and_memory_of_processes_are_counted_by_name() -> None:
    me = psutil.Process()
    meter = ProcessMeter({"me": [me], "nobody": []})
    began = time.process_time()
    while time.process_time() - began < 0.1:
        pass
    used = meter.milliseconds_per(2)
    assert used["me"] >= 30
    assert used["nobody"] == 0
    assert meter.percent_of_a_core()["me"] > 0
    memory = mebibytes_by_name({"me": [me], "nobody": []})
    assert not memory or (memory["me"] > 1 and memory["nobody"] == 0)


def test_the_summary_for_machines_has_no_ratio_that_cannot_be_trusted() -> None:
    told = report.summary(LATENCY, three(9, 3, faults={"p50@100": "late"}))
    rows = {row["figure"]: row for row in told["rows"]}
    assert rows["p50@10"]["ratio"]["median"] == 3
    assert "ratio" not in rows["p50@100"]
    assert "late" in rows["p50@100"]["untrusted"]


def test_every_experiment_is_about_figures_with_names_of_their_own() -> None:
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name
        assert len({(row.figure, row.base) for row in experiment.rows}) == len(experiment.rows)


def test_values_are_kept_to_five_digits() -> None:
    told = SideResult()
    told.add("a", 1234.5678, "late")
    assert (told.values, told.invalid_reasons) == ({"a": 1234.6}, {"a": "late"})


def test_charts_of_nothing_and_of_odd_names_are_still_pictures() -> None:
    for svg in (
        chart.render_line_chart("a < b & c", "x", "y", {}),
        chart.render_line_chart("t", "x", "y", {"<s>": [(10, Spread(1, 0.5, 2)), (0, Spread(0, 0, 0))]}),
        chart.render_bar_chart("t", "u", {}),
        chart.render_bar_chart("t", "u", {"g": {"a&b": Spread(3, 2, 4)}}),
    ):
        assert ET.fromstring(svg).tag.endswith("svg")


def test_a_busy_machine_cannot_be_measured_on() -> None:
    assert interference_reason(0.0) is None
    assert "other programs used 1000.00 cores" in str(interference_reason(1000.0))


def test_the_processor_time_of_a_child_that_has_ended_still_counts() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    waits = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(flush=True); input()"
    # A tree of its own: that of this process may have servers of other tests, which come and go.
    with subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tree:
        assert tree.stdout is not None
        tree.stdout.readline()
        used = cpu_seconds([tree.pid])
        tree.kill()
    assert 0.29 <= used < 30
    assert rss_bytes([os.getpid()]) > 1_000_000
    assert busy_seconds() > 0


def test_answers_before_the_last_worker_was_ready_do_not_count() -> None:
    answers = [TimedOutcome("held", 100 + second) for second in range(10)]
    one = _summarize_drain(answers, {"held": 10}, begun=99, ready=5, workers=1)
    assert (one.granted, one.seconds, one.first_seconds) == (10, 9, 1)
    two = _summarize_drain(answers, {"held": 10}, begun=99, ready=5, workers=2)
    assert (two.granted, two.seconds) == (6, 5)
    assert two.holds_per_second == pytest.approx(1.2)


async def test_no_password_is_on_the_command_line_of_a_program_that_is_measured(tmp_path: Path) -> None:
    """Every user of the machine can read command lines; environments only their owner."""
    program = tmp_path / "pgbench"
    program.write_text(
        '#!/bin/sh\nfor each in "$@" "PGPASSWORD=$PGPASSWORD" "PGHOST=$PGHOST"; do echo "$each" >&2; done; exit 1\n'
    )
    program.chmod(0o700)
    with pytest.raises(PgbenchError) as caught:
        await bare_hold._run(program, "postgresql://u:pass%2Fword@127.0.0.1:1/d", 1, 1, 1)
    said = str(caught.value)
    assert "PGPASSWORD=pass/word" in said
    assert "postgresql://" not in said.replace("PGPASSWORD=pass/word", "")


@pytest.mark.parametrize("module", ["plain_shop", "echo"])
def test_a_baseline_gets_its_database_by_the_environment(module: str) -> None:
    argv = [sys.executable, "-m", f"load.baselines.{module}", "--help"]
    assert "--postgres" not in subprocess.run(argv, capture_output=True, text=True, check=True).stdout
