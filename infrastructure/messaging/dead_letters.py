"""Dead letters: records that cannot be processed, kept whole, with their position and the reason.

Everything is in the value, so that Kafka's console tools show it and a redrive needs nothing else. When a dead letter
is settled, a second record on the same topic says so: docs/adr/0010-settled-dead-letters.md.
"""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import orjson

from contracts.envelope import DeadLetterReason, Envelope

DEAD_LETTER_TYPE: Final = "holdfast.dead-letter"
SETTLED_TYPE: Final = "holdfast.dead-letter-settled"

Settlement = Literal["redriven", "dropped"]


@dataclass(frozen=True, slots=True)
class Record:
    """A record as read from the broker."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as read from its topic: its own `event`, and the `original` record."""

    event: Envelope
    original: Record


@dataclass(frozen=True, slots=True)
class SettledMarker:
    """The marker of a settled dead letter, by its id; `how` is redriven or dropped."""

    id: str
    how: str


def dead_letter_event(
    record: Record, *, reason: DeadLetterReason, detail: str, service: str, attempts: int, now: datetime
) -> Envelope:
    """Return the event to publish on `<topic>.dlq` for `record`. The same record always gets the same id."""
    position = f"{record.topic}/{record.partition}/{record.offset}"
    data: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        **_text_or_base64("key", record.key),
        **_text_or_base64("value", record.value),
        "reason": reason,
        "detail": detail[:2000],
        "service": service,
        "attempts": attempts,
    }
    subject = record.key.decode(errors="replace")[:128] if record.key else position
    return Envelope(id=position, source=f"/{service}", type=DEAD_LETTER_TYPE, subject=subject, time=now, data=data)


def settled_event(dead_letter: Envelope, how: Settlement, now: datetime) -> Envelope:
    """Return the marker that `dead_letter` is settled, to be published on the topic of the dead letter."""
    position = {name: dead_letter.data[name] for name in ("topic", "partition", "offset")}
    return Envelope(
        id=f"{dead_letter.id}/settled",
        source="/holdfast",
        type=SETTLED_TYPE,
        subject=dead_letter.subject,
        time=now,
        data={**position, "how": how},
    )


def decode(value: bytes | None) -> DeadLetter | SettledMarker | None:
    """Decode a record of a `.dlq` topic; return `None` if it is neither a dead letter nor a marker."""
    try:
        event = Envelope.model_validate(orjson.loads(value or b""))
        data = event.data
        position = (str(data["topic"]), int(data["partition"]), int(data["offset"]))
        if event.type == DEAD_LETTER_TYPE:
            return DeadLetter(event, Record(*position, _bytes(data, "key"), _bytes(data, "value")))
        if event.type == SETTLED_TYPE:
            return SettledMarker("/".join(map(str, position)), str(data["how"]))
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error):
        pass  # other programs can write to the topic too
    return None


def _text_or_base64(name: str, raw: bytes | None) -> dict[str, str | None]:
    """Return the bytes as text, or as base64 if they are not UTF-8 or would be longer as a JSON string."""
    if raw is None:
        return {name: None}
    encoded = base64.b64encode(raw).decode()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return {f"{name}_base64": encoded}
    if len(orjson.dumps(text)) > len(encoded) + 1024:
        return {f"{name}_base64": encoded}
    return {name: text}


def _bytes(data: dict[str, Any], name: str) -> bytes | None:
    """Return the bytes of a field that `_text_or_base64` wrote."""
    if f"{name}_base64" in data:
        return base64.b64decode(data[f"{name}_base64"], validate=True)
    text = data[name]
    return None if text is None else text.encode()
