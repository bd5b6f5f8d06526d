"""A reader of basket files, one basket per line. The file is parsed once and spooled as numbers for further passes.

Memory holds the name and count of each distinct item, at most `COUNTERS` counters, and the result. The baskets are in
temporary files.
"""

import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from order_service.insights.baskets import COUNTERS, Basket, ItemSetCounts, count_pairs, count_triples, min_count

MAX_LINE: Final = 1024 * 1024
"""The greatest length of a line in bytes: a longer one is probably not from a file of baskets."""
_BLOCK: Final = 8192
_READ_BYTES: Final = 1 << 16
_LINE_END: Final = re.compile(rb"\r\n|\r(?=.)|\n", re.DOTALL)
_LAST_LINE_END: Final = re.compile(rb"\r\n?|\n")
_FIELD: Final = re.compile(r'\s*+(?:"((?:[^"]|"")*+)"|([^",]*+))\s*+(?=,|\Z)')
"""A field up to its comma or the end of the line, quoted (first group) or plain (second group)."""
_BOM: Final = b"\xef\xbb\xbf"


class BasketsError(ValueError):
    """The file is not a valid file of baskets. The message names the line and the error."""


def count_item_sets(file: Path, min_support: float, *, counters: int = COUNTERS) -> ItemSetCounts:
    """Count the sets of one, two and three items whose support in `file` is at least `min_support`.

    Raise `BasketsError` for an invalid file, and `OSError` if the file is not readable or the disk is full.
    """
    numbers: dict[str, int] = {}
    counts: Counter[int] = Counter()
    baskets = 0
    with _Spool() as whole, _Spool() as frequent:
        for basket in read_baskets(file):
            items = [numbers.setdefault(name, len(numbers)) for name in basket]
            counts.update(items)
            whole.add(items)
            baskets += 1
        if not baskets:
            return ItemSetCounts(0, (), (), {}, {})
        least = min_count(min_support, baskets)
        ranked = _rarest_first(counts, least)
        ranks = {number: rank for rank, number in enumerate(ranked)}
        for numbered in whole:
            kept = sorted(ranks[number] for number in numbered if number in ranks)
            if len(kept) > 1:
                frequent.add(kept)
        every = list(numbers)
        names, singles = [every[number] for number in ranked], [counts[number] for number in ranked]
        del every, numbers, counts, ranks  # frees the rare items, which may be most of them
        pairs = count_pairs(frequent.__iter__, least, counters=counters)
        triples = count_triples(frequent.__iter__, pairs, least, counters=counters)
    return ItemSetCounts(baskets, names, singles, pairs, triples)


def _rarest_first(counts: Counter[int], least: int) -> list[int]:
    """Return the frequent items, the rarest first.

    In this order all rows of counters are short: few baskets have a rare item, and few items follow a frequent one.
    """
    return sorted((number for number, count in counts.items() if count >= least), key=lambda n: (counts[n], n))


def read_baskets(file: Path) -> Iterator[set[str]]:
    """Yield the items of each line, without surrounding blanks. Empty fields and lines without items are skipped."""
    with file.open("rb") as lines:
        for number, line in enumerate(_split_lines(lines), 1):
            if len(line) > MAX_LINE:
                raise BasketsError(f"{file}: line {number} is longer than {MAX_LINE} bytes; a basket is one line")
            content = line.removeprefix(_BOM) if number == 1 else line
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                raise BasketsError(
                    f"{file}: line {number} is not UTF-8: byte 0x{content[error.start]:02x} in column {error.start + 1}"
                ) from None
            fields = _fields(text)
            if fields is None:
                raise BasketsError(f"{file}: line {number}: double quotes must surround a whole item, blanks aside")
            items = {item for field in fields if (item := field.strip())}
            if items:
                yield items


def _split_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file without their ends: LF, CR LF or CR. A line that is too long is cut and ends them."""
    rest, block = b"", file.read(_READ_BYTES)
    while block:
        rest += block
        block = file.read(_READ_BYTES)
        # A CR at the end of a block may be followed by its LF in the next one.
        *lines, rest = _LINE_END.split(rest) if block else _LAST_LINE_END.split(rest)
        yield from lines
        if len(rest) > MAX_LINE:
            break
    if rest:
        yield rest[: MAX_LINE + 1]


def _fields(line: str) -> list[str] | None:
    """Return the fields of a line; `None` if it has a quote that does not surround a field, or is never closed.

    Each line is parsed by itself, so an unclosed quote invalidates one line, not the rest of the file.
    """
    if '"' not in line:
        return line.split(",")
    fields, end = [], -1
    while end < len(line):
        field = _FIELD.match(line, end + 1)
        if field is None:
            return None
        quoted, plain = field.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        end = field.end()
    return fields


class _Spool:
    """A temporary file of baskets, in blocks of flat arrays: 4 bytes per item and 4 bytes per basket."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed in `__exit__`
        self._lengths = array("I")
        self._items = array("I")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, basket: Iterable[int]) -> None:
        """Append a basket. Call it only before the first iteration."""
        before = len(self._items)
        self._items.extend(basket)
        self._lengths.append(len(self._items) - before)
        if len(self._items) >= _BLOCK:
            self._flush()

    def __iter__(self) -> Iterator[Basket]:
        """Yield all baskets from the first one. Iteration may be repeated."""
        self._flush()
        self._file.seek(0)
        while head := self._file.read(2 * array("I").itemsize):
            baskets, count = array("I", head)
            lengths, items = array("I"), array("I")
            lengths.fromfile(self._file, baskets)
            items.fromfile(self._file, count)
            flat, start = items.tolist(), 0
            for length in lengths:
                yield flat[start : start + length]
                start += length

    def _flush(self) -> None:
        if self._lengths:
            for part in (array("I", (len(self._lengths), len(self._items))), self._lengths, self._items):
                part.tofile(self._file)
            self._lengths, self._items = array("I"), array("I")
