"""The bill of materials has everything that a shop runs, with its version."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from infrastructure.local.servers import jars, sbom

ROOT = Path(__file__).resolve().parents[2]


def test_every_locked_package_jar_and_vendored_file_is_listed() -> None:
    bill = sbom.bill_of_materials()
    by_kind = {kind: {} for kind in ("pypi", "maven", "npm")}  # type: ignore[var-annotated]  # purl -> component
    for component in bill["components"]:
        by_kind[component["purl"].partition(":")[2].partition("/")[0]][component["purl"]] = component
    requirements = (ROOT / "requirements/run.txt").read_text()
    assert len(by_kind["pypi"]) == len(re.findall(r"^[^\s#][^\s]*==", requirements, re.MULTILINE)) > 50
    files = sum(len(each.get("properties", each.get("hashes", []))) for each in by_kind["pypi"].values())
    assert files == requirements.count("--hash=sha256:")
    locked = tomllib.loads(jars.LOCK_FILE.read_text())["dependencies"]
    hashes = {each["hashes"][0]["content"] for each in by_kind["maven"].values()}
    assert hashes == {entry["sha256"] for entry in locked}
    assert [*by_kind["npm"]] == ["pkg:npm/swagger-ui-dist@5.35.0"]
    refs = [each["bom-ref"] for each in bill["components"]]
    assert len(set(refs)) == len(refs)


def test_the_command_prints_the_same_document_each_time() -> None:
    argv = [sys.executable, "-m", "infrastructure.local.servers.sbom"]
    first, second = (subprocess.run(argv, capture_output=True, check=True, cwd=ROOT).stdout for _ in range(2))
    assert first == second
    assert json.loads(first)["bomFormat"] == "CycloneDX"
