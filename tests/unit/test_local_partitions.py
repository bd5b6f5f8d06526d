"""The number of partitions of a local shop: chosen at its first start, and kept."""

from pathlib import Path

import pytest

from infrastructure.local.errors import UsageError
from infrastructure.local.servers import probes
from infrastructure.local.state import Root
from infrastructure.local.supervision.startup_plan import UpOptions, make_plan


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    for name in ("HTTP_PORT", "KAFKA_PORT", "KAFKA", "POSTGRES_URL", "REDIS_URL", "PROFILE", "PARTITIONS"):
        monkeypatch.delenv(f"HOLDFAST_{name}", raising=False)
    made = Root(tmp_path)
    made.create()
    made.save({"ports": {name: probes.free_port() for name in ("http", "kafka", "postgres", "redis")}})
    return made


def test_a_new_shop_has_24_partitions_or_those_that_are_asked_for(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_plan(root, UpOptions(), print).partitions == 24
    monkeypatch.setenv("HOLDFAST_PARTITIONS", "4")
    assert make_plan(root, UpOptions(), print).partitions == 4


def test_a_shop_keeps_the_number_of_its_first_start(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.save({**root.load(), "partitions": 4})
    assert make_plan(root, UpOptions(), print).partitions == 4
    monkeypatch.setenv("HOLDFAST_PARTITIONS", "8")
    with pytest.raises(UsageError, match="HOLDFAST_PARTITIONS is 8, and the topics of this shop have 4 partitions"):
        make_plan(root, UpOptions(), print)


@pytest.mark.parametrize("number", ["0", "-1", "many", "1001", "4.0", "\uff14"])
def test_a_number_that_is_none_is_refused(root: Root, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("HOLDFAST_PARTITIONS", number)
    with pytest.raises(UsageError, match="HOLDFAST_PARTITIONS must be a number from 1 to 1000"):
        make_plan(root, UpOptions(), print)


def test_more_workers_than_partitions_are_refused(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_PARTITIONS", "4")
    assert make_plan(root, UpOptions(workers={"cart": 4}), print).partitions == 4
    with pytest.raises(UsageError, match="--workers cart=5 is more than the 4 partitions"):
        make_plan(root, UpOptions(workers={"cart": 5}), print)
