"""Documentation: names existing settings, commands, files and tests, has no broken link, and mentions no machine."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from contracts import cart, inventory
from contracts import notifications as notices
from infrastructure.local import cli
from infrastructure.local.commands import registry
from infrastructure.process.failpoints import FAILPOINTS
from infrastructure.process.settings import Settings
from inventory_service.settings import Settings as InventorySettings
from notification_service.settings import Settings as NoticeSettings
from order_service.delivery.settings import Settings as DeliverySettings
from order_service.payment.provider.settings import Settings as ProviderSettings
from order_service.settings import Settings as OrderSettings
from rest_api.protocol.client_frames import CLIENT_FRAMES
from rest_api.protocol.problems import SLUGS
from rest_api.settings import EdgeSettings

ROOT: Final = Path(__file__).resolve().parents[2]
EXAMPLE: Final = dict(re.findall(r"^#(HOLDFAST_\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))

FENCE: Final = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
PACKAGES: Final = (
    "contracts|"
    "cart_service|examples|infrastructure|inventory_service|load|notification_service|order_service|rest_api|tests"
)
CODE: Final = re.compile(r"`[^`\n]+`")
LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
COMMAND: Final = re.compile(r"(?<![\w@-])holdfast ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)")

# Written so that none of them matches itself.
OF_A_MACHINE: Final = re.compile(r"(?<![\w.])/(?:home|Users)/\w+/|(?<![\w.])/(?:root)/\w")
OF_A_REGISTRY: Final = re.compile(
    r"https?://[^\s\"'<>]+/(?:simple|maven2)(?=[/\"'\s]|$)|https?://[^\s\"'<>]+\.(?:whl|tgz|jar|crate)\b"
    r"|\"resolved\": *\"https?:|registry *= *\"https?:|^--(?:extra-)?index-url|^--find-links",
    re.MULTILINE,
)


@cache
def files() -> list[Path]:
    """List every file that is in the repository, or would be with the next commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def pages() -> list[Path]:
    return [file for file in files() if file.suffix == ".md"]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> Iterator[str]:
    for target in LINK.findall(CODE.sub("", FENCE.sub("", page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield f"{page.relative_to(ROOT)}: {target}"


def commands() -> dict[str, set[str]]:
    """Return every sub-command of `holdfast`, each with its own sub-commands."""
    added = typer.Typer()
    registry.register(added)
    found: dict[str, set[str]] = {}
    for app in (cli.app, added):
        group = get_command(app)
        assert isinstance(group, TyperGroup)
        for name, command in group.commands.items():
            found[name] = set(command.commands) if isinstance(command, TyperGroup) else set()
    return found


def unknown(text: str, known: dict[str, set[str]]) -> set[str]:
    """Return the commands in the code of a page that `holdfast` does not have."""
    found = set()
    for code in [match[0] for match in (*FENCE.finditer(text), *CODE.finditer(FENCE.sub("", text)))]:
        for named in COMMAND.findall(code):
            first, _, second = named.partition(" ")
            if first not in known or (second and known[first] and second not in known[first]):
                found.add(named)
    return found


@pytest.mark.parametrize(
    "settings",
    [Settings, EdgeSettings, InventorySettings, NoticeSettings, OrderSettings, DeliverySettings, ProviderSettings],
    ids=lambda kind: kind.__module__,
)
def test_the_example_has_every_setting_with_its_default(
    settings: type[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"HOLDFAST_{name.upper()}" for name in settings.model_fields}
    assert names <= EXAMPLE.keys()
    for name in names:
        monkeypatch.delenv(name, raising=False)
    defaults = settings()
    for name in names:
        if EXAMPLE[name]:  # an empty value means: as without the variable
            monkeypatch.setenv(name, EXAMPLE[name])
    assert settings() == defaults


def test_the_example_has_every_variable_that_the_code_names() -> None:
    sources = [file for file in files() if file.suffix == ".py" and file.name != Path(__file__).name]
    named = {name for file in sources for name in re.findall(r"\bHOLDFAST_[A-Z_]+[A-Z]\b(?!_)", file.read_text())}
    assert named <= EXAMPLE.keys()


def test_no_link_is_broken() -> None:
    assert [link for page in pages() for link in broken(page)] == []


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# One, two\n[a](#one-two) [b](#three) [c](gone.md) [d](https://example.org) `[e](f)`\n```\n[g](h)\n```\n"
    )
    assert list(broken(page)) == ["page.md: #three", "page.md: gone.md"]


def test_every_command_in_the_documentation_exists() -> None:
    known = commands()
    assert {str(page.relative_to(ROOT)): unknown(page.read_text(), known) for page in pages()} == {
        str(page.relative_to(ROOT)): set() for page in pages()
    }


def test_a_command_that_does_not_exist_is_found() -> None:
    known = commands()
    assert unknown("`holdfast fly` and `holdfast prove theorem`, not holdfast swim", known) == {"fly", "prove theorem"}
    assert unknown("```\n$ .venv/bin/holdfast up --detach\n$ holdfast logs cart-1\n```\n`holdfast`", known) == set()


def test_the_contract_names_every_topic_frame_and_problem() -> None:
    text = (ROOT / "docs/contract.md").read_text()
    topics = (
        cart.REQUESTS,
        cart.RESPONSES,
        inventory.REQUESTS,
        inventory.RESPONSES,
        inventory.STOCK,
        notices.REQUESTS,
        notices.EVENTS,
        inventory.PRODUCTS,
    )
    names = {*SLUGS, *CLIENT_FRAMES, *(topic.name for topic in topics)}
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_every_failpoint_is_documented() -> None:
    text = (ROOT / "docs/failpoints.md").read_text()
    assert {name for name in FAILPOINTS if f"`{name}`" not in text} == set()


def test_every_file_and_test_in_the_documentation_exists() -> None:
    names = {str(file.relative_to(ROOT)) for file in files()}
    sources = [file.read_text() for file in files() if file.suffix == ".py"]
    tests = {name for source in sources for name in re.findall(r"def (test_\w+)", source)}
    found = {str(page.relative_to(ROOT)): missing(page.read_text(), names, tests) for page in pages()}
    assert {page: absent for page, absent in found.items() if absent} == {}


def test_a_file_and_a_test_that_do_not_exist_are_found() -> None:
    text = "`load/gone.py` `load/` `here.py` `lost.md` `load/here.py::test_b` `test_a` `test_c` `tests/*.py` `a.b`"
    assert missing(text, {"load/here.py"}, {"test_a"}) == {"load/gone.py", "lost.md", "test_b", "test_c"}


def missing(text: str, files: set[str], tests: set[str]) -> set[str]:
    """Return the files and the tests that a page names in its code and that do not exist."""
    names = {Path(file).name for file in files}
    folders = {str(parent) for file in files for parent in Path(file).parents}
    found = set()
    for code in CODE.findall(FENCE.sub("", text)):
        path, _, test = code.strip("`").partition("::")
        if re.fullmatch(r"test_\w+", path):
            path, test = "", path
        if re.match(rf"({PACKAGES})/[\w/.-]*(?<!\.json)$", path):  # records of runs come and go
            found |= {path} - files if path.rstrip("/") not in folders else set()
        elif re.match(r"[\w-]+\.(py|sql|md)$", path):
            found |= {path} - names
        found |= {test} - tests - {""}
    return found


def test_every_class_in_the_glossary_exists() -> None:
    sources = "\n".join(file.read_text() for file in files() if file.suffix == ".py")
    defined = set(re.findall(r"(?:class |def |^)(\w+)(?=[(:\[]| = )", sources, re.MULTILINE))
    rows = [line.split("|")[3] for line in (ROOT / "docs/glossary.md").read_text().splitlines() if line.count("|") == 4]
    identifier = re.compile(r"(?<!table )(?<!package )(?<!module )(?<!setting )`(\w+)")
    named = {name for row in rows for name in identifier.findall(row)}
    assert named - defined == set()


def test_no_file_mentions_a_machine_or_a_registry() -> None:
    found = []
    here = re.compile(re.escape(f"{ROOT}/")) if len(ROOT.parts) > 2 else OF_A_MACHINE
    for file in files():
        text = file.read_bytes().decode(errors="ignore")
        for pattern in (OF_A_MACHINE, OF_A_REGISTRY, here):
            found += [f"{file.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "/ho" + "me/somebody/holdfast/x",
        " /ro" + "ot/x",
        "https://example.org/sim" + "ple/aiohttp",
        '"resolved": "https' + '://example.org/x"',
        "--index" + "-url https://example.org",
        "https://example.org/a-1.0.w" + "hl",
    ],
)
def test_a_machine_or_a_registry_is_found(text: str) -> None:
    assert OF_A_MACHINE.search(text) or OF_A_REGISTRY.search(text)
