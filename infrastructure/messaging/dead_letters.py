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

from contracts.envelope import DeadLetterReason, Envelope, UnreadableBatch
from contracts.topics import MAX_FOREIGN_BYTES

DEAD_LETTER_TYPE: Final = "holdfast.dead-letter"
SETTLED_TYPE: Final = "holdfast.dead-letter-settled"

MAX_KEY_BYTES: Final = 1024
"""Longest key of an original that is also the key of its dead letter."""

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
    """A dead letter as read from its topic: its own `event`, and the `original` record.

    `incomplete` says why the original cannot be sent again; it is `None` if it can.
    """

    event: Envelope
    original: Record
    incomplete: str | None = None


@dataclass(frozen=True, slots=True)
class SettledMarker:
    """The marker of a settled dead letter, by its id; `how` is redriven or dropped."""

    id: str
    how: str


def dead_letter_event(  # noqa: PLR0913 - the parts of a dead letter
    record: Record,
    *,
    reason: DeadLetterReason,
    detail: str,
    service: str,
    attempts: int,
    now: datetime,
    with_content: bool = True,
) -> Envelope:
    """Return the event to publish on `<topic>.dlq` for `record`. The same record always gets the same id.

    Its size has a limit, whatever the original is: a key and a value that are too big together, as a compressed record
    or a changed topic allows, are left out and only counted. Without `with_content` they are always left out.
    """
    position = f"{record.topic}/{record.partition}/{record.offset}"
    data: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        **_content(record, with_content=with_content),
        "reason": reason,
        "detail": detail[:2000].encode(errors="replace").decode(),
        "service": service,
        "attempts": attempts,
    }
    subject = record.key[:512].decode(errors="replace")[:128] if record.key else position[-128:]
    return Envelope(id=position, source=f"/{service}", type=DEAD_LETTER_TYPE, subject=subject, time=now, data=data)


def dead_letter_key(record: Record, event: Envelope) -> bytes | None:
    """Return the key of a dead letter's record: that of the original, unless it is very long."""
    return record.key if record.key is None or len(record.key) <= MAX_KEY_BYTES else event.key


def _content(record: Record, *, with_content: bool) -> dict[str, Any]:
    """Return the fields with the original's key and value, or with their sizes where they are left out."""
    key, value = record.key, record.value
    fields: dict[str, Any] = {}
    if isinstance(value, UnreadableBatch):
        fields["last_offset"] = value.last_offset
    size = len(key or b"") + len(value or b"")
    if not with_content or size > MAX_FOREIGN_BYTES:
        kept = key if with_content and len(key or b"") <= MAX_KEY_BYTES else None
        return fields | {**_text_or_base64("key", kept), "value": None, "left_out_bytes": size - len(kept or b"")}
    if isinstance(value, UnreadableBatch):
        return fields | {"key": None, "value": None, "batch_base64": base64.b64encode(value).decode()}
    return {**_text_or_base64("key", key), **_text_or_base64("value", value)}


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
            original = Record(*position, _bytes(data, "key"), _bytes(data, "value"))
            return DeadLetter(event, original, _incomplete(data))
        if event.type == SETTLED_TYPE:
            return SettledMarker("/".join(map(str, position)), str(data["how"]))
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error):
        pass  # other programs can write to the topic too
    return None


def _incomplete(data: dict[str, Any]) -> str | None:
    if "last_offset" in data:
        return f"the records from offset {data['offset']} to {data['last_offset']} could not be decoded"
    if "left_out_bytes" in data:
        return f"the record was too big to be kept: {data['left_out_bytes']} bytes are left out"
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
