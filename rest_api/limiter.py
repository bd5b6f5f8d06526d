"""How much of the edge one address may use without a user: requests a minute, and sockets at once."""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import Scope

from rest_api.limits import Allowance, Verdict
from rest_api.problems import Problem
from rest_api.settings import EdgeSettings

MAX_ADDRESSES: Final = 50_000
"""Addresses remembered at once; the one not heard of for longest goes first."""


class Limiter:
    """The limits by address. In the local profile they leave out loopback, where every test and load comes from."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._lifted = settings.limits == "off"
        self._spares_loopback = settings.profile == "local"
        self._requests = settings.limit_anonymous
        self._most_sockets = settings.limit_address_sockets
        self._addresses: OrderedDict[str, Allowance] = OrderedDict()
        self._sockets: Counter[str] = Counter()

    def visitor(self, connection: HTTPConnection) -> None:
        """Count a request without a user; `Problem` when its address has had too many."""
        address = self._limited(connection.scope)
        if address is None:
            return
        now = time.time()
        allowance = self._addresses.get(address)
        if allowance is None:
            allowance = self._addresses[address] = Allowance(self._requests, now)
            if len(self._addresses) > MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(address)
        limit(connection, allowance, self._requests, now)

    @contextmanager
    def socket(self, scope: Scope) -> Iterator[bool]:
        """Count a socket while it is open; False when its address has too many."""
        address = self._limited(scope)
        if address is None:
            yield True
            return
        self._sockets[address] += 1
        try:
            yield self._sockets[address] <= self._most_sockets
        finally:
            self._sockets[address] -= 1
            if not self._sockets[address]:
                del self._sockets[address]

    def _limited(self, scope: Scope) -> str | None:
        address = scope["client"][0] if scope.get("client") else ""
        if self._lifted or (self._spares_loopback and _is_loopback(address)):
            return None
        return address


def limit(connection: HTTPConnection, allowance: Allowance, size: int, now: float) -> None:
    """Take one request from an allowance, and note it for the `RateLimit` header; `Problem` when it is spent."""
    verdict = allowance.take(now)
    wait = allowance.retry_after
    connection.scope["state"]["ratelimit"] = (size, allowance.remaining, wait)
    if verdict is not Verdict.GRANTED:
        raise Problem("rate-limited", f"more than {size} requests a minute", retry_after=wait)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
