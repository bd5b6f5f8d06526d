"""Software bill of materials in CycloneDX 1.6, from the lock files: `make sbom`.

It lists what a shop runs: the Python packages of `requirements/run.txt`, the jars of `jgo.lock.toml`, and the vendored
Swagger UI, each with its version and, where the lock file has them, the SHA-256 of its files.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

from infrastructure.local.servers import jars

CHECKOUT: Final = Path(__file__).resolve().parents[3]
_PINNED: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_SWAGGER_VERSION: Final = re.compile(r'PACKAGE_VERSION:"([0-9.]+)"')

Component = dict[str, Any]


def python_components(requirements: str) -> list[Component]:
    """Return the packages of a requirements file with hashes; a package has one hash for each of its files."""
    starts = [*_PINNED.finditer(requirements)]
    ends = [match.start() for match in starts[1:]] + [len(requirements)]
    return [
        _component(
            f"pkg:pypi/{_normalised(match[1])}@{match[2]}",
            match[1],
            match[2],
            _HASH.findall(requirements[match.end() : end]),
        )
        for match, end in zip(starts, ends, strict=True)
    ]


def jar_components(lock: Path = jars.LOCK_FILE) -> list[Component]:
    """Return the jars of the lock file."""
    found = []
    for jar in jars.load_lock_file(lock):
        group, artifact, version = jar.name.split(":")
        component = _component(f"pkg:maven/{group}/{artifact}@{version}", artifact, version, [jar.sha256])
        found.append({**component, "group": group})
    return found


def vendored_components(checkout: Path) -> list[Component]:
    """Return the components whose files are part of this repository."""
    stored = (checkout / "rest_api/vendor/swagger_ui/swagger-ui-bundle.js.gz").read_bytes()
    bundle = gzip.decompress(stored).decode()
    version = _SWAGGER_VERSION.search(bundle)
    if version is None:
        raise ValueError("swagger-ui-bundle.js names no version: expected PACKAGE_VERSION, as in Swagger UI 5")
    return [_component(f"pkg:npm/swagger-ui-dist@{version[1]}", "swagger-ui-dist", version[1], [])]


def bill_of_materials(checkout: Path = CHECKOUT) -> dict[str, Any]:
    """Return the whole document. It has no time and no random number, so equal lock files give an equal document."""
    requirements = (checkout / "requirements/run.txt").read_text(encoding="utf-8")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": "holdfast", "name": "holdfast"}},
        "components": [*python_components(requirements), *jar_components(), *vendored_components(checkout)],
    }


def _component(purl: str, name: str, version: str, sha256: list[str]) -> Component:
    """Return a component; only one that is a single file has a hash of its own, other files are properties."""
    component: Component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if len(sha256) == 1:
        component["hashes"] = [{"alg": "SHA-256", "content": sha256[0]}]
    elif sha256:
        component["properties"] = [{"name": "holdfast:sha256", "value": each} for each in sha256]
    return component


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    json.dump(bill_of_materials(), sys.stdout, indent=1)
    sys.stdout.write("\n")
