"""The checkout experiment: which frames count for which stage, and what they are divided by."""

import pytest

from load.bench.checkout import REACHED_STAGES, STAGES
from load.bench.experiments import CHECKOUT
from load.bench.rounds import OURS


@pytest.mark.parametrize(
    ("status", "stages"),
    [
        ("committed", ["committed"]),
        ("paid", ["committed", "paid"]),
        ("confirmed", ["committed", "paid", "confirmed"]),
        ("delivered", ["committed", "paid", "confirmed"]),
        ("cancelled", []),
    ],
)
def test_a_status_stands_for_all_that_came_before_it(status: str, stages: list[str]) -> None:
    assert list(REACHED_STAGES.get(status, ())) == stages


def test_each_stage_is_divided_by_the_sum_of_its_hops_and_commits() -> None:
    assert [(stage.name, stage.hops, stage.commits) for stage in STAGES] == [
        ("committed", 4, 1),
        ("paid", 6, 5),
        ("confirmed", 8, 7),
    ]
    assert all(stage.commits <= stage.hops for stage in STAGES)
    assert {row.figure for row in CHECKOUT.rows} == {f"{stage.name}_{p}" for stage in STAGES for p in ("p50", "p99")}
    assert all(row.base != OURS for row in CHECKOUT.rows)
