"""Structure of the tests: test files are independent of each other, and fixtures are defined where they are used."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.testkit import browser

TESTS: Final = Path(__file__).resolve().parents[1]


class Done:
    """A command that has succeeded."""

    returncode = 0


def imported_tests(source: str) -> set[str]:
    """Return the modules named `test_…` that a file imports, or imports from."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if re.match(r"tests\.(?!testkit\.)(?:\w+\.)*test_\w+", name)}


def unused_fixtures(source: str) -> set[str]:
    """Return the fixtures of a file that no function of the same file asks for and that do not apply to all of it."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    wanted = {argument.arg for function in functions for argument in (*function.args.args, *function.args.kwonlyargs)}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("usefixtures"):
            wanted |= {str(argument.value) for argument in call.args if isinstance(argument, ast.Constant)}
    return {function.name for function in functions if _is_local_fixture(function)} - wanted


def _is_local_fixture(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any("pytest.fixture" in each and "autouse=True" not in each for each in decorators)


def _files() -> Iterator[tuple[str, str]]:
    for file in sorted(TESTS.rglob("*.py")):
        yield str(file.relative_to(TESTS)), file.read_text()


def test_no_file_imports_a_test_file() -> None:
    found = {name: imported_tests(source) for name, source in _files()}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_fixtures_are_shared_through_conftest_or_the_testkit_only() -> None:
    found = {
        name: unused_fixtures(source)
        for name, source in _files()
        if Path(name).name != "conftest.py" and not name.startswith("testkit/")
    }
    assert {name: fixtures for name, fixtures in found.items() if fixtures} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from tests.unit.test_a import B",
        "from tests.unit import test_a",
        "import tests.unit.test_a",
        "def f():\n    from tests.unit.test_a import B",
    ],
)
def test_an_import_of_a_test_file_is_found(source: str) -> None:
    assert "tests.unit.test_a" in imported_tests(source)


def test_an_import_of_the_testkit_is_allowed() -> None:
    assert imported_tests("from tests.testkit.edge import test_server; from tests.testkit import edge") == set()


def test_a_fixture_for_other_files_is_found() -> None:
    fixture = "@pytest.fixture\ndef shop():\n    pass\n"
    assert unused_fixtures(fixture) == {"shop"}
    assert unused_fixtures(fixture + "def test_a(shop):\n    pass\n") == set()
    assert unused_fixtures(fixture + "@pytest.mark.usefixtures('shop')\ndef test_a():\n    pass\n") == set()
    assert unused_fixtures(fixture.replace("fixture", "fixture(autouse=True)")) == set()


def test_no_browser_is_installed_without_being_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(arguments: list[str], **_: object) -> Done:
        started.append(arguments)
        return Done()

    monkeypatch.setattr("tests.testkit.browser.shutil.which", lambda _: None)
    monkeypatch.setattr("tests.testkit.browser.subprocess.run", run)
    for name in ("HOLDFAST_CHROMIUM", "HOLDFAST_TEST_INSTALL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LookupError, match="HOLDFAST_TEST_INSTALL=yes"):
        browser.chromium_path()
    assert started == []
    monkeypatch.setenv("HOLDFAST_TEST_INSTALL", "yes")
    with pytest.raises(LookupError):
        browser.chromium_path()
    assert [arguments[0] for arguments in started] == ["apt-get"] * 2
