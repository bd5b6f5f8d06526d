"""Repeated messages of libraries are limited to one per second, our own messages are not."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from infrastructure.observability.logs import JsonFormatter, RateLimitFilter


class Log:
    """Loggers that write into memory through the filter, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(JsonFormatter("cart", "cart-1"))
        self.handler.addFilter(RateLimitFilter(("aiokafka", "infrastructure.messaging.broker"), lambda: self.now))

    def __getitem__(self, name: str) -> logging.Logger:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.disabled = [self.handler], False, False
        logger.setLevel(logging.WARNING)  # an earlier test may have silenced it in either way
        return logger

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def told(self) -> list[tuple[str, int]]:
        return [(line["message"], line.get("repeated", 0)) for line in self.lines()]


NAMES = (
    "aiokafka",
    "aiokafka.consumer",
    "aiokafkaesque",
    "infrastructure.messaging.broker",
    "infrastructure.messaging.batch_processor",
)


@pytest.fixture
def log() -> Iterator[Log]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.handlers, logger.propagate, logger.level, logger.disabled) for logger in loggers]
    yield Log()
    for logger, (handlers, propagate, level, disabled) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)


def test_a_repeated_message_of_a_library_is_logged_once_per_second_with_a_count(log: Log) -> None:
    for attempt in range(33):
        log["aiokafka"].warning("cannot reach node %s", attempt)
        log.now += 1 / 16
    assert log.told() == [("cannot reach node 0", 0), ("cannot reach node 16", 15), ("cannot reach node 32", 15)]


def test_messages_differ_by_text_level_and_logger(log: Log) -> None:
    log["aiokafka"].warning("gone")
    log["aiokafka"].error("gone")
    log["aiokafka.consumer"].error("gone")
    log["aiokafka"].error("back")
    assert [line["message"] for line in log.lines()] == ["gone", "gone", "gone", "back"]


def test_our_own_messages_are_logged_each_time(log: Log) -> None:
    for name in ("infrastructure.messaging.batch_processor", "aiokafkaesque"):
        for _ in range(3):
            log[name].warning("put aside: %s", "a record")
    assert len(log.lines()) == 6
    for _ in range(3):
        log["infrastructure.messaging.broker"].warning("waiting for Kafka")
    assert len(log.lines()) == 7


def test_messages_that_never_repeat_are_logged_and_soon_forgotten(log: Log) -> None:
    for number in range(1000):
        log["aiokafka"].warning(f"generation {number}")
    assert len(log.lines()) == 1000
    sparing = log.handler.filters[0]
    assert isinstance(sparing, RateLimitFilter)
    assert len(sparing._seen) <= 256
