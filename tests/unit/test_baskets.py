"""Rules of what is bought together, against numbers worked out by hand and against counting without any cunning."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from order_service.insights import __main__ as insights_command
from order_service.insights import basket_file
from order_service.insights.basket_file import BasketsError, count_item_sets, read_baskets
from order_service.insights.baskets import Rule, _one_pass, min_count
from tests.testkit.effort import histories

TWELVE = """\
bread,butter,milk
bread,butter
bread,milk
"bread","butter","jam, red"
bread,butter,milk,"jam, red"
milk
milk,tea
tea,"biscuits"
tea,biscuits,milk
butter,"jam, red"
bread,butter,"jam, red"
tea
"""
"""By hand: bread 6, butter 6, milk 6, tea 4, jam 4, biscuits 2; of twelve."""

JAM = "jam, red"


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "baskets.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def rules_of(file: Path, min_support: float = 0.0, min_confidence: float = 0.0) -> dict[tuple[Any, ...], Rule]:
    found = list(count_item_sets(file, min_support).rules(min_confidence))
    by_sides = {(rule.left, rule.right): rule for rule in found}
    assert len(by_sides) == len(found), "no rule comes twice"
    return by_sides


def close(rule: Rule, support: Fraction, confidence: Fraction, lift: Fraction) -> bool:
    """True if the measures are the floats nearest to these fractions: equal, not nearly so."""
    return (rule.support, rule.confidence, rule.lift) == (float(support), float(confidence), float(lift))


# ---- by hand -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "support", "confidence", "lift"),
    [
        # bread and butter: lines 1, 2, 4, 5, 11
        (("bread",), "butter", Fraction(5, 12), Fraction(5, 6), Fraction(5, 6) / Fraction(6, 12)),
        (("butter",), "bread", Fraction(5, 12), Fraction(5, 6), Fraction(5, 6) / Fraction(6, 12)),
        # bread and milk: lines 1, 3, 5; half of those with bread, as of all: no information
        (("bread",), "milk", Fraction(3, 12), Fraction(3, 6), Fraction(1)),
        # tea and biscuits: lines 8, 9
        (("biscuits",), "tea", Fraction(2, 12), Fraction(1), Fraction(12, 4)),
        (("tea",), "biscuits", Fraction(2, 12), Fraction(2, 4), Fraction(2, 4) / Fraction(2, 12)),
        # jam and butter: lines 4, 5, 10, 11
        ((JAM,), "butter", Fraction(4, 12), Fraction(1), Fraction(12, 6)),
        # tea and milk: lines 7, 9
        (("milk",), "tea", Fraction(2, 12), Fraction(2, 6), Fraction(2, 6) / Fraction(4, 12)),
        # bread, butter and jam: lines 4, 5, 11; bread and jam: the same; butter and jam: four
        (("bread", "butter"), JAM, Fraction(3, 12), Fraction(3, 5), Fraction(3, 5) / Fraction(4, 12)),
        (("bread", JAM), "butter", Fraction(3, 12), Fraction(1), Fraction(12, 6)),
        (("butter", JAM), "bread", Fraction(3, 12), Fraction(3, 4), Fraction(3, 4) / Fraction(6, 12)),
        # bread, butter and milk: lines 1, 5; butter and milk: the same
        (("butter", "milk"), "bread", Fraction(2, 12), Fraction(1), Fraction(12, 6)),
        (("bread", "milk"), "butter", Fraction(2, 12), Fraction(2, 3), Fraction(2, 3) / Fraction(6, 12)),
        # biscuits, milk and tea: line 9
        (("biscuits", "milk"), "tea", Fraction(1, 12), Fraction(1), Fraction(12, 4)),
    ],
)
def test_twelve_baskets_by_hand(
    left: tuple[str, ...], right: str, support: Fraction, confidence: Fraction, lift: Fraction, tmp_path: Path
) -> None:
    rule = rules_of(write(tmp_path, TWELVE))[left, right]
    assert close(rule, support, confidence, lift), rule


def test_how_many_rules_twelve_baskets_make(tmp_path: Path) -> None:
    # Pairs: bread with butter, milk, jam; butter with milk, jam; milk with jam, tea, biscuits; tea with biscuits.
    # Threes: bread butter milk, bread butter jam, bread milk jam, butter milk jam; milk tea biscuits.
    file = write(tmp_path, TWELVE)
    assert len(rules_of(file)) == 9 * 2 + 5 * 3
    # At a quarter: bread-butter 5, bread-milk 3, bread-jam 3, butter-jam 4; and bread-butter-jam 3.
    assert len(rules_of(file, 0.25)) == 4 * 2 + 1 * 3
    # Of these, certain: jam gives butter, bread and jam give butter.
    assert rules_of(file, 0.25, 1.0).keys() == {((JAM,), "butter"), (("bread", JAM), "butter")}


# ---- against counting without cunning ------------------------------------------------------------------------------

some_baskets = st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1), min_size=1, max_size=25)
shares = st.one_of(st.floats(0, 1), st.fractions(0, 1, max_denominator=25).map(float))


def by_force(baskets: Sequence[set[str]], min_support: float, min_confidence: float) -> set[Rule]:
    def count(items: Iterable[str]) -> int:
        wanted = set(items)
        return sum(wanted <= basket for basket in baskets)

    found = set()
    for size in (2, 3):
        for items in combinations(sorted(set[str]().union(*baskets)), size):
            together = count(items)
            for right in items:
                left = tuple(item for item in items if item != right)
                if together and together / len(baskets) >= min_support and together / count(left) >= min_confidence:
                    support, confidence = Fraction(together, len(baskets)), Fraction(together, count(left))
                    lift = confidence / Fraction(count([right]), len(baskets))
                    found.add(Rule(left, right, float(support), float(confidence), float(lift)))
    return found


@given(baskets=some_baskets, min_support=shares, min_confidence=shares, counters=st.integers(1, 60))
@settings(max_examples=histories(400))
def test_every_rule_and_no_other(
    baskets: list[set[str]], min_support: float, min_confidence: float, counters: int, tmp_path_factory: Any
) -> None:
    """However few counters may live at once, down to one: then each pass counts one row."""
    file = tmp_path_factory.mktemp("baskets") / "baskets.csv"
    file.write_text("".join(",".join(basket) + "\n" for basket in baskets))
    found = list(count_item_sets(file, min_support, counters=counters).rules(min_confidence))
    assert len(found) == len(set(found))
    assert set(found) == by_force(baskets, min_support, min_confidence)


@given(baskets=some_baskets, counters=st.integers(1, 60))
def test_a_pass_keeps_no_more_counters_than_it_may(baskets: list[set[str]], counters: int) -> None:
    numbered = [sorted(map(ord, basket)) for basket in baskets]
    tails = [(item, basket[place:]) for basket in numbered for place, item in enumerate(basket, 1)]
    done: int | None = None
    counted: set[int] = set()
    while True:
        rows, given_up = _one_pass(tails, done, counters)
        assert sum(map(len, rows.values())) <= counters or len(rows) == 1
        assert counted.isdisjoint(rows)
        counted |= rows.keys()
        if given_up is None:
            break
        done = max(rows)
    assert counted == {item for item, _ in tails}


@given(share=st.floats(0, 1), baskets=st.integers(1, 10**7))
def test_the_least_count_is_the_first_that_is_enough(share: float, baskets: int) -> None:
    least = min_count(share, baskets)
    assert 1 <= least <= baskets
    assert least / baskets >= share
    assert least == 1 or (least - 1) / baskets < share


def test_baskets_that_do_not_fit_a_block_of_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rules_of(write(tmp_path, TWELVE))
    for items in (1, 2, 5):
        monkeypatch.setattr(basket_file, "_BLOCK", items)
        assert rules_of(write(tmp_path, TWELVE)) == whole


# ---- files in the wild -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "baskets"),
    [
        (b"", []),
        (b"\n\n\r\n", []),
        (b"a,b", [{"a", "b"}]),
        (b"a,b,,,\r\nc,,\r\n", [{"a", "b"}, {"c"}]),
        (b"\xef\xbb\xbfa,b\n", [{"a", "b"}]),
        (b"\xef\xbb\xbf\n a , b\t\n", [{"a", "b"}]),
        (b",,\n , ,\na\n", [{"a"}]),
        (b"a,a, a\n", [{"a"}]),
        (b'"a,b","say ""c""", "d"\n', [{"a,b", 'say "c"', "d"}]),
        (b'"",a,""\r\n', [{"a"}]),
        ("tée,☕\n".encode(), [{"tée", "☕"}]),
        (b'milk, "rye, dark" ,eggs\n', [{"milk", "rye, dark", "eggs"}]),
        (b'milk,\t"rye, dark"\t,eggs\n', [{"milk", "rye, dark", "eggs"}]),
        ('milk,\u00a0"rye, dark"\u00a0,eggs\n'.encode(), [{"milk", "rye, dark", "eggs"}]),
        (b'"milk","eggs"\n"a"', [{"milk", "eggs"}, {"a"}]),
        (b'a,"b",\n', [{"a", "b"}]),
        (b"a,b\rc,d\r", [{"a", "b"}, {"c", "d"}]),
        (b"a,b\r\nc,d\re\n\rf", [{"a", "b"}, {"c", "d"}, {"e"}, {"f"}]),
    ],
)
def test_lines_are_read_as_they_are_written(text: bytes, baskets: list[set[str]], tmp_path: Path) -> None:
    assert list(read_baskets(write(tmp_path, text))) == baskets


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_are_found_wherever_a_block_ends(
    block: int, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(basket_file, "_READ_BYTES", block)
    for last in ("", end):
        text = f"a,b{end}{end}c{end}dd,e{last}"
        assert list(read_baskets(write(tmp_path, text.encode()))) == [{"a", "b"}, {"c"}, {"dd", "e"}]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"a,b\nc,\xff\n", "line 2 is not UTF-8: byte 0xff in column 3"),
        ("a,b\n".encode("utf-16"), "line 1 is not UTF-8: byte 0xff in column 1"),
        (b'a\n"b,c\nd\n', "line 2: double quotes must surround a whole item"),
        (b'a\n"b"c,d\n', "line 2: double quotes must surround a whole item"),
        (b'a\rb\rc"d"\r', "line 3: double quotes must surround a whole item"),
        (b'a\n"b" "c",d\n', "line 2: double quotes must surround a whole item"),
        (b"a\n" + b" " * 500_000 + b'"b\n', "line 2: double quotes must surround a whole item"),
        (b"a," * 600_000, "line 1 is longer than 1048576 bytes"),
    ],
)
def test_a_line_that_is_not_a_basket_is_named(text: bytes, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(BasketsError) as error:
        list(read_baskets(write(tmp_path, text)))
    assert complaint in str(error.value)


# ---- the command ---------------------------------------------------------------------------------------------------


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `holdfast baskets` in this process: a process of its own for each would take a second each."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["holdfast", "baskets", *arguments])
        try:
            status = insights_command.main()
        except SystemExit as end:
            status = int(str(end.code))
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_the_answer_for_machines(tmp_path: Path) -> None:
    arguments = (str(write(tmp_path, TWELVE)), "--min-support", "0.25", "--min-confidence", "0.75", "--json")
    argv = [sys.executable, "-m", "infrastructure.local", "baskets", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["baskets"] == 12
    assert answer["rules"] == [
        {"left": [JAM], "right": "butter", "support": 4 / 12, "confidence": 1.0, "lift": 2.0},
        {"left": ["bread", JAM], "right": "butter", "support": 3 / 12, "confidence": 1.0, "lift": 2.0},
        {"left": ["bread"], "right": "butter", "support": 5 / 12, "confidence": 5 / 6, "lift": 5 / 3},
        {"left": ["butter"], "right": "bread", "support": 5 / 12, "confidence": 5 / 6, "lift": 5 / 3},
        {"left": ["butter", JAM], "right": "bread", "support": 3 / 12, "confidence": 3 / 4, "lift": 1.5},
        {"left": [JAM], "right": "bread", "support": 3 / 12, "confidence": 3 / 4, "lift": 1.5},
    ]


def test_the_answer_for_readers(tmp_path: Path, command: Command) -> None:
    status, answer, complaint = command(str(write(tmp_path, TWELVE)))
    assert (status, complaint) == (0, "")
    assert answer.startswith("12 baskets; 33 rules")
    by_lift, by_support = answer.split("the top 10 by support")
    assert by_lift.count("\n") > 10
    first = by_support.splitlines()[2]
    assert first.split() == ["bread", "butter", "0.4167", "0.833", "1.67"]


def test_a_file_without_baskets(tmp_path: Path, command: Command) -> None:
    status, answer, _ = command(str(write(tmp_path, "\n")), "--json")
    assert (status, json.loads(answer)) == (0, {"baskets": 0, "rules": []})


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("gone.csv",), 2, "gone.csv: there is no such file"),
        ((".",), 2, ".: a directory"),
        ((), 2, "FILE.csv"),
        (("baskets.csv", "--min-support", "1.5"), 2, "'1.5' is not a share from 0 to 1"),
        (("baskets.csv", "--min-support", "nan"), 2, "'nan' is not a share from 0 to 1"),
        (("baskets.csv", "--min-confidence", "-0.1"), 2, "'-0.1' is not a share from 0 to 1"),
        (("baskets.csv", "--min-confidence", "half"), 2, "'half' is not a share from 0 to 1"),
        (("baskets.csv",), 1, "baskets.csv: line 1 is not UTF-8"),
    ],
)
def test_wrong_use_and_wrong_files(
    arguments: tuple[str, ...],
    status: int,
    complaint: str,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path, b"\xfe\n")
    monkeypatch.chdir(tmp_path)
    ended, answer, said = command(*arguments)
    assert (ended, answer) == (status, "")
    assert complaint in said
    assert "Traceback" not in said
