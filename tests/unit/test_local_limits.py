"""The limits that `holdfast status` prints are those that the edge applies."""

import json
from pathlib import Path
from typing import Any

import pytest

from infrastructure.local.commands import output
from infrastructure.local.state import Root
from infrastructure.local.supervision import limits
from infrastructure.local.supervision.limits import LIMITS
from rest_api.settings import EdgeSettings

DEFAULTS = {name: limit.default for name, limit in LIMITS.items()}


def test_the_limits_equal_the_edges_settings() -> None:
    fields = {
        f"HOLDFAST_{name.upper()}": (field.default, field.description)
        for name, field in EdgeSettings.model_fields.items()
        if name.startswith("limit_")
    }
    assert {name: (limit.default, limit.description) for name, limit in LIMITS.items()} == fields


def test_a_limit_is_its_setting_else_its_default() -> None:
    assert limits.effective_limits({}, lifted=False) == DEFAULTS
    settings = {"HOLDFAST_LIMIT_SOCKETS": "9", f"{limits.PREFIX}UNKNOWN": "1"}
    assert limits.effective_limits(settings, lifted=False) == DEFAULTS | {"HOLDFAST_LIMIT_SOCKETS": 9}


def test_lifted_limits_have_no_value_except_the_one_that_always_applies() -> None:
    assert limits.effective_limits({"HOLDFAST_LIMIT_SOCKETS": "9"}, lifted=True) == {
        **dict.fromkeys(LIMITS),
        "HOLDFAST_LIMIT_UNDER_WAY": 1024,
    }


@pytest.mark.parametrize("value", ["7", " 7 ", "1_000"])
def test_a_number_is_parsed_as_the_edge_parses_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("holdfast_limit_Changes", value)
    settings = limits.limits_set({"holdfast_limit_Changes": value, "HOLDFAST_LIMITS": "on", "HOME": "/"})
    assert list(settings) == ["HOLDFAST_LIMIT_CHANGES"]
    assert limits.effective_limits(settings, lifted=False)["HOLDFAST_LIMIT_CHANGES"] == EdgeSettings().limit_changes


def recorded_status(root: Root, limit: str, *services: str) -> dict[str, Any]:
    """Return the `status` of a shop whose supervisor has recorded these services and limits."""
    entry = {"state": "ready", "pid": 0, "restarts": 0, "metrics": None}
    root.create()
    addresses = {"http": "http://127.0.0.1:1", "kafka": "k:2", "postgres": "postgresql://p", "redis": "redis://r"}
    known = {"state": "ready", "supervisor": 1, "limits": limit, "limit_settings": {"HOLDFAST_LIMIT_OTHERS": "60"}}
    root.save({**addresses, **known, "services": dict.fromkeys(services, entry)})
    with root.acquire_lock():
        content = output.status(root)
    assert content is not None
    return content


def test_status_shows_every_limit_of_a_shop_with_an_edge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = recorded_status(Root(tmp_path), "on", "edge", "cart-1")
    assert json.loads(json.dumps(content))["limit_settings"] == DEFAULTS | {"HOLDFAST_LIMIT_OTHERS": 60}
    output.print_status(content)
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if "_LIMIT_" in line}
    assert lines == {name: str(value) for name, value in content["limit_settings"].items()}


def test_status_shows_lifted_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_status(recorded_status(Root(tmp_path), "off", "edge"))
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if "_LIMIT_" in line]
    assert [name for name, value in lines if value != "lifted"] == ["HOLDFAST_LIMIT_UNDER_WAY"]


def test_a_shop_without_an_edge_has_no_limits(tmp_path: Path) -> None:
    assert recorded_status(Root(tmp_path), "on", "cart-1")["limit_settings"] == {}
