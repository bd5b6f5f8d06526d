"""The open loop's arithmetic, its sockets, and when it says that it can't be believed."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from load.driver import ShopperPool, run_closed_loop, run_open_loop
from load.measurements import ANSWER_TIMEOUT_SECONDS, Histogram, Measurement, driver_invalid_reason, format_measurement
from load.raw_websocket import RawServerConnection
from load.schedule import RequestMix, default_shoppers, send_times, shoppers_needed


def test_constant_arrivals_are_equally_far_apart() -> None:
    assert [*send_times(4, 1.5, "constant", random.random)] == [0, 0.25, 0.5, 0.75, 1.0, 1.25]


def test_random_arrivals_have_the_rate_and_end_in_time() -> None:
    dice = random.Random(1)
    found = [*send_times(100, 50, "poisson", dice.random)]
    assert all(earlier < later for earlier, later in pairwise(found))
    assert min(found) > 0
    assert max(found) < 50
    assert len(found) == pytest.approx(5000, rel=0.05)


@pytest.mark.parametrize(
    ("rate", "seconds", "limit", "needed"),
    [(500, 10, None, 1), (20, 3, 100, 1), (500, 10, 100, 46), (500, 60, 100, 159), (10, 6000, 100, 7)],
)
def test_the_limits_say_how_many_shoppers_it_takes(rate: float, seconds: float, limit: int | None, needed: int) -> None:
    assert shoppers_needed(rate, seconds, limit) == needed
    assert default_shoppers(rate, seconds, limit) >= max(needed, 10)


def test_the_default_shoppers_are_enough_for_a_long_run() -> None:
    """Each may make 100 changes per minute, and none makes more."""
    for rate in (1, 17, 50, 500):
        busiest = rate * 3600 / default_shoppers(rate, 3600, 100)
        assert busiest <= 100 + 100 * 60


def test_a_mixed_basket_stays_small_and_takes_out_what_it_put_in() -> None:
    dice = random.Random(1)
    baskets = RequestMix(2, ["A", "B", "C", "D"], mixed=True, choose=dice.randrange)
    inside: list[str] = []
    for _ in range(100):
        kind, product = baskets.next_request(1)
        if kind == "add":
            inside.append(product)
        else:
            assert product == inside.pop(0)
        assert len(inside) <= RequestMix.MAX_LINES


def test_a_basket_that_only_adds_keeps_to_three_lines() -> None:
    dice = random.Random(1)
    baskets = RequestMix(1, [f"P{n}" for n in range(100)], mixed=False, choose=dice.randrange)
    asked = [baskets.next_request(0) for _ in range(50)]
    assert {kind for kind, _ in asked} == {"add"}
    assert len({product for _, product in asked}) <= RequestMix.MAX_LINES


def test_percentiles_are_those_of_what_was_recorded() -> None:
    histogram = Histogram()
    assert histogram.summary() == {"p50": 0, "p90": 0, "p99": 0, "p999": 0, "max": 0}
    for milliseconds in range(1, 1001):
        histogram.record(milliseconds / 1000)
    told = histogram.summary()
    exact = {"p50": 500, "p90": 900, "p99": 990, "p999": 999, "max": 1000}
    assert told == {name: pytest.approx(value, rel=0.002) for name, value in exact.items()}
    histogram.record(3600)
    assert histogram.summary()["max"] == pytest.approx(60_000, rel=0.002)  # the top of the scale


def test_a_late_or_busy_driver_says_so() -> None:
    assert driver_invalid_reason(0.9, 0.39) is None
    assert "late" in str(driver_invalid_reason(1.1, 0.1))
    assert "busy" in str(driver_invalid_reason(0.1, 0.41))
    measured = Measurement(10, 1, 1, core_share=0.8)
    assert any("not valid" in line for line in format_measurement(measured.as_json()))


class Counter:
    """A small shop of one kind of answer: what to say to a frame, or nothing."""

    def __init__(self, answer: dict[str, Any] | None, every: int = 1) -> None:
        self.answer = answer
        self.every = every
        self.hangs_up = False
        self.heard: list[Mapping[str, Any]] = []

    def hear(self, peer: RawServerConnection, text: bytes) -> None:
        if self.hangs_up:
            peer.close()
            return
        frame = json.loads(text)
        self.heard.append(frame)
        peer.send(json.dumps({"type": "pending", "id": frame["id"]}).encode())
        if self.answer is not None and len(self.heard) % self.every == 0:
            for _ in range(2):  # a frame may come twice
                peer.send(json.dumps({**self.answer, "id": frame["id"]}).encode())


@asynccontextmanager
async def pool_at(shop: Counter, number: int) -> AsyncIterator[ShopperPool]:
    peers: list[RawServerConnection] = []

    def peer() -> RawServerConnection:
        peers.append(RawServerConnection(shop.hear))
        return peers[-1]

    server = await asyncio.get_running_loop().create_server(peer, "127.0.0.1", 0)
    pool = ShopperPool()
    await pool.connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", [{}] * number)
    yield pool
    pool.close()
    for each in peers:
        each.close()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.05)  # the transports' own ends


def adds(number: int) -> RequestMix:
    return RequestMix(number, ["A"], mixed=False, choose=lambda _: 0)


async def test_every_request_is_sent_answered_and_counted_once() -> None:
    shop = Counter({"type": "held"})
    async with pool_at(shop, 3) as pool:
        plan = [*send_times(200, 0.2, "constant", random.random)]
        measured = await run_open_loop(pool, adds(3), plan, rate=200, seconds=0.2)
    assert (measured.sent, measured.outcomes, measured.lost) == (40, {"held": 40}, 0)
    assert len(measured.latency) == len(measured.lateness) == 40
    assert len({frame["id"] for frame in shop.heard}) == 40
    assert measured.as_json()["ok"]


async def test_an_unanswered_request_is_lost_and_counts_as_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("load.driver.ANSWER_TIMEOUT_SECONDS", 0.2)
    async with pool_at(Counter({"type": "held"}, every=2), 1) as pool:
        measured = await run_open_loop(pool, adds(1), [0, 0.01, 0.02, 0.03], rate=100, seconds=0.04)
    assert (measured.outcomes, measured.lost) == ({"held": 2}, 2)
    assert measured.latency.percentile(100) == pytest.approx(200, rel=0.01)
    assert not measured.as_json()["ok"]
    assert ANSWER_TIMEOUT_SECONDS == 10


async def test_errors_are_no_goodput_and_a_refusal_says_why() -> None:
    for answer, name in (
        ({"type": "error", "code": "unavailable"}, "error unavailable"),
        ({"type": "refused", "reason": "out_of_stock"}, "refused out_of_stock"),
    ):
        async with pool_at(Counter(answer), 1) as pool:
            measured = await run_open_loop(pool, adds(1), [0, 0.05], rate=20, seconds=0.2)
        assert measured.outcomes == {name: 2}
        assert measured.answered_in_time == (0 if answer["type"] == "error" else 2)


async def test_a_lost_connection_is_reported_and_its_frames_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("load.driver.ANSWER_TIMEOUT_SECONDS", 0.2)
    shop = Counter(None)
    shop.hangs_up = True
    async with pool_at(shop, 2) as pool:
        measured = await run_open_loop(pool, adds(2), [0, 0.05, 0.1], rate=20, seconds=0.15)
    assert (measured.lost_connections, measured.lost) == (2, 3)
    assert not measured.as_json()["ok"]


async def test_a_closed_loop_never_has_more_in_flight_than_it_may() -> None:
    shop = Counter({"type": "held"})
    async with pool_at(shop, 2) as pool:
        measured = await run_closed_loop(pool, adds(2), in_flight=5, seconds=0.2)
    assert measured.sent == measured.outcomes["held"] > 5
    assert not measured.lost
