"""The command line that all services share."""

import argparse
import asyncio

import pytest

from infrastructure.process import cli
from infrastructure.process.settings import Settings


async def run(_: Settings, arguments: argparse.Namespace) -> int:
    """Work until asked to stop."""
    return 7 if getattr(arguments, "json", False) else 0


async def migrate(_: Settings, __: argparse.Namespace) -> int:
    """Bring the schema up."""
    await asyncio.sleep(0)
    return 3


def test_a_sub_command_has_its_docstring_as_help_and_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    parser, commands = cli.sub_commands("shop", "A shop.")
    cli.add_command(commands, "run", run, "shop run").add_argument("--json", action="store_true")
    cli.add_command(commands, "migrate", migrate, "shop migrate")
    assert cli.execute(parser.parse_args(["run", "--json"]), service="shop", settings=Settings) == 7
    assert cli.execute(parser.parse_args(["migrate"]), service="shop", settings=Settings) == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["migrate", "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: shop migrate [-h]")
    assert "Bring the schema up." in printed
    assert "example: shop migrate" in printed


def test_a_choice_of_commands_shares_its_options() -> None:
    parser = cli.choices("shop", "A shop.", {"run": run, "migrate": migrate}, text="what to do")
    parser.add_argument("--json", action="store_true")
    assert "[--json] {run,migrate}" in parser.format_help()
    for line in (["--json", "run"], ["run", "--json"]):
        assert cli.execute(parser.parse_args(line), service="shop", settings=Settings) == 7


@pytest.mark.parametrize("line", [[], ["steal"]])
def test_a_command_that_is_missing_or_unknown_is_wrong_use(line: list[str]) -> None:
    parser = cli.choices("shop", None, {"run": run}, text="what to do")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(line)
    assert caught.value.code == 2
