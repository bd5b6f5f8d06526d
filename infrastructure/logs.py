"""Structured logs: one JSON object a line on stderr, with the request and the trace it belongs to.

Libraries that repeat themselves are held to once a second.
"""

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from infrastructure.envelope import rfc3339
from infrastructure.settings import Settings

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CHATTY: Final = ("aiokafka", "faust", "mode", "kafka", "asyncio", "uvicorn", "websockets", "mail")
"""Libraries whose INFO is about themselves. aiokafka's DEBUG costs a tenth of a worker's CPU even when unprinted."""
_REPEATING: Final = (*_CHATTY, "infrastructure.broker")
"""Who says the same again with each attempt: while Kafka is away, several lines every tenth of a second."""
REPEAT_SECONDS: Final = 1.0
_REMEMBERED: Final = 256


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; whatever stands in `extra` becomes a field, control characters are escaped."""

    def __init__(self, service: str, replica: str) -> None:
        super().__init__()
        self.origin = {"service": service, "replica": replica}

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its line end."""
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
        return orjson.dumps(fields, default=str).decode()


class Sparing(logging.Filter):
    """Lets each message of some loggers through once a second; the next tells in `repeated` how many were held back.

    Messages are the same when their logger, their level and their words before formatting are.
    """

    def __init__(self, names: tuple[str, ...] = _REPEATING, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._names = tuple(f"{name}." for name in names)
        self._clock = clock
        self._said: dict[object, tuple[float, int]] = {}
        """When a message was let through last, and how often it was held back since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `record` is let through."""
        if not f"{record.name}.".startswith(self._names):
            return True
        now = self._clock()
        same = (record.name, record.levelno, str(record.msg))
        last, held_back = self._said.get(same, (-REPEAT_SECONDS, 0))
        if now - last < REPEAT_SECONDS:
            self._said[same] = (last, held_back + 1)
            return False
        if held_back:
            record.repeated = held_back
        if len(self._said) >= _REMEMBERED:  # who formats its words itself never says the same twice
            self._said.clear()
        self._said[same] = (now, 0)
        return True


def configure(service: str, settings: Settings) -> None:
    """Send every log record of this process to stderr as JSON; libraries only from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service, settings.replica))
    handler.addFilter(Sparing())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
