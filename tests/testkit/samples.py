"""Sample messages that differ in every field, made from the types of a model's fields.

A field that is added to a model gets its sample values without a change here, unless its type is new or its pattern
allows none of `TEXTS`: then `samples` fails and says what to add.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import Annotated, Any, Final, Literal, TypeVar, cast, get_args, get_origin

from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

M = TypeVar("M", bound=BaseModel)

NOON: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)
TEXTS: Final = (
    ("GBP", "EUR"),
    ("GB", "FR"),
    ("ann@shop.example", "bob@shop.example"),
    ("+442071838750", "+33140205050"),
)
"""Pairs of texts for fields whose pattern an ordinary word does not match."""


def samples(model: type[M], **fields: Any) -> tuple[M, M]:
    """Return two valid messages that differ in every field but `fields`."""
    values = {name: _values(name, field) for name, field in model.model_fields.items() if name not in fields}
    first, second = (model.model_validate({name: pair[n] for name, pair in values.items()} | fields) for n in (0, 1))
    return first, second


def variants(model: type[M], **fields: Any) -> dict[str, tuple[M, M]]:
    """Return two valid messages that differ in one field only, for each field but `fields`."""
    message, other = samples(model, **fields)
    return {
        name: (message, model.model_validate({**dict(message), name: getattr(other, name)}))
        for name in model.model_fields
        if name not in fields
    }


def _values(name: str, field: FieldInfo) -> tuple[Any, Any]:
    # An empty text, since `Annotated` needs one argument at least.
    accepts: TypeAdapter[Any] = TypeAdapter(cast("Any", Annotated[field.annotation, "", *field.metadata]))
    for pair in _pairs(name, field.annotation):
        try:
            return accepts.validate_python(pair[0]), accepts.validate_python(pair[1])
        except ValidationError:
            continue
    raise AssertionError(f"no sample for {name}: {field.annotation}: add its type to tests/testkit/samples.py")


def _pairs(name: str, annotation: Any) -> Iterator[tuple[Any, Any]]:  # noqa: C901 - one per type
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        yield from _pairs(name, arguments[0])
    elif kind is Literal:
        yield arguments[0], arguments[-1]
    elif kind is tuple:
        yield from (((first,), (second,)) for first, second in _pairs(name, arguments[0]))
    elif kind is dict:
        yield {"name": f"{name} 1"}, {"name": f"{name} 2"}
    elif arguments:  # a union
        for argument in arguments:
            if argument is not NoneType:
                yield from _pairs(name, argument)
    elif annotation is bool:
        yield False, True
    elif annotation is int:
        yield 2, 3
    elif annotation in (datetime, AwareDatetime):
        yield NOON, NOON + timedelta(minutes=1)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield samples(annotation)
    else:
        yield f"{name} 1", f"{name} 2"
        yield from TEXTS
