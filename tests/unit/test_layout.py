"""The layers in `pyproject.toml` leave no module out."""

import re
import tomllib
from pathlib import Path

LONG_LINE = 5000
"""Bytes of a line that no terminal shows in one piece."""
ROOT = Path(__file__).resolve().parents[2]
LINT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
SERVICES = {
    "account_service",
    "cart_service",
    "inventory_service",
    "load",
    "notification_service",
    "order_service",
    "rest_api",
}


def modules() -> set[str]:
    """Return every module of the product, by its dotted name."""
    found = set()
    for package in LINT["root_packages"]:
        for file in (each for each in (ROOT / package).rglob("*.py") if (each.parent / "__init__.py").exists()):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def test_every_module_is_covered_by_an_exhaustive_layers_contract() -> None:
    covered: dict[str, set[str]] = {}
    for contract in LINT["contracts"]:
        if contract["type"] == "layers" and contract.get("exhaustive"):
            names = {name for layer in contract["layers"] for name in re.findall(r"\w+", layer)}
            for container in contract["containers"]:
                covered.setdefault(container, set()).update(names)
    left_out = {
        module
        for module in modules() - set(LINT["root_packages"])
        if not any(
            module.startswith(f"{container}.") and module.removeprefix(f"{container}.").partition(".")[0] in names
            for container, names in covered.items()
        )
    }
    assert left_out == set()


def test_no_source_is_one_long_line_that_drowns_a_search() -> None:
    suffixes = {".py", ".js", ".css", ".html", ".sql", ".md", ".toml", ".json", ".csv", ".txt"}
    folders = [*LINT["root_packages"], "docs", "examples", "tests"]
    files = [each for folder in folders for each in (ROOT / folder).rglob("*") if each.suffix in suffixes]
    assert [str(each) for each in files if max(map(len, each.read_bytes().splitlines()), default=0) > LONG_LINE] == []


def test_one_contract_keeps_all_services_apart() -> None:
    [apart] = [each for each in LINT["contracts"] if each["name"] == "No service imports another"]
    assert (apart["type"], set(apart["modules"])) == ("independence", SERVICES)
    assert set(LINT["root_packages"]) - SERVICES == {"contracts", "infrastructure"}
