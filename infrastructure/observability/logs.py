"""Structured logs: one JSON object per line on stderr, with the ids of request and trace.

Messages that libraries repeat, or that clients can cause, are limited to one per second and kind. Otherwise a client
could push evidence out of a log of limited size.
"""

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from contracts.envelope import rfc3339
from infrastructure.process.settings import Settings
from infrastructure.process.terminal import escape_controls

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CHATTY: Final = ("aiokafka", "faust", "mode", "kafka", "asyncio", "uvicorn", "websockets", "mail")
"""Libraries whose INFO is about their internals. aiokafka's DEBUG takes a tenth of a worker's CPU even if unprinted."""
CLIENTS_REACH: Final = (
    "account_service",
    "cart_service",
    "infrastructure.messaging.batch_processor",
    "infrastructure.messaging.faust.driver",
    "infrastructure.messaging.record_batches",
    "infrastructure.storage.job_queue",
    "inventory_service.expiry_scanner",
    "inventory_service.publisher",
    "notification_service.sender",
    "notification_service.sms",
    "order_service.agents",
    "order_service.insights.store",
    "order_service.payment.provider.server",
    "order_service.payment.provider.webhooks",
    "rest_api.http",
    "rest_api.kafka",
    "rest_api.read_models",
    "rest_api.security",
    "rest_api.server",
    "rest_api.websocket",
)
"""Loggers with messages that a client or a foreign record can cause. A test finds a log call that is missing here."""
_REPEATING: Final = (*_CHATTY, "infrastructure.messaging.broker", *CLIENTS_REACH)
"""Loggers whose messages are limited; some repeat one ten times per second while Kafka is unavailable."""
REPEAT_SECONDS: Final = 1.0
"""Least time between two equal messages of these loggers."""
_REMEMBERED: Final = 256
"""Most messages that the filter remembers."""


class JsonFormatter(logging.Formatter):
    """Formatter that writes a record as one line of JSON. Each item of `extra` becomes a field."""

    def __init__(self, service: str, replica: str) -> None:
        super().__init__()
        self.origin = {"service": service, "replica": replica}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its line end. Control characters are escaped."""
        fields: dict[str, Any] = {
            "time": rfc3339(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            **self.origin,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return escape_controls(orjson.dumps(fields, default=str).decode())


class RateLimitFilter(logging.Filter):
    """Filter that lets each message of the loggers `names` through once per second.

    The next one has the number of suppressed messages in `repeated`. Messages are equal if their logger, their level
    and their text before formatting are.
    """

    def __init__(self, names: tuple[str, ...] = _REPEATING, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._names = tuple(f"{name}." for name in names)
        self._clock = clock
        self._seen: dict[object, tuple[float, int]] = {}
        """By message: when it was last let through, and how many were suppressed since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether `record` is to be logged."""
        if not f"{record.name}.".startswith(self._names):
            return True
        now = self._clock()
        same = (record.name, record.levelno, str(record.msg))
        last, suppressed = self._seen.get(same, (-REPEAT_SECONDS, 0))
        if now - last < REPEAT_SECONDS:
            self._seen[same] = (last, suppressed + 1)
            return False
        if suppressed:
            record.repeated = suppressed
        if len(self._seen) >= _REMEMBERED:  # texts that were formatted before logging never repeat
            self._seen.clear()
        self._seen[same] = (now, 0)
        return True


def configure(service: str, settings: Settings) -> None:
    """Write all log records of this process to stderr as JSON, those of libraries from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service, settings.replica))
    handler.addFilter(RateLimitFilter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
