"""Requests of customers of the edge, and helpers to read its answers."""

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from infrastructure.process.settings import Settings
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from infrastructure.security.tokens import issue

ADDRESS = {"name": "Ann", "line1": "1 High Street", "city": "York", "postal_code": "YO1 7HH", "country": "GB"}
WAIT = {"Prefer": "wait=10"}
ONE = [{"product": "P", "quantity": 1}]


def token(settings: Settings, *roles: str, user: str = "") -> str:
    secret = DEVELOPMENT_SECRET
    user = user or f"u{secrets.token_hex(4)}"
    return issue(secret, user_id=user, roles=roles, lifetime=timedelta(hours=1), now=datetime.now(UTC))[0]


def wanted(**more: Any) -> dict[str, Any]:
    body = {"address": ADDRESS, "contact": {"email": "ann@example.org"}, "payment": {"token": "tok_approve"}}
    return {**body, **({} if "version" in more else {"items": ONE}), **more}


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert (response.status_code, response.json()["type"]) == (status, f"/problems/{slug}"), response.text
    body: dict[str, Any] = response.json()
    return body


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
