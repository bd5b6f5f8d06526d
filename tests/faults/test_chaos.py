"""The quick set of faults on a whole shop of real processes: nothing that a shopper was promised is broken."""

import json
import os
import subprocess
import sys

import pytest

from load.chaos.scenarios import QUICK

SEED = 20261121


@pytest.mark.timeout(930)
def test_nothing_is_broken_whatever_is_killed_cut_repeated_or_made_up() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infrastructure.local", "chaos", "--quick", "--seed", str(SEED), "--json"],
        env={name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    told = json.loads(done.stdout)
    assert [each["scenario"] for each in told["scenarios"]] == [scenario.name for scenario in QUICK]
    assert told["never"] == []
    for each in told["scenarios"]:
        assert each["findings"] == []
        assert each["requests"] > 100
