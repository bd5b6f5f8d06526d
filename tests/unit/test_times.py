"""Times from outside lie in one range, whatever message they are in, and no arithmetic with them overflows."""

import importlib
import json
import pkgutil
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final

import pytest
from psycopg.adapt import Loader
from pydantic import BaseModel, TypeAdapter, ValidationError

import contracts
from contracts.envelope import EARLIEST_TIME, LATEST_TIME, Envelope, Timestamp, UndecodableError, rfc3339
from infrastructure.audit.topic_auditor import AuditWindow, format_key, record_time
from infrastructure.local.commands.topic_reader import format_timestamp
from infrastructure.storage.postgres import BoundedTimestamptzLoader
from tests.testkit.foreign_records import USER, event

IMPLAUSIBLE: Final = (
    "9999-12-31T23:59:59-05:00",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00Z",
    "1999-12-31T23:59:59.999999Z",
    "2100-01-01T00:00:00Z",
    "2000-01-01T00:00:00+00:01",
)
PLAUSIBLE: Final = ("2000-01-01T00:00:00Z", "2099-12-31T23:59:59.999999Z", "2100-01-01T00:00:00+00:01")


def models() -> list[type[BaseModel]]:
    """Return all models of the contracts."""
    modules = [importlib.import_module(f"contracts.{found.name}") for found in pkgutil.iter_modules(contracts.__path__)]
    found = {each for module in modules for each in vars(module).values() if isinstance(each, type)}
    return sorted((each for each in found if issubclass(each, BaseModel)), key=lambda model: model.__qualname__)


def time_fields() -> list[tuple[type[BaseModel], str]]:
    return [
        (model, name)
        for model in models()
        for name, field in model.model_fields.items()
        if "datetime" in str(field.annotation).lower()
    ]


@pytest.mark.parametrize(("model", "field"), time_fields(), ids=lambda each: getattr(each, "__name__", each))
@pytest.mark.parametrize("text", [*IMPLAUSIBLE, *PLAUSIBLE])
def test_every_time_field_of_the_contracts_has_the_range(model: type[BaseModel], field: str, text: str) -> None:
    errors: list[Any] = []
    try:
        model.__pydantic_validator__.validate_json(f'{{"{field}": "{text}"}}')
    except ValidationError as error:
        errors = [each for each in error.errors() if each["loc"] == (field,)]
    assert bool(errors) == (text in IMPLAUSIBLE)
    assert not errors or "from 2000-01-01T00:00:00.000Z on" in errors[0]["msg"]


def test_there_are_such_fields() -> None:
    assert {(model.__name__, field) for model, field in time_fields()} >= {
        ("Envelope", "time"),
        ("Send", "until"),
        ("Held", "expires_at"),
        ("PendingRequest", "since"),
        ("Expire", "due"),
        ("Figures", "start"),
    }


@pytest.mark.parametrize("text", IMPLAUSIBLE)
def test_an_event_of_an_impossible_time_is_dead_lettered_with_the_range(text: str) -> None:

    with pytest.raises(UndecodableError) as refused:
        Envelope.decode(USER.encode(), json.dumps(event(time=text)).encode())
    assert refused.value.reason == "not_cloudevent"
    assert "time: " in refused.value.detail


@pytest.mark.parametrize("text", PLAUSIBLE)
def test_arithmetic_with_an_accepted_time_stays_within_what_can_be_represented(text: str) -> None:
    adapter = TypeAdapter(Timestamp)
    moment = adapter.validate_json(f'"{text}"')
    assert adapter.validate_json(adapter.dump_json(moment)) - moment < timedelta(milliseconds=1)
    for years in (-1000, 1000):
        rfc3339((moment + timedelta(days=365 * years)).astimezone(UTC))


# ---- times that others have stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        (b"2026-11-21 03:24:41+00", datetime(2026, 11, 21, 3, 24, 41, tzinfo=UTC)),
        (b"10000-01-01 04:59:59+00", LATEST_TIME),
        (b"infinity", LATEST_TIME),
        (b"-infinity", EARLIEST_TIME),
        (b"0001-12-31 10:00:00+00 BC", EARLIEST_TIME),
    ],
)
def test_a_time_that_python_cannot_represent_is_loaded_as_the_nearest_accepted_one(
    stored: bytes, loaded: datetime
) -> None:
    loader: Loader = BoundedTimestamptzLoader(1184)
    assert loader.load(stored) == loaded


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (1_795_231_481_118, "2026-11-21T03:24:41.118Z"),
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "no timestamp"),
        (-62_135_596_800_000, "0001-01-01T00:00:00.000Z"),
        (-62_135_596_800_001, "timestamp -62135596800001"),
        (2**63 - 1, f"timestamp {2**63 - 1}"),
        (-(2**63), f"timestamp {-(2**63)}"),
    ],
)
def test_any_timestamp_of_a_record_has_a_text(milliseconds: int, text: str) -> None:
    assert format_timestamp(milliseconds) == text


@pytest.mark.parametrize("milliseconds", [-62_135_596_800_001, -1, 2**63 - 1, -(2**63)])
def test_an_audit_passes_records_of_any_timestamp(milliseconds: int) -> None:
    record = SimpleNamespace(timestamp=milliseconds)
    assert EARLIEST_TIME <= record_time(record) <= LATEST_TIME
    window = AuditWindow(datetime.now(UTC), timedelta(minutes=1), timedelta(days=7))
    assert not window.covers(record)


def test_a_key_of_a_megabyte_is_cut_in_sentences() -> None:
    assert format_key(b"\xff" * 1_000_000) == "\\xff" * 16 + "…"
    assert format_key(b"user") == "user"
