"""Format of all records on topics: a CloudEvents 1.0 JSON object on one line.

The value is complete: the key repeats the subject, and headers add nothing that a reader needs. Any other record raises
`UndecodableError` with one of the contract's dead-letter reasons, and no other exception.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, Self, TypeVar

import orjson
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from contracts.trace_context import child_traceparent

MAX_VALUE_BYTES: Final = 64 * 1024
HEADERS: Final = {"content-type": b"application/cloudevents+json"}

DeadLetterReason = Literal[
    "not_utf8",
    "not_json",
    "not_cloudevent",
    "unknown_type",
    "bad_data",
    "too_big",
    "no_key",
    "wrong_key",
    "wrong_source",
    "unreadable",
    "failed",
]

EARLIEST_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)
LATEST_TIME: Final = datetime(2100, 1, 1, tzinfo=UTC)
"""The first time that is accepted, and the first one that is not any more. No event of a shop is older than Kafka, and
time differences and time zones never lead from this range out of the years that Python and PostgreSQL can represent."""


@lru_cache(maxsize=256)  # the events of a batch have few different times, and formatting one takes two microseconds
def rfc3339(moment: datetime) -> str:
    """Return `moment` in UTC with milliseconds, the contract's format of a time: `2026-11-21T03:24:41.118Z`."""
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return f"{utc.isoformat(timespec='milliseconds')[:-6]}Z"  # without the +00:00 at the end


def require_plausible_time(moment: datetime) -> datetime:
    """Return `moment`. Raise `ValueError` unless it lies between `EARLIEST_TIME` and `LATEST_TIME`."""
    if not EARLIEST_TIME <= moment < LATEST_TIME:
        raise ValueError(f"a time lies from {rfc3339(EARLIEST_TIME)} on and before {rfc3339(LATEST_TIME)}")
    return moment


