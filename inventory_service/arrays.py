"""Array literals, written here: psycopg dumps lists element by element in Python, two thirds of a batch's CPU time."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from inventory_service.messages import StoredOutcome

NOTHING: Final = "{}"


def texts(values: Iterable[str]) -> str:
    """A `text[]` literal. Postgres text can't hold NUL, which is why it may separate."""
    joined = "\0".join(values)
    return '{"' + joined.replace("\\", r"\\").replace('"', r"\"").replace("\0", '","') + '"}' if joined else NOTHING


def optional_texts(values: Iterable[str | None]) -> str:
    """The same; None is NULL."""
    return "{" + ",".join("NULL" if value is None else texts((value,))[1:-1] for value in values) + "}"


def scalars(values: Iterable[object]) -> str:
    """The same for numbers and times; None is NULL."""
    return "{" + ",".join("NULL" if value is None else f'"{value}"' for value in values) + "}"


def documents(values: Iterable[Mapping[str, Any]]) -> str:
    """The same for JSON objects."""
    return texts(orjson.dumps(value).decode() for value in values)


def outcomes(values: Iterable[StoredOutcome]) -> str:
    """The same for stored outcomes."""
    return texts(value.model_dump_json() for value in values)
