"""Dead letters: a record that can't be acted on, put aside whole, with where it stood and why.

Everything is in the value, so that Kafka's console tools show it and a redrive needs nothing else.
"""

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from infrastructure.envelope import Envelope, Reason

TYPE: Final = "holdfast.dead-letter"


@dataclass(frozen=True, slots=True)
class Record:
    """A record as the broker gave it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


def dead_letter(record: Record, *, reason: Reason, detail: str, service: str, attempts: int, now: datetime) -> Envelope:
    """The event that stands on `<topic>.dlq` for `record`; the same record always gets the same id."""
    place = f"{record.topic}/{record.partition}/{record.offset}"
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
    subject = record.key.decode(errors="replace")[:128] if record.key else place
    return Envelope(id=place, source=f"/{service}", type=TYPE, subject=subject, time=now, data=data)


def _text_or_base64(name: str, raw: bytes | None) -> dict[str, str | None]:
    """The bytes as text when they are UTF-8 and JSON does not blow them up beyond base64's four thirds."""
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
