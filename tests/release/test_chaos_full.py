"""The full set of faults on a whole shop of real processes: nothing that a shopper was promised is broken."""

import pytest

from tests.testkit.chaos import run_chaos

SEED = 1


@pytest.mark.timeout(2400)
def test_no_invariant_is_broken_in_the_full_set() -> None:
    report = run_chaos("--seed", str(SEED), timeout=2300)
    assert len(report["scenarios"]) > 15
    assert report["never"] == []
    for each in report["scenarios"]:
        assert each["findings"] == []
        assert each["requests"] > 100
