"""The observed state of a shop at rest is complete and exact: lag, locks, carts, responses, dead letters."""

import importlib
import inspect
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from aiokafka import TopicPartition

from infrastructure.local.supervision.services import SERVICE_TYPES
from load.chaos import collect, runner
from load.chaos.checks.checker import check_monotonic_reads
from load.chaos.checks.observed_state import CartView
from load.chaos.clients.checkouts import assign_cards
from load.chaos.clients.recording_client import RecordingClient
from load.chaos.faults import records
from load.chaos.history import HistoryRecorder
from load.chaos.scenarios import Scenario
from load.chaos.shop_under_test import ShopUnderTest
from load.http_client import Guest

# ---- lag ------------------------------------------------------------------------------------------------------------

REQUESTS, DECISIONS = TopicPartition("cart.requests.v1", 3), TopicPartition("inventory.responses.v1", 3)


@pytest.mark.parametrize(
    ("committed", "first", "waiting"),
    [
        ({REQUESTS: 7, DECISIONS: 2}, 0, {}),
        ({REQUESTS: 5, DECISIONS: 2}, 0, {"cart of cart.requests.v1": 2}),
        ({REQUESTS: 7}, 0, {"cart of inventory.responses.v1": 2}),
        ({}, 0, {"cart of cart.requests.v1": 7, "cart of inventory.responses.v1": 2}),
        ({REQUESTS: 1, DECISIONS: 2}, 4, {"cart of cart.requests.v1": 3}),
        ({REQUESTS: -1, DECISIONS: 2}, 7, {}),
    ],
    ids=["all read", "some not", "never any of a topic", "never anything", "some are gone", "all are gone"],
)
def test_records_without_a_committed_offset_are_unread(
    committed: dict[TopicPartition, int], first: int, waiting: dict[str, int]
) -> None:
    others = TopicPartition("orders.requests.v1", 3)
    end = {REQUESTS: 7, DECISIONS: 2, others: 9}
    assert collect.unread_records("cart", committed, {REQUESTS: first, DECISIONS: 0, others: 0}, end) == waiting


async def test_the_groups_read_what_their_services_are_built_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, set[str]] = {}

    def built(_: Any, service: str, *, topics: Any, fetch_interval: float = 0.0) -> MagicMock:
        worker = MagicMock(run=_nothing)
        worker.add_agent = lambda handler: found.setdefault(service, set()).add(handler.topic.name)
        return worker

    monkeypatch.setattr("infrastructure.messaging.worker.Worker", built)
    for kind in SERVICE_TYPES:
        main = importlib.import_module(f"{kind.module}.__main__")
        if not re.search(r"\bWorker\(", inspect.getsource(main)):
            continue
        monkeypatch.setattr(main, "migrate", _nothing, raising=False)
        begin = getattr(main, "build_app", main.run)
        given = [main.Settings(), None][: len(inspect.signature(begin).parameters)]
        if begin is main.run:
            await begin(*given)
        else:
            begin(*given)
    assert found == {group: set(topics) for group, topics in collect.GROUP_TOPICS.items()}


async def _nothing(*_: Any) -> int:
    return 0


# ---- locks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lived", "later", "left"),
    [(900, None, False), (900, b"another", False), (900, b"me", True), (-1, None, True), (-2, None, False)],
    ids=["it was let go", "the next one has it", "nobody lets it go", "it has no end", "it was gone at once"],
)
def test_a_lock_in_use_is_not_left_over(lived: int, later: bytes | None, left: bool) -> None:
    owner = None if lived == -2 else b"me"
    assert collect.stale_locks({"lock:MUG": (owner, lived)}, {"lock:MUG": later}) == (["lock:MUG"] if left else [])


# ---- topics ---------------------------------------------------------------------------------------------------------


def record(topic: str, value: bytes, key: bytes = b"ann", offset: int = 5) -> Any:
    return SimpleNamespace(topic=topic, partition=3, offset=offset, key=key, value=value)


def test_an_undecodable_response_is_found() -> None:
    good = json.dumps(records.foreign_event("ann", "cart.held")).encode()
    kept = [
        *(record(topic, good) for topic in records.TOPICS),
        *(record(topic, records.DEEPLY_NESTED) for topic in records.RESPONSES),  # which was put there on purpose
        record(records.REQUESTS[0], b"hello"),  # which any client may write
    ]
    assert collect.undecodable_responses(kept) == []
    bad = [record(records.RESPONSES[1], b"hello"), record(records.RESPONSES[0], good, b"bob", 6)]
    assert collect.undecodable_responses([*kept, *bad]) == ["cart.responses.v1 3/5", "inventory.responses.v1 3/6"]


def test_all_that_is_put_on_topics_of_responses_is_known() -> None:
    planted = [value for topic, _, _, value in records.poison_records("ann") if topic in records.RESPONSES]
    assert planted == [records.DEEPLY_NESTED]


async def test_dead_letters_of_an_earlier_scenario_are_not_this_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = [{"data": {"topic": "cart.requests.v1", "partition": 3, "offset": offset}} for offset in (4, 5)]

    async def kept(*_: Any) -> list[Any]:
        return [record("cart.requests.v1.dlq", json.dumps(letter).encode()) for letter in letters]

    monkeypatch.setattr(records, "read_records", kept)
    settings: Any = None
    assert await collect.read_dead_letters(settings, {}, {REQUESTS: 5}) == {("cart.requests.v1", 3, 5)}


# ---- what a client shows --------------------------------------------------------------------------------------------


