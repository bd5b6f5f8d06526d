"""How `holdfast chaos` is called, and what it says when something is broken."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from load.__main__ import app
from load.chaos import command
from load.chaos.checks.coverage import WaitTimes
from load.chaos.checks.money import Balance
from load.chaos.checks.violation import Violation
from load.chaos.faults.context import Fault
from load.chaos.faults.nemesis import FAULTS, inject
from load.chaos.history import NEMESIS, HistoryEntry, HistoryRecorder
from load.chaos.runner import ScenarioResult, scenario_products
from load.chaos.scenarios import QUICK, full_set, scenario_of
from load.chaos.shop_under_test import ShopUnderTest


def test_every_fault_is_listed_with_what_it_does() -> None:
    listed = CliRunner().invoke(app, ["chaos", "--list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(FAULTS)


@pytest.mark.parametrize("arguments", [["--fault", "kill-everybody"], ["--seconds", "20"], ["--seed", "-1"]])
def test_wrong_use_ends_with_two(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["chaos", *arguments]).exit_code == 2


def test_a_failure_shows_the_end_of_the_history_and_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    scenario = scenario_of(["kill-cart", "expire"], 9)
    struck = HistoryEntry(5, NEMESIS, "ok", "kill-cart", value={"victim": "cart-1"})
    findings = (Violation("I1", "MUG at version 7: received 5, held 6, sold 0", ("MUG",)),)
    history, books = Path("/histories/h.jsonl"), Balance(0, 0, 0, 0)
    result = ScenarioResult(scenario, findings, {}, WaitTimes(1, 2, 0.1), 300, 20, 0.5, history, books, (struck,))
    command._print_results([result], 7, 20, away="the shop is gone", as_json=False)
    told = capsys.readouterr()
    assert "holdfast: the shop is gone" in told.err  # earlier findings are printed nevertheless:
    assert "I1: MUG at version 7" in told.err
    assert '"victim": "cart-1"' in told.err
    assert "holdfast chaos --seed 7 --seconds 9 --fault kill-cart --fault expire" in told.err
    assert "Violated: 1 scenarios" in told.out


@pytest.mark.parametrize(
    ("did", "counts"),
    [({}, True), ({"cut": 3}, True), ({"cut": 0}, False), ({"crashed": True, "followed": False}, False)],
)
async def test_a_fault_that_came_to_nothing_has_not_happened(
    did: dict[str, Any], *, counts: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def act(*_: Any) -> dict[str, Any]:
        return did

    monkeypatch.setattr("load.chaos.faults.nemesis.FAULTS", {"crash": Fault("", act)})
    recorder, stage = HistoryRecorder(tmp_path / "h.jsonl"), SimpleNamespace(restarts=lambda: 0)
    scene: Any = SimpleNamespace(recorder=recorder, shop=stage)
    assert await inject("crash", scene) is counts
    recorder.close()
    assert [entry.type for entry in recorder.entries] == ["invoke", "ok" if counts else "info"]


def test_scenarios_of_one_run_share_no_product() -> None:
    for scenarios in (QUICK, full_set(3)):
        codes = [code for scenario in scenarios for code in scenario_products(scenario)]
        assert len(set(codes)) == len(codes)
        assert all(len(code) <= 64 for code in codes)


def test_the_shop_under_test_is_never_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_POSTGRES_URL", "postgresql://somebody.else/production")
    monkeypatch.setenv("HOLDFAST_ROOT", "/somebody/else")
    environment = ShopUnderTest(tmp_path).environment()
    assert "HOLDFAST_POSTGRES_URL" not in environment
    assert environment["HOLDFAST_ROOT"] == str(tmp_path)
