"""Reader of CSV files that people, spreadsheets and other shops made.

A row is returned by the names of its header, or with an error. Nothing is guessed: a row with too few or too many
fields, a column that is named twice, and a quote that is never closed are errors that name their line.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

DELIMITERS: Final = ",;\t"
"""Delimiters of columns; the one that the header has most of is used."""
_SHOWN: Final = 40


class CsvFileError(ValueError):
    """A file cannot be read. The message names the line and what to do."""


class CsvRow(NamedTuple):
    """A row: its line, its fields by the name of their column, and `error` instead of fields if it has too few."""

    line: int
    fields: Mapping[str, str]
    error: str | None = None


def read_text(path: Path, *, fallback: str | None = None) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark, or else in the encoding `fallback`.

    Raise `CsvFileError` if the file is in neither, and `OSError` if it cannot be read.
    """
    content = path.read_bytes()
    for encoding in ("utf-8-sig", *([fallback] if fallback else [])):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            found = f"line {line}: not {encoding.removesuffix('-sig').upper()} (byte 0x{content[error.start]:02x})"
    raise CsvFileError(f"{found}: save the file as UTF-8; spreadsheets call it `CSV UTF-8`")


def read_rows(
    lines: Iterable[str], columns: Sequence[str], *, aliases: Mapping[str, str] | None = None
) -> Iterator[CsvRow]:
    """Yield the rows below the header, without blank ones; fields are stripped of surrounding blanks.

    `aliases` maps other names of a column to the name in `columns`. Columns that are not in `columns` are ignored.
    Raise `CsvFileError` if the header lacks one or names it twice, or if the rest of the file cannot be parsed.
    """
    remaining = iter(lines)
    header = next(remaining, "")
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.reader(chain((header,), remaining), delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        names = [(aliases or {}).get(name.strip(), name.strip()) for name in next(reader, [])]
        _require_columns(names, columns)
        line = reader.line_num + 1
        for fields in reader:
            if any(map(str.strip, fields)):
                yield _row(line, names, fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise CsvFileError(f"line {line}: {_explain(error)}") from None


def shorten(text: str) -> str:
    """Return `text` for an error message: quoted, and cut if it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _require_columns(names: Sequence[str], columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in names]:
        raise CsvFileError(f"line 1: the header lacks {', '.join(missing)}; expected the columns {', '.join(columns)}")
    if twice := [column for column in columns if names.count(column) > 1]:
        raise CsvFileError(f"line 1: the header names {', '.join(twice)} twice: rename or remove one of the columns")


def _row(line: int, names: Sequence[str], fields: Sequence[str]) -> CsvRow:
    if len(fields) != len(names):
        return CsvRow(
            line,
            {},
            f"{len(fields)} fields instead of {len(names)}: put a field that contains the delimiter in double quotes",
        )
    return CsvRow(line, {name: field.strip() for name, field in zip(names, fields, strict=True)})


def _explain(error: csv.Error) -> str:
    match str(error):
        case "unexpected end of data":
            return "a quote opens here and is never closed"
        case text if text.startswith("field larger than field limit"):
            return f"a field is longer than {csv.field_size_limit()} characters: a quote may be missing"
        case text:
            return text
