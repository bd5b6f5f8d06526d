"""The one shape of every record on a topic: a CloudEvents 1.0 JSON object on one line.

Everything a reader needs stands in the value; the key repeats the subject, and headers only add. A record that is not
such an object raises `Undecodable` with one of the dead-letter reasons of the contract, never anything else.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, Self, TypeVar

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

MAX_VALUE_BYTES: Final = 64 * 1024
HEADERS: Final = {"content-type": b"application/cloudevents+json"}

Reason = Literal[
    "not_utf8",
    "not_json",
    "not_cloudevent",
    "unknown_type",
    "bad_data",
    "too_big",
    "no_key",
    "wrong_key",
    "wrong_source",
    "failed",
]


def rfc3339(moment: datetime) -> str:
    """`moment` in UTC with milliseconds, as every time of the contract is written: `2026-11-21T03:24:41.118Z`."""
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return f"{utc.isoformat(timespec='milliseconds')[:-6]}Z"  # less the +00:00 at its end


Moment = Annotated[AwareDatetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
"""A time in a message: read with any offset, written as `rfc3339` does."""


class Undecodable(ValueError):
    """A record that no code here can act on; it belongs to the dead letters under `reason`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


class Message(BaseModel):
    """The `data` of one type of event. Unknown fields are ignored, so that fields may be added."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    TYPE: ClassVar[str]
    KEY: ClassVar[str] = "user_id"
    """The field that repeats the record's key, in the messages that have it."""

    def fault(self, event: "Envelope") -> str | None:  # noqa: ARG002 - for those that have such a rule
        """Why this cannot be the data of `event`, though each is right for itself; none when it can."""
        return None


M = TypeVar("M", bound=Message)


class Envelope(BaseModel):
    """A CloudEvents 1.0 event in structured mode.

    `id` is derived from the cause, so the same event always has the same id; `time` is the first acceptance of a
    request, or the instant of a decision; `requestid` is the client's own id.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1, max_length=256)
    source: str = Field(pattern=r"^/[a-z-]+$")
    type: str = Field(pattern=r"^holdfast\.[a-z.-]+$")
    subject: str = Field(min_length=1, max_length=128)
    time: AwareDatetime
    datacontenttype: Literal["application/json"] = "application/json"
    traceparent: str | None = None
    requestid: str | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[ -~]+$")
    data: dict[str, Any]

    @property
    def key(self) -> bytes:
        """The record's key: the subject in UTF-8."""
        return self.subject.encode()

    @property
    def request_id(self) -> str:
        """The id of a request; one that came without gets it from its event."""
        return self.requestid or self.id[-64:]

    def encode(self) -> bytes:
        """The record's value: one line of JSON without a raw TAB, at most `MAX_VALUE_BYTES` for ordinary topics."""
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
        """The event in a record; `Undecodable` says what is wrong with one that holds none."""
        if not key:
            raise Undecodable("no_key", "the record has no key; send it with its subject as key")
        if value is None:
            raise Undecodable("not_json", "the record has no value")
        if len(value) > MAX_VALUE_BYTES:
            raise Undecodable("too_big", f"{len(value)} bytes; a value has at most {MAX_VALUE_BYTES}")
        fields = _fields(value)
        if "specversion" not in fields:  # the default is for those who write
            raise Undecodable("not_cloudevent", "specversion: Field required")
        try:
            event = cls.model_validate(fields)
        except ValidationError as error:
            raise Undecodable("not_cloudevent", first_fault(error)) from None
        if event.key != key:
            raise Undecodable("wrong_key", f"the key is not the subject {event.subject!r}")
        return event


def _fields(value: bytes) -> dict[str, Any]:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise Undecodable("not_utf8", str(error)) from None
    try:
        fields = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Undecodable("not_json", str(error)) from None
    if not isinstance(fields, dict):
        raise Undecodable("not_cloudevent", "a CloudEvent is a JSON object")
    return fields


def first_fault(error: ValidationError) -> str:
    """Where the first fault of a validation lies and what it is, without the offending input."""
    fault = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'value'}: {fault['msg']}"


class Vocabulary(Generic[M]):
    """The message types that may stand on one topic, and the sources they may come from."""

    def __init__(self, messages: Iterable[type[M]], sources: Iterable[str]) -> None:
        self.types: Mapping[str, type[M]] = {message.TYPE: message for message in messages}
        self.sources = frozenset(sources)

    def parse(self, event: Envelope) -> M:
        """The message in `event`; `Undecodable` for a type, a source or data that this topic does not know."""
        message = self.types.get(event.type)
        if message is None:
            raise Undecodable("unknown_type", f"{event.type!r} is not one of {', '.join(sorted(self.types))}")
        if event.source not in self.sources:
            raise Undecodable("wrong_source", f"{event.source!r} is not one of {', '.join(sorted(self.sources))}")
        try:
            parsed = message.model_validate_json(orjson.dumps(event.data))
        except ValidationError as error:
            raise Undecodable("bad_data", first_fault(error)) from None
        if getattr(parsed, parsed.KEY, event.subject) != event.subject:
            raise Undecodable("wrong_key", f"data.{parsed.KEY} is not the subject {event.subject!r}")
        if fault := parsed.fault(event):
            raise Undecodable("bad_data", fault)
        return parsed
