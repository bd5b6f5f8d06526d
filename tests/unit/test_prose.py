"""Prose check: the project's own text keeps `prose_rules.toml`, and a planted sentence is found with file and line."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.prose import ROOT, Allowance, check, check_files, load_rules, main, project_files

RULES = load_rules()


def findings(name: str, content: str) -> list[tuple[int, str]]:
    return [(finding.line, finding.found) for finding in check(name, content, RULES)]


def test_the_projects_prose_is_plain() -> None:
    names = [name for name in project_files() if name.endswith(RULES.checked)]
    found, used = check_files(names, RULES, ROOT)
    assert not found, f"{len(found)} findings; see tests/unit/prose_rules.toml\n" + "\n".join(map(str, found))
    assert set(RULES.allowed) <= used, "allowances that nothing needs"


def test_every_rule_says_what_to_write_and_every_allowance_why() -> None:
    assert all(say for _, say in RULES.phrases)
    assert all(say for _, _, say in RULES.openings)
    assert all(entry.why for entry in RULES.allowed)


def test_a_planted_sentence_is_found_with_file_line_and_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("# Expiry\n\nA cart that is due is\nknocked for in turn.\n")
    (tmp_path / "plain.md").write_text("# Expiry\n\nAn expiry request is sent for each due cart.\n")
    monkeypatch.setattr("tests.unit.prose.project_files", lambda _: ["page.md", "plain.md"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.unit.prose.ROOT", tmp_path)
    assert main([]) == 1
    assert capsys.readouterr().out == ('page.md:4: "knocked": say "expiry request" (the sender: "expiry scanner")\n')
    assert main(["--count"]) == 1
    assert capsys.readouterr().out == "     1 page.md\n     1 in all\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.py", '"""Sockets.\n\nWhat was told lately.\n"""\n', [(3, "told"), (3, "What")]),
        ("a.py", 'def f() -> int:\n    """Of all partitions, or of one."""\n    return 1\n', [(2, "Of")]),
        ("a.py", 'def f() -> int:\n    """The lag of a group."""\n    return 1\n', [(2, "The")]),
        ("a.py", 'async def f() -> int:\n    """Rows that are due."""\n    return 1\n', [(2, "Rows")]),
        ("a.py", 'async def f() -> None:\n    """Sending is retried."""\n', [(2, "Sending")]),
        ("a.py", 'class A:\n    """Whoever sends."""\n', [(2, "Whoever")]),
        ("a.py", 'LIMIT = 3\n"""It repeats."""\n', [(2, "It")]),
        ("a.py", "x = 1  # kept for ever\n", [(1, "for ever")]),
        ("a.py", "# it is asked\n# again later\n", [(1, "asked again")]),
        ("a.sql", "SELECT 1; -- put aside\n", [(1, "put aside")]),
        ("a.js", "/*\n * Read anew.\n */\n", [(2, "anew")]),
        ("a.js", 'const url = "https://example.org/anew"; // afresh\n', [(1, "afresh")]),
        (".env.example", "# Names, with commas.\n#HOLDFAST_REDIS_PORT=1\n", [(1, "with commas")]),
        ("a.md", "| a | `knock` |\n|---|---|\n| who asks | none |\n", [(3, "who")]),
        ("a.md", "- one\n- the pump\n", [(2, "pump")]),
    ],
)
def test_each_kind_of_text_is_checked(name: str, content: str, expected: list[tuple[int, str]]) -> None:
    assert sorted(findings(name, content)) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.py", 'def f() -> str:\n    """Return the dead letter\'s id, or `None`."""\n    return "knock"\n'),
        ("a.py", 'def f() -> bool:\n    """True if the broker answers."""\n    return True\n'),
        (
            "a.py",
            'class A:\n    @property\n    def b(self) -> int:\n        """Rows that are due."""\n        return 1\n',
        ),
        ("a.py", 'def f() -> None:\n    """Process one batch; address each partition in turn."""\n'),
        ("tests/a.py", 'def shop() -> None:\n    """A shop with two workers."""\n'),
        ("a.py", "x = 1  # noqa: S101 - required by a rule\n"),
        ("a.md", "```\nholdfast knock for ever\n```\n[what it sends](told.md#anew), `crash point`\n"),
        ("a.md", "## What happens when a worker crashes?\n"),
        ("a.md", "There is no frame for that. There are none. It is no longer there.\n"),
        ("a.md", "A message takes two round trips; delivery books a parcel.\n"),
    ],
)
def test_plain_sentences_pass(name: str, content: str) -> None:
    assert findings(name, content) == []


def test_an_allowance_covers_its_line_only(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("A knock.\n\nA pump.\n")
    allowance = Allowance("a.md", "knock", "for this test")
    found, used = check_files(["a.md"], replace(RULES, allowed=(allowance,)), tmp_path)
    assert [(finding.file, finding.line) for finding in found] == [("a.md", 3)]
    assert used == {allowance}
