"""`holdfast chaos` as the tests run it."""

import json
import os
import subprocess
import sys
from typing import Any


def run_chaos(*arguments: str, timeout: float) -> dict[str, Any]:
    """Run `holdfast chaos ARGUMENTS --json` on a shop of its own and return its report; it must exit with 0."""
    done = subprocess.run(
        [sys.executable, "-m", "infrastructure.local", "chaos", *arguments, "--json"],
        env={name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report
