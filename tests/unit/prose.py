"""Prose check: finds words of a private language in docstrings, comments and documentation.

Needs no network and no package beyond the standard library. The rules are in `prose_rules.toml`, the tests in
`test_prose.py`.

List every finding, or the number of findings per folder::

    python -m tests.unit.prose [--count] [PATH ...]
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
RULES_FILE: Final = Path(__file__).with_name("prose_rules.toml")
KINDS: Final = (".py", ".sql", ".js", ".md", ".env.example")
SKIPPED: Final = re.compile(r"(?:^|/)vendor/")
"""Third-party text."""

_FENCE: Final = re.compile(r"^([ \t]*)(```|~~~).*?^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE: Final = re.compile(r"``[^`]+``|`[^`]+`")
_TARGET: Final = re.compile(r"(?<=\])\([^)\s]+\)|https?://\S+")
_PRAGMA: Final = re.compile(r"#\s*(?:noqa|type:|pragma|fmt:)[^-]*")
_JS_COMMENT: Final = re.compile(r"/\*.*?\*/|(?<![:\"'`])//[^\n]*", re.DOTALL)
_SQL_COMMENT: Final = re.compile(r"--[^\n]*")
_MARK: Final = re.compile(r"^[ \t]*(?:#+:?|--|//|/?\*+/?|\|)?")
_BREAK: Final = re.compile(r"^[ \t]*(?:\||[-*] |\d+\. |#)")


@dataclass(frozen=True, slots=True)
class Text:
    """A run of prose. `kind` is `comment`, `page`, or the kind of thing that a docstring describes."""

    line: int
    content: str
    kind: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule, with its place."""

    file: str
    line: int
    found: str
    say: str

    def __str__(self) -> str:
        """Return the finding as `file:line: "found": say …`, which editors can jump to."""
        return f'{self.file}:{self.line}: "{self.found}": say {self.say}'


