"""The output of `holdfast baskets`: the association rules of a file, as tables or as JSON."""

import argparse
import heapq
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infrastructure.process.terminal import escape_controls
from order_service.insights.basket_file import BasketsError, count_item_sets
from order_service.insights.baskets import ItemSetCounts, Rule

MIN_SUPPORT: Final = 0.01
MIN_CONFIDENCE: Final = 0.0
TOP: Final = 10
USAGE_ERROR: Final = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to `parser`."""
    parser.add_argument("file", type=Path, metavar="FILE.csv", help="one basket per line, with comma-separated items")
    parser.add_argument(
        "--min-support",
        type=_share,
        default=MIN_SUPPORT,
        metavar="S",
        help="the least share of all baskets that contain all items of a rule (default: %(default)s)",
    )
    parser.add_argument(
        "--min-confidence",
        type=_share,
        default=MIN_CONFIDENCE,
        metavar="C",
        help="the least share of the baskets with the left side that also have the right side (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with every rule, unrounded")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return share


def report(arguments: argparse.Namespace) -> int:
    """Compute the rules of a file and print them. Return the exit status."""
    file: Path = arguments.file
    if not file.exists() or file.is_dir():
        sys.stderr.write(f"{file}: {'a directory' if file.is_dir() else 'there is no such file'}\n")
        return USAGE_ERROR
    try:
        counted = count_item_sets(file, arguments.min_support)
    except (BasketsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if arguments.json:
        _as_json(counted, arguments.min_confidence)
    else:
        _as_tables(counted, arguments.min_support, arguments.min_confidence)
    return 0


def _by_lift(rule: Rule) -> tuple[float, float, tuple[str, ...], str]:
    return -rule.lift, -rule.support, rule.left, rule.right


def _by_support(rule: Rule) -> tuple[float, float, tuple[str, ...], str]:
    return -rule.support, -rule.lift, rule.left, rule.right


def _as_json(counted: ItemSetCounts, min_confidence: float) -> None:
    """Write the rules one by one, by descending lift, so that the text of a million rules is never in memory."""
    for part in _json(counted.baskets, sorted(counted.rules(min_confidence), key=_by_lift)):
        sys.stdout.write(part)


def _json(baskets: int, rules: Iterable[Rule]) -> Iterator[str]:
    yield f'{{"baskets": {baskets}, "rules": ['
    between = "\n"
    for rule in rules:
        fields = {
            "left": list(rule.left),
            "right": rule.right,
            "support": rule.support,
            "confidence": rule.confidence,
            "lift": rule.lift,
        }
        yield between + json.dumps(fields)
        between = ",\n"
    yield "]}\n"


def _as_tables(counted: ItemSetCounts, min_support: float, min_confidence: float) -> None:
    console = Console(highlight=False)
    number = sum(1 for _ in counted.rules(min_confidence))
    console.print(
        f"{counted.baskets} baskets; {number} rules with a support of at least {min_support:g}"
        f" and a confidence of at least {min_confidence:g}"
    )
    if number:
        for title, order in (("by lift", _by_lift), ("by support", _by_support)):
            console.print(_table(title, heapq.nsmallest(TOP, counted.rules(min_confidence), key=order)))
    elif counted.baskets:
        console.print("No rule qualifies: choose a lower --min-support or --min-confidence.")


def _table(title: str, rules: Iterable[Rule]) -> Table:
    table = Table(title=f"the top {TOP} {title}", title_justify="left", box=None, pad_edge=False)
    table.add_column("baskets with")
    table.add_column("also have")
    for name in ("support", "confidence", "lift"):
        table.add_column(name, justify="right")
    for rule in rules:
        numbers = (f"{rule.support:.4f}", f"{rule.confidence:.3f}", f"{rule.lift:.2f}")
        table.add_row(*(Text(escape_controls(text)) for text in (" + ".join(rule.left), rule.right)), *numbers)
    return table