@pytest.fixture
def recorder(tmp_path: Path) -> Any:
    recorder = HistoryRecorder(tmp_path / "history.jsonl")
    yield recorder
    recorder.close()


def witness(recorder: HistoryRecorder) -> RecordingClient:
    shop: Any = None
    return RecordingClient(
        "shopper-1", shop, Guest("ann", "token", ""), recorder, random.Random(1), assign_cards(random.Random(1))
    )


def hear(ann: RecordingClient, frame: dict[str, Any]) -> None:
    ann.shopper.state.apply(frame)
    ann._on_frame(frame)


@pytest.mark.parametrize(("version", "right"), [(3, True), (4, True), (2, False)])
def test_a_requested_cart_must_agree_with_earlier_outcomes(
    version: int, right: bool, recorder: HistoryRecorder
) -> None:
    ann = witness(recorder)
    hear(ann, {"type": "welcome", "session": "s1"})
    hear(ann, {"type": "held", "id": "tab-2", "product": "MUG", "quantity": 1, "line_quantity": 1, "version": 3})
    asked = recorder.entries[-1]
    assert (asked.type, asked.f) == ("invoke", "cart")
    hear(ann, {"type": "cart", "id": asked.id, "version": version, "lines": []})
    assert (list(check_monotonic_reads(recorder.entries)) == []) is right
    assert ann.cart_view.version == version


async def test_the_view_of_a_client_is_copied_before_its_request(
    monkeypatch: pytest.MonkeyPatch, recorder: HistoryRecorder
) -> None:
    stage: Any = None
    ann = witness(recorder)
    play = runner._ScenarioRun(stage, Scenario("calm", ()), 1, recorder, lambda _: None)
    looks: list[int] = []

    async def held(*_: Any) -> dict[str, CartView]:
        looks.append(len(looks))
        if len(looks) == 2:
            hear(ann, {"type": "cart", "version": 4, "lines": [{"product": "MUG", "quantity": 2}]})
        return {"ann": CartView(4, {"MUG": 2})}

    monkeypatch.setattr(collect, "read_carts", held)
    assert await play._wait_for_views([ann]) == {"ann": CartView(4, {"MUG": 2})}
    assert len(looks) == 2  # at the first it was not sent yet
    hear(ann, {"type": "cart", "version": 5, "lines": []})
    monkeypatch.setattr(runner, "VIEW_TIMEOUT_SECONDS", 0.3)
    assert await play._wait_for_views([ann]) == {"ann": CartView(5)}  # it never becomes what is held
    assert not [entry for entry in recorder.entries if entry.type == "invoke"]


# ---- rest -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("busy", "looks"),
    [([False, False], 1), ([False, True, False, False], 2), ([True, True, False, False], 3)],
    ids=["nothing goes on", "something ended before the lag was known", "something goes on"],
)
async def test_a_shop_is_at_rest_when_nothing_goes_on_before_and_after_the_look_at_its_lag(
    busy: list[bool], looks: int, monkeypatch: pytest.MonkeyPatch, recorder: HistoryRecorder
) -> None:
    stage: Any = None
    play = runner._ScenarioRun(stage, Scenario("calm", ()), 1, recorder, lambda _: None)
    looked = []

    async def restless() -> str:
        looked.append("lag")
        return ""

    async def going_on(*_: Any) -> bool:
        return busy.pop(0)

    monkeypatch.setattr(play, "_unrest_reason", restless)
    monkeypatch.setattr(play, "_is_busy", going_on)
    rested, _ = await play._wait_until_quiescent([])
    assert rested is not None
    assert (len(looked), busy) == (looks, [])


# ---- replays and audits ---------------------------------------------------------------------------------------------


async def test_an_unread_replay_is_reported(monkeypatch: pytest.MonkeyPatch, recorder: HistoryRecorder) -> None:
    async def digest(*_: Any) -> tuple[list[str], str]:
        return [], "d"

    async def fed_back(*_: Any) -> int:
        return 300

    async def restless(*_: Any) -> tuple[float | None, str]:
        return None, "7 by cart of cart.requests.v1"

    stage: Any = SimpleNamespace(audit=digest, settings=None)
    play = runner._ScenarioRun(stage, Scenario("again", (), replays_records=True), 1, recorder, lambda _: None)
    monkeypatch.setattr(records, "replay_records", fed_back)
    monkeypatch.setattr(play, "_wait_until_quiescent", restless)
    scene: Any = SimpleNamespace(since={}, clients=[])
    replay = await play._replay_records(scene)
    assert (replay.records, replay.digest_before, replay.rest_seconds) == (300, "d", None)
    assert replay.unrest_reason == "7 by cart of cart.requests.v1"


@pytest.mark.parametrize(("faults", "grace"), [(("kill-cart",), "2"), (("freeze-cart",), None)])
async def test_the_last_audit_is_in_no_hurry_only_after_zombies(
    faults: tuple[str, ...],
    grace: str | None,
    monkeypatch: pytest.MonkeyPatch,
    recorder: HistoryRecorder,
    tmp_path: Path,
) -> None:
    given = {}

    async def holdfast(*_: Any, extra_environment: dict[str, str]) -> tuple[int, str]:
        given.update(extra_environment)
        return 0, json.dumps({"violations": [], "digest": "d"})

    stage = ShopUnderTest(tmp_path)
    monkeypatch.setattr(stage, "run_holdfast", holdfast)
    play = runner._ScenarioRun(stage, Scenario("one", faults), 1, recorder, lambda _: None)
    assert await stage.audit(play._audit_grace()) == ([], "d")
    assert given.get("HOLDFAST_AUDIT_GRACE_SECONDS") == grace
