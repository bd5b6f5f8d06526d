"""No client can fill the logs: each message that a client or a foreign record causes is limited to one per second."""

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from infrastructure.observability.logs import CLIENTS_REACH, RateLimitFilter

ROOT = Path(__file__).parents[2]
SERVICES = (
    "account_service",
    "cart_service",
    "infrastructure",
    "inventory_service",
    "notification_service",
    "order_service",
    "rest_api",
)
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
OWN = {
    "infrastructure.audit.table_auditor": "one round of the audit per minute",
    "infrastructure.audit.topic_auditor": "one round of the audit per minute",
    "infrastructure.messaging.broker": "attempts to reach Kafka; limited as well",
    "infrastructure.messaging.faust.leave_group": "once, at the end of a process",
    "infrastructure.messaging.worker": "once, at the end of a process",
    "infrastructure.process.service": "start and stop, and loops that pause longer after each failure",
    "infrastructure.security.breaker": "a change of the breaker's state, seconds apart",
    "infrastructure.storage.contention_locks": "once per pause of ten seconds",
    "infrastructure.storage.postgres": "at the start of a process",
    "notification_service.catcher.__main__": "once, at the start",
    "order_service.payment.provider.__main__": "once, at the start",
    "rest_api.__main__": "the start, and loops that are restarted a second after a failure",
}
"""Modules whose messages no client and no foreign record causes, or only seconds apart, with the reason."""


def log_calls() -> Iterator[tuple[str, int]]:
    for service in SERVICES:
        for file in sorted((ROOT / service).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if module.startswith("infrastructure.local"):
                continue  # the command of the user who runs the shop
            for node in ast.walk(ast.parse(file.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in LEVELS
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id in {"log", "logger", "logging"}
                ):
                    yield module, node.lineno


def is_limited(module: str) -> bool:
    return f"{module}.".startswith(tuple(f"{name}." for name in CLIENTS_REACH))


def test_every_log_call_is_limited_or_known_to_be_the_services_own() -> None:
    calls = list(log_calls())
    assert len(calls) > 40
    assert [call for call in calls if not is_limited(call[0]) and call[0] not in OWN] == []
    assert {module for module, _ in calls} >= set(OWN), "an entry without a log call"
    assert not [module for module in OWN if is_limited(module)]


@pytest.mark.parametrize("name", CLIENTS_REACH)
def test_a_flood_is_one_line_a_second_with_a_count(name: str) -> None:
    now = 100.0
    sparing = RateLimitFilter(clock=lambda: now)
    passed = []
    for number in range(1500):
        now += 1.8 / 1500
        record = logging.LogRecord(f"{name}.part", logging.INFO, "", 0, "token rejected: %s", (number,), None)
        if sparing.filter(record):
            passed.append(record)
    assert len(passed) == 2
    assert passed[1].__dict__["repeated"] > 500
