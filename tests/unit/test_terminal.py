"""Text of others on an operator's terminal: nothing in it controls the terminal."""

import argparse
import ast
import io
import json
import logging
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from infrastructure.audit.topic_auditor import format_key, print_report
from infrastructure.local import state
from infrastructure.local.commands import output, topics
from infrastructure.observability.logs import JsonFormatter
from infrastructure.process.terminal import escape_controls
from order_service.insights import basket_report

COMMANDS = Path(__file__).resolve().parents[2] / "infrastructure" / "local"
LOAD = Path(__file__).resolve().parents[2] / "load"
PRINTERS = {"print", "typer.echo", "typer.secho", "Console", "sys.stdout.write", "sys.stdout.buffer.write"}
HOSTILE = "\x1b]0;title\x07 \x9b2J \u202egnp.exe \u2066x\u2069 \x7f \u2028 \U000e0041"
BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C]


def is_harmless(text: str) -> bool:
    """Return whether no character but a line feed or a tab has an effect on a terminal."""
    return all(
        character in "\n\t" or (unicodedata.category(character) not in {"Cc", "Cs"} and ord(character) not in BIDI)
        for character in text
    )


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), *BIDI, 0xD800, 0x2028, 0xE0041], ids=hex)
def test_every_control_character_is_escaped_as_in_json(code: int) -> None:
    shown = escape_controls(f"a{chr(code)}b")
    assert is_harmless(shown)
    assert code in {9, 10} or json.loads(f'"{shown}"') == f"a{chr(code)}b"


@pytest.mark.parametrize("text", ["", "Ann", "a\tb\n", "Ça va? ½ €", "日本語", "שלום", "مُحَمَّد", "👩‍👧", "\u00a0"])
def test_other_text_stays(text: str) -> None:
    assert escape_controls(text) == text


def test_echo_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    output.echo(HOSTILE)
    output.echo(HOSTILE, err=True)
    assert all(is_harmless(text) and "\\u009b2J" in text for text in capsys.readouterr())


def test_the_console_escapes_text_tables_and_markup_and_keeps_its_own_colours() -> None:
    plain, coloured = (
        output.SafeConsole(file=io.StringIO(), force_terminal=bool(colours), color_system=colours, width=200)
        for colours in (None, "standard")
    )
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    for console in (plain, coloured):
        for each in (HOSTILE, Text(HOSTILE, "red"), table, f"[bold]{HOSTILE}[/]"):
            console.print(each, markup=True)
    assert is_harmless(plain.file.getvalue())  # type: ignore[attr-defined]  # a StringIO
    shown = coloured.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "\x1b[31m" in shown
    assert "\x9b" not in shown
    assert "\x1b]0" not in shown


def test_an_error_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        state.exit_with_error(HOSTILE)
    assert is_harmless(capsys.readouterr().err)


def test_a_line_of_the_log_is_escaped_and_still_the_same_json() -> None:
    record = logging.makeLogRecord({"msg": HOSTILE, "name": HOSTILE})
    line = JsonFormatter("edge", "edge").format(record)
    assert is_harmless(line)
    assert json.loads(line)["message"] == HOSTILE


@pytest.mark.parametrize("as_json", [False, True])
def test_the_report_of_a_services_own_audit_is_escaped(capsys: pytest.CaptureFixture[str], *, as_json: bool) -> None:
    violation = f"the cart of {format_key(HOSTILE.encode())} cannot be read"
    assert print_report({"ok": False, "violations": [violation], "figures": {}}, as_json=as_json) == 1
    assert is_harmless(capsys.readouterr().out)


def test_the_items_of_a_file_of_baskets_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "baskets.csv"
    file.write_text("one\x9b2J,two\x1b]0;t\x07,three\u202e\n" * 3, encoding="utf-8")
    arguments = argparse.ArgumentParser()
    basket_report.add_arguments(arguments)
    assert basket_report.report(arguments.parse_args([str(file)])) == 0
    shown = capsys.readouterr().out
    assert "\\u009b2J" in shown
    assert is_harmless(shown)


class ARecord:
    topic, partition, offset, timestamp = "t", 0, 1, 0
    headers: Sequence[tuple[str, bytes]] = ()

    def __init__(self, key: bytes | None, value: bytes | None) -> None:
        self.key, self.value = key, value


@pytest.mark.parametrize("printer", [topics._print_json, topics._print_pretty, topics._print_plain])
@pytest.mark.parametrize("content", [{"x": HOSTILE}, HOSTILE, [HOSTILE]], ids=lambda each: type(each).__name__)
def test_a_record_is_escaped(
    printer: Callable[[Any], None], content: object, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    printer(ARecord(b"key", json.dumps(content, ensure_ascii=False).encode()))
    assert is_harmless(capfdbinary.readouterr().out.decode())


def test_bytes_that_are_not_json_stay_in_a_pipe(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    topics._print_plain(ARecord(b"k\x9b", b"\x00\xff\x9b"))
    assert capfdbinary.readouterr().out == b"k\x9b\t\x00\xff\x9b\n"


def test_no_command_prints_without_escaping() -> None:
    """Find every other way to print than `output.echo` and `SafeConsole`; the exceptions are listed here."""
    allowed = {
        ("output.py", "typer.echo"),  # in `echo`
        ("state.py", "print"),  # in `exit_with_error`, escaped
        ("topics.py", "sys.stdout.buffer.write"),  # in `_print_plain`, escaped
        ("sbom.py", "sys.stdout.write"),  # no foreign text
    }
    found = set()
    for file in [*COMMANDS.rglob("*.py"), *LOAD.rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in PRINTERS if file.is_relative_to(COMMANDS) else called == "Console":
                    found.add((file.name, called))
    assert found == allowed