PlausibleTime = Annotated[AwareDatetime, AfterValidator(require_plausible_time)]
"""A time with any UTC offset, from 2000 to 2099: the type of each time that comes from outside."""
Timestamp = Annotated[PlausibleTime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
"""A time in a message: read with any UTC offset, written by `rfc3339`."""


class UnreadableBatch(bytes):
    """The bytes of records that Kafka's client cannot decode, in the place of a record's value.

    It stands for all offsets from `first_offset` to `last_offset` of its partition. `reason` is the decoder's error.
    """

    first_offset: int
    last_offset: int
    reason: str

    def __new__(cls, raw: bytes, *, first_offset: int, last_offset: int, reason: str) -> Self:
        """Return `raw` with the offsets that it stands for."""
        value = super().__new__(cls, raw)
        value.first_offset, value.last_offset, value.reason = first_offset, last_offset, reason
        return value

    @property
    def explanation(self) -> str:
        """A sentence for people: which offsets cannot be read, and why."""
        offsets = f"offset {self.first_offset}"
        if self.last_offset > self.first_offset:
            offsets = f"offsets {self.first_offset} to {self.last_offset}"
        return f"{offsets} cannot be decoded: {self.reason}"


class UndecodableError(ValueError):
    """The record cannot be processed by any service. It is to be dead-lettered with `reason`."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DeadLetterReason = reason
        self.detail = detail


class Message(BaseModel):
    """Base of the `data` of one event type. Unknown fields are ignored, so that fields can be added."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    TYPE: ClassVar[str]
    KEY: ClassVar[str] = "user_id"
    """Name of the field that repeats the record's key, if the message has such a field."""

    def contradiction(self, event: "Envelope") -> str | None:  # noqa: ARG002 - used by subclasses
        """Return why this message contradicts its `event`, though both are valid by themselves; `None` if not."""
        return None


M = TypeVar("M", bound=Message)


MessageOrClass = Message | type[Message]
"""Within `Envelope`, `type` is a field and cannot be written in an annotation."""


class Envelope(BaseModel):
    """A CloudEvents 1.0 event in structured mode.

    `id` is derived from the cause, so an event that is published again has the same id. `time` is when the request was
    first accepted, or when the decision was made. `requestid` is the client's id of the request.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1, max_length=256)
    source: str = Field(pattern=r"^/[a-z-]+$")
    type: str = Field(pattern=r"^holdfast\.[a-z.-]+$")
    subject: str = Field(min_length=1, max_length=128)
    time: PlausibleTime
    datacontenttype: Literal["application/json"] = "application/json"
    traceparent: str | None = None
    requestid: str | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[ -~]+$")
    data: dict[str, Any]

    @classmethod
    def of(  # noqa: PLR0913 - one parameter for each attribute that a service may set
        cls,
        message: MessageOrClass,
        *,
        source: str,
        cause: "Envelope | None" = None,
        subject: str | None = None,
        event_id: str | None = None,
        request_id: str | None = None,
        time: datetime | None = None,
        traceparent: str | None = None,
        data: dict[str, Any] | None = None,
        exclude_none: bool = True,
        validate: bool = True,
    ) -> "Envelope":
        """Return the event that carries `message`.

        `cause` is the event that led to this one: its request id and its time are the defaults for `request_id` and
        `time`, and the new event becomes a child span in its trace. Without a `cause`, `time` is required, and
        `traceparent` is written as given.

        The defaults of the other attributes: `subject` is the field of the message that repeats the record's key,
        `event_id` is `subject/request_id/verb` with the last word of the message's type as the verb, and `data` is the
        message as JSON, with fields that are `None` left out unless `exclude_none` is false.

        If the data is already available as JSON, pass the message's class as `message`, with `subject` and `data`.

        Pass `validate=False` only where every attribute was validated before: validation takes a tenth of the time of a
        batch.
        """
        if cause is not None:
            request_id = request_id or cause.request_id
            time = time or cause.time
            traceparent = traceparent or child_traceparent(cause.traceparent)
        if subject is None:
            subject = getattr(message, message.KEY)
        if event_id is None:
            event_id = f"{subject}/{request_id}/{message.TYPE.rpartition('.')[2]}"
        if data is None:
            if not isinstance(message, Message):
                raise TypeError(f"{message.__name__} is a class: pass an instance, or its data")
            data = message.model_dump(mode="json", exclude_none=exclude_none)
        build: Callable[..., Envelope] = cls if validate else cls._unchecked
        return build(
            id=event_id,
            source=source,
            type=message.TYPE,
            subject=subject,
            time=time,
            traceparent=traceparent,
            requestid=request_id,
            data=data,
        )

    @classmethod
    def _unchecked(cls, **attributes: Any) -> Self:
        """Return an event of attributes that were validated before.

        pydantic's `model_construct` does the same, and takes five times as long to look for defaults and aliases.
        """
        event = cls.__new__(cls)
        state = {"specversion": "1.0", "datacontenttype": "application/json", **attributes}
        event.__setstate__(
            {
                "__dict__": state,
                "__pydantic_fields_set__": set(attributes),
                "__pydantic_extra__": None,
                "__pydantic_private__": None,
            }
        )
        return event

    @property
    def key(self) -> bytes:
        """Key of the record: the subject in UTF-8."""
        return self.subject.encode()

    @property
    def request_id(self) -> str:
        """Id of the request. Without a `requestid` it is taken from the id of the event."""
        return self.requestid or self.id[-64:]

    def encode(self) -> bytes:
        """Return the record's value: one line of JSON without a raw TAB, on ordinary topics up to `MAX_VALUE_BYTES`."""
        fields: dict[str, Any] = {
            "specversion": self.specversion,
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "subject": self.subject,
            "time": rfc3339(self.time),
            "datacontenttype": self.datacontenttype,
        }
        if self.traceparent:
            fields["traceparent"] = self.traceparent
        if self.requestid:
            fields["requestid"] = self.requestid
        fields["data"] = self.data
        return orjson.dumps(fields)

    @classmethod
    def decode(cls, key: bytes | None, value: bytes | None) -> Self:
        """Return the event in a record. Raise `UndecodableError` with what is wrong if there is none."""
        if isinstance(value, UnreadableBatch):
            raise UndecodableError("unreadable", value.explanation)
        if not key:
            raise UndecodableError("no_key", "the record has no key; send it with its subject as key")
        fields = _parse_json(value)
        if not isinstance(fields, dict):
            raise UndecodableError("not_cloudevent", "a CloudEvent is a JSON object")
        if "specversion" not in fields:  # required of others; the default is for our own events
            raise UndecodableError("not_cloudevent", "specversion: Field required")
        try:
            event = cls.model_validate(fields)
        except ValidationError as error:
            raise UndecodableError("not_cloudevent", first_error(error)) from None
        if event.subject.encode() != key:
            raise UndecodableError("wrong_key", f"the key is not the subject {event.subject!r}")
        return event


def _parse_json(value: bytes | None) -> Any:
    if value is None:
        raise UndecodableError("not_json", "the record has no value")
    if len(value) > MAX_VALUE_BYTES:
        raise UndecodableError("too_big", f"{len(value)} bytes; a value has at most {MAX_VALUE_BYTES}")
    try:
        value.decode()
        return orjson.loads(value)
    except UnicodeDecodeError as error:
        raise UndecodableError("not_utf8", str(error)) from None
    except orjson.JSONDecodeError as error:
        raise UndecodableError("not_json", str(error)) from None


def first_error(error: ValidationError) -> str:
    """Return the place and the message of the first validation error, without the rejected input."""
    fault = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'value'}: {fault['msg']}"


class MessageRegistry(Generic[M]):
    """Registry of the message types of one topic, and of the sources that may publish them."""

    def __init__(self, messages: Iterable[type[M]], sources: Iterable[str]) -> None:
        self.types: Mapping[str, type[M]] = {message.TYPE: message for message in messages}
        self.sources = frozenset(sources)

    def parse(self, event: Envelope) -> M:
        """Return the message in `event`. Raise `UndecodableError` for an unknown type or source, or invalid data."""
        message = self.types.get(event.type)
        if message is None:
            raise UndecodableError("unknown_type", f"{event.type!r} is not one of {', '.join(sorted(self.types))}")
        if event.source not in self.sources:
            raise UndecodableError("wrong_source", f"{event.source!r} is not one of {', '.join(sorted(self.sources))}")
        try:
            parsed = message.model_validate_json(orjson.dumps(event.data))
        except ValidationError as error:
            raise UndecodableError("bad_data", first_error(error)) from None
        if getattr(parsed, parsed.KEY, event.subject) != event.subject:
            raise UndecodableError("wrong_key", f"data.{parsed.KEY} is not the subject {event.subject!r}")
        if fault := parsed.contradiction(event):
            raise UndecodableError("bad_data", fault)
        return parsed
