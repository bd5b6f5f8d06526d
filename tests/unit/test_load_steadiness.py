"""A side is warm when two consecutive windows agree, and a report says so or says what still moved."""

import asyncio
from typing import cast

import pytest

from load.bench.processes import MeasuredShop
from load.bench.rounds import BenchContext, Side, SideResult, warm_up
from load.bench.steadiness import Steadiness, Window, describe_windows, has_settled, largest_change, warm_up_sentence
from load.driver_client import Driver

RULE = Steadiness(tolerance=0.1, most_windows=4)


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ({"p50": 10}, {"p50": 10}, ("p50", 0)),
        ({"p50": 10}, {"p50": 8}, ("p50", 0.2)),
        ({"p50": 8}, {"p50": 10}, ("p50", 0.2)),
        ({"p50": 10, "cpu": 4}, {"p50": 9, "cpu": 3}, ("cpu", 0.25)),
        ({"p50": 0}, {"p50": 0}, ("p50", 0)),
        ({"p50": 10}, {"p50": 10, "cpu": 1}, ("cpu", 1)),
        ({}, {}, ("", 0)),
    ],
)
def test_the_largest_change_is_a_share_of_the_larger_value(
    before: Window, after: Window, change: tuple[str, float]
) -> None:
    figure, share = largest_change(before, after)
    assert figure == change[0]
    assert share == pytest.approx(change[1])


def test_one_window_settles_nothing_and_only_the_last_two_count() -> None:
    assert not has_settled([], RULE)
    assert not has_settled([{"p50": 10}], RULE)
    assert has_settled([{"p50": 50}, {"p50": 10}, {"p50": 9.5}], RULE)
    assert not has_settled([{"p50": 10}, {"p50": 10}, {"p50": 8}], RULE)


def test_the_sentence_names_the_side_that_was_not_steady() -> None:
    steady, moving = [{"p50": 10.0}, {"p50": 10.0}], [{"p50": 10.0}, {"p50": 5.0}]
    assert warm_up_sentence({}, RULE) == ""
    good = warm_up_sentence({"a": describe_windows(steady, RULE)}, RULE)
    assert good == "Warm-up: 2 windows of load for each side, until two consecutive ones agreed within 10%."
    bad = warm_up_sentence({"a": describe_windows(steady, RULE), "b": describe_windows(moving, RULE)}, RULE)
    assert bad.endswith("at this bound b was not steady (p50 still changed by 50%).")
    assert "b was not checked" in warm_up_sentence({"b": describe_windows(steady[:1], RULE)}, RULE)


class Cooling:
    """A side whose latency falls window by window to a floor."""

    def __init__(self, order: list[str], name: str, latencies: list[float]) -> None:
        self.order, self.name, self.latencies = order, name, latencies

    async def warm(self) -> Window:
        await asyncio.sleep(0)
        self.order.append(self.name)
        return {"p50": self.latencies.pop(0) if len(self.latencies) > 1 else self.latencies[0]}

    async def measure(self) -> SideResult:
        raise AssertionError("nothing is measured during a warm-up")


def context(*, quick: bool = False) -> BenchContext:
    return BenchContext(cast("MeasuredShop", None), cast("Driver", None), 1.0, quick, lambda _: None)


async def test_every_side_gets_the_same_load_until_the_slowest_is_steady() -> None:
    order: list[str] = []
    sides = {"a": Cooling(order, "a", [10]), "b": Cooling(order, "b", [40, 20, 10])}
    both = {name: Side(side.measure, side.warm) for name, side in sides.items()}
    record = await warm_up("x", {**both, "c": Side(sides["a"].measure)}, context(), RULE)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert {name: (len(each["windows"]), each["steady"]) for name, each in record.items()} == {
        "a": (4, True),
        "b": (4, True),
    }


async def test_a_warm_up_ends_at_its_bound() -> None:
    side = Cooling([], "a", [float(2**power) for power in range(20, 0, -1)])
    record = await warm_up("x", {"a": Side(side.measure, side.warm)}, context(), RULE)
    assert (len(record["a"]["windows"]), record["a"]["steady"]) == (4, False)
    record = await warm_up("x", {"a": Side(side.measure, side.warm)}, context(quick=True), RULE)
    assert len(record["a"]["windows"]) == 1