@dataclass(frozen=True, slots=True)
class Allowance:
    """An exception to the rules: any finding in `file` on a line that contains `text`."""

    file: str
    text: str
    why: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The compiled content of `prose_rules.toml`."""

    checked: tuple[str, ...]
    phrases: tuple[tuple[re.Pattern[str], str], ...]
    openings: tuple[tuple[frozenset[str], re.Pattern[str], str], ...]
    allowed: tuple[Allowance, ...]


def load_rules(file: Path = RULES_FILE) -> Rules:
    """Read the rules, or raise `KeyError` or `re.error` if one is malformed."""
    data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    return Rules(
        checked=tuple(data["checked"]),
        phrases=tuple((re.compile(rule["find"], re.IGNORECASE), rule["say"]) for rule in data["phrase"]),
        openings=tuple(
            (frozenset(rule["of"]), re.compile(rf"\W*({rule['find']})\b(?!`)", re.IGNORECASE), rule["say"])
            for rule in data["opening"]
        ),
        allowed=tuple(Allowance(**entry) for entry in data.get("allow", ())),
    )


def check(name: str, content: str, rules: Rules) -> Iterator[Finding]:
    """Yield the findings in one file, allowed ones included; a word only once per line."""
    seen: set[tuple[int, str]] = set()
    for finding in _all_findings(name, content, rules):
        if (finding.line, finding.found) not in seen:
            seen.add((finding.line, finding.found))
            yield finding


def _all_findings(name: str, content: str, rules: Rules) -> Iterator[Finding]:
    in_tests = name.startswith("tests/")
    for text in texts(name, content):
        prose, lines = _normalise(text)
        for pattern, say in rules.phrases:
            for match in pattern.finditer(prose):
                yield Finding(name, lines(match.start()), match[0].strip(), say)
        for kinds, pattern, say in rules.openings:
            # Tests and their fixtures may describe a situation; elsewhere a function's docstring begins with a verb.
            if text.kind in kinds and not (in_tests and kinds == {"function"}) and (opening := pattern.match(prose)):
                yield Finding(name, text.line, opening[1], say)


def texts(name: str, content: str) -> Iterator[Text]:
    """Yield the prose of a file by the kind of its name."""
    if name.endswith(".py"):
        yield from _python(content)
    elif name.endswith(".md"):
        yield from _markdown(content)
    elif name.endswith(".env.example"):
        yield from _comment_lines(re.sub(r"^#HOLDFAST_.*$", "", content, flags=re.MULTILINE), "#")
    elif name.endswith(".sql"):
        yield from _comments(content, _SQL_COMMENT)
    elif name.endswith(".js"):
        yield from _comments(content, _JS_COMMENT)


def _python(content: str) -> Iterator[Text]:
    yield from _docstrings(ast.parse(content))
    found = [
        (token.start[0], _PRAGMA.sub("", token.string), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(content).readline)
        if token.type == tokenize.COMMENT
    ]
    yield from _joined(found)


def _docstrings(tree: ast.AST) -> Iterator[Text]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for place, statement in enumerate(body):
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield Text(statement.lineno, statement.value.value, _kind(node) if place == 0 else "attribute")


def _kind(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
        return "property" if any(decorator.endswith("property") for decorator in decorators) else "function"
    return "class" if isinstance(node, ast.ClassDef) else "module"


def _joined(found: Iterable[tuple[int, str, bool]]) -> Iterator[Text]:
    """Yield comments, with those on consecutive lines of their own as one text."""
    block: list[str] = []
    first = last = 0
    for line, string, alone in found:
        if block and not (alone and line == last + 1):
            yield Text(first, "\n".join(block), "comment")
            block = []
        if not block:
            first = line
        block.append(string)
        last = line if alone else -1
    if block:
        yield Text(first, "\n".join(block), "comment")


def _comments(content: str, pattern: re.Pattern[str]) -> Iterator[Text]:
    found = []
    for match in pattern.finditer(content):
        line = content.count("\n", 0, match.start()) + 1
        before = content[content.rfind("\n", 0, match.start()) + 1 : match.start()]
        if "\n" in match[0]:
            yield Text(line, match[0], "comment")
        else:
            found.append((line, match[0], not before.strip()))
    yield from _joined(found)


def _comment_lines(content: str, mark: str) -> Iterator[Text]:
    yield from _joined(
        (number, line, True) for number, line in enumerate(content.splitlines(), 1) if line.startswith(mark)
    )


def _markdown(content: str) -> Iterator[Text]:
    """Yield paragraphs, list items, headings and table cells, each as one text."""
    prose = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), content)
    prose = re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), prose, flags=re.DOTALL)
    block: list[str] = []
    first = 0
    for number, line in enumerate([*prose.splitlines(), ""], 1):
        if block and (not line.strip() or _BREAK.match(line)):
            yield Text(first, "\n".join(block), "page")
            block = []
        if line.lstrip().startswith("|"):
            for cell in re.split(r"(?<!\\)\|", _CODE.sub("`x`", line)):
                if cell.strip(" -:"):
                    yield Text(number, cell.strip(), "page")
        elif line.strip():
            first = first if block else number
            block.append(line)


def _normalise(text: Text) -> tuple[str, Any]:
    """Return the text in one line without code and links, and a function from an offset in it to a line number."""
    content = _CODE.sub(lambda match: "`x`" + "\n" * match[0].count("\n"), text.content)
    content = _TARGET.sub("", content)
    starts: list[int] = []
    numbers: list[int] = []
    parts: list[str] = []
    length = 0
    for number, line in enumerate(content.splitlines(), text.line):
        stripped = _MARK.sub("", line).strip() if text.kind in {"comment", "page"} else line.strip()
        if stripped:
            starts.append(length)
            numbers.append(number)
            parts.append(stripped)
            length += len(stripped) + 1
    return " ".join(parts), lambda offset: numbers[bisect_right(starts, offset) - 1]


def project_files(paths: Sequence[str] = ()) -> list[str]:
    """List the files of the repository that have prose, as paths from `ROOT`; only those under `paths`, if given."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted(
        name
        for name in listed.split("\0")
        if name.endswith(KINDS) and not SKIPPED.search(name) and (ROOT / name).is_file()
    )


def check_files(names: Iterable[str], rules: Rules, root: Path) -> tuple[list[Finding], set[Allowance]]:
    """Check files; return the findings that are not allowed, and the allowances that were used."""
    findings: list[Finding] = []
    used: set[Allowance] = set()
    for name in names:
        content = (root / name).read_text(encoding="utf-8")
        lines = content.splitlines()
        for finding in check(name, content, rules):
            line = lines[finding.line - 1]
            allowed = [entry for entry in rules.allowed if entry.file == name and entry.text in line]
            used.update(allowed)
            if not allowed:
                findings.append(finding)
    return sorted(findings, key=lambda finding: (finding.file, finding.line)), used


def main(arguments: Sequence[str]) -> int:
    """Print what is wrong in the given paths, or everywhere; return 1 if anything is."""
    paths = [argument for argument in arguments if argument != "--count"]
    findings, _ = check_files(project_files(paths), load_rules(), ROOT)
    if "--count" in arguments:
        counts = Counter("/".join(finding.file.split("/")[:2]) for finding in findings)
        for folder, count in sorted(counts.items()):
            print(f"{count:6} {folder}")
        print(f"{len(findings):6} in all")
    else:
        print(*findings, sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
