"""Reads one record; a record that holds no known message is counted, logged and skipped."""

import logging
from collections.abc import Callable
from typing import TypeVar

from aiokafka import ConsumerRecord

from contracts.envelope import Envelope, Message, MessageRegistry, UndecodableError
from infrastructure.observability import metrics

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
Check = Callable[[Envelope, Message], None]
"""Raises `UndecodableError` for a message that the reader cannot store."""


def decode_record(
    record: ConsumerRecord, vocabulary: MessageRegistry[M], check: Check | None = None
) -> tuple[Envelope, M] | None:
    """Return the event of a record and its message; `None`, after a warning, if it holds none that is acceptable."""
    try:
        event = Envelope.decode(record.key, record.value)
        message = vocabulary.parse(event)
        if check is not None:
            check(event, message)
    except UndecodableError as error:
        metrics.IGNORED.labels(record.topic).inc()
        log.warning("%s %s/%s: %s", record.topic, record.partition, record.offset, error)
        return None
    return event, message
