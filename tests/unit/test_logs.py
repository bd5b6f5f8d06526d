"""What a library says again and again is said once a second; what we say is said."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from infrastructure.logs import JsonFormatter, Sparing


class Log:
    """Loggers that write into memory, through the filter, at a time that stands."""

    def __init__(self) -> None:
        self.now = 100.0
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(JsonFormatter("cart", "cart-1"))
        self.handler.addFilter(Sparing(("aiokafka", "infrastructure.broker"), lambda: self.now))

    def __getitem__(self, name: str) -> logging.Logger:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.disabled = [self.handler], False, False
        logger.setLevel(logging.WARNING)  # who ran in this process before may have silenced it in either way
        return logger

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def told(self) -> list[tuple[str, int]]:
        return [(line["message"], line.get("repeated", 0)) for line in self.lines()]


NAMES = ("aiokafka", "aiokafka.consumer", "aiokafkaesque", "infrastructure.broker", "infrastructure.guard")


@pytest.fixture
def log() -> Iterator[Log]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.handlers, logger.propagate, logger.level, logger.disabled) for logger in loggers]
    yield Log()
    for logger, (handlers, propagate, level, disabled) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)


def test_a_repeating_library_is_heard_once_a_second_and_its_repetitions_are_counted(log: Log) -> None:
    for attempt in range(33):
        log["aiokafka"].warning("cannot reach node %s", attempt)
        log.now += 1 / 16
    assert log.told() == [("cannot reach node 0", 0), ("cannot reach node 16", 15), ("cannot reach node 32", 15)]


def test_messages_differ_by_words_level_and_logger(log: Log) -> None:
    log["aiokafka"].warning("gone")
    log["aiokafka"].error("gone")
    log["aiokafka.consumer"].error("gone")
    log["aiokafka"].error("back")
    assert [line["message"] for line in log.lines()] == ["gone", "gone", "gone", "back"]


def test_what_we_say_is_said_each_time(log: Log) -> None:
    for name in ("infrastructure.guard", "aiokafkaesque"):
        for _ in range(3):
            log[name].warning("put aside: %s", "a record")
    assert len(log.lines()) == 6
    for _ in range(3):
        log["infrastructure.broker"].warning("waiting for Kafka")
    assert len(log.lines()) == 7


def test_who_never_says_the_same_twice_is_heard_and_not_remembered_for_ever(log: Log) -> None:
    for number in range(1000):
        log["aiokafka"].warning(f"generation {number}")
    assert len(log.lines()) == 1000
    sparing = log.handler.filters[0]
    assert isinstance(sparing, Sparing)
    assert len(sparing._said) <= 256
