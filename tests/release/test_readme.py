"""Every command of the README, unchanged, in a clean clone; `make up` and `make test` come first."""

import json
import os
import re
import subprocess
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
FIRST_MINUTE = [command for command in COMMANDS if not command.startswith("make")]


def test_the_readme_begins_with_the_two_commands() -> None:
    assert COMMANDS[:2] == ["make up", "make test"]


@pytest.mark.timeout(500)
def test_the_readmes_first_minute_works_in_a_clean_clone(tmp_path: Path) -> None:
    """`make up`, and then all commands in one shell, in their order, as in a new clone."""
    clone = tmp_path / "holdfast"
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST", "VIRTUAL", "PYTHON"))
    }
    make = ["make", "-C", str(clone), "--no-print-directory"]
    up = subprocess.run([*make, "up", "DETACH=1"], env=clean, capture_output=True, text=True, timeout=300, check=False)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        elsewhere = {**clean, "HOLDFAST_ROOT": str(clone / ".holdfast")}
        holdfast = str(clone / ".venv/bin/holdfast")
        status = subprocess.run(
            [holdfast, "status", "--json"], env=elsewhere, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        url = json.loads(status.stdout)["http"]
        assert "Holdfast" in httpx.get(url).text
        assert len(httpx.get(f"{url}/v1/products").json()["items"]) == 50

        done = subprocess.run(
            ["bash", "-c", "\n".join(["set -eo pipefail", *FIRST_MINUTE])],
            cwd=clone,
            env=clean,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        frames = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        kinds = [frame.get("type") for frame in frames]
        assert kinds[0] == "held", frames  # curl's answer
        assert kinds[1:5] == ["welcome", "cart", "pending", "held"], frames  # the socket's
        assert '"source":"/edge","type":"holdfast.cart.' in done.stdout  # Kafka's own console consumer
        assert "holdfast.inventory.decided" in done.stdout
    finally:
        subprocess.run([*make, "down"], env=clean, capture_output=True, timeout=60, check=False)
