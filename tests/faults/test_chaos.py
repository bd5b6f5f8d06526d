"""The quick set of faults on a whole shop of real processes: nothing that a shopper was promised is broken."""

import pytest

from load.chaos.scenarios import QUICK
from tests.testkit.chaos import run_chaos

SEED = 20261121


@pytest.mark.timeout(930)
def test_nothing_is_broken_whatever_is_killed_cut_repeated_or_made_up() -> None:
    report = run_chaos("--quick", "--seed", str(SEED), timeout=900)
    assert [each["scenario"] for each in report["scenarios"]] == [scenario.name for scenario in QUICK]
    assert report["never"] == []
    for each in report["scenarios"]:
        assert each["findings"] == []
        assert each["requests"] > 100
