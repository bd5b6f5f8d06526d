"""Limits per client address: anonymous requests per minute, and open sockets."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import Scope

from infrastructure.process import clock
from rest_api.protocol.problems import Problem
from rest_api.security.token_bucket import Allowance, LimitResult
from rest_api.settings import EdgeSettings

MAX_ADDRESSES: Final = 50_000
"""Number of addresses kept; beyond it the least recently used one is dropped."""


class AddressLimiter:
    """The limits per address. In the local profile loopback is exempt, because all tests and load come from it."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._requests = settings.limit_anonymous
        self._max_sockets = settings.limit_address_sockets
        self._addresses: OrderedDict[str, Allowance] = OrderedDict()
        self._sockets: Counter[str] = Counter()

    def count_request(self, connection: HTTPConnection) -> None:
        """Count an anonymous request; raise `Problem` if its address has exceeded the limit."""
        address = self._limited_address(connection.scope)
        if address is None:
            return
        now = clock.now().timestamp()
        allowance = self._addresses.get(address)
        if allowance is None:
            allowance = self._addresses[address] = Allowance(self._requests, now)
            if len(self._addresses) > MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(address)
        enforce_limit(connection, allowance, self._requests, now)

    @contextmanager
    def count_socket(self, scope: Scope) -> Iterator[bool]:
        """Count a socket while the context is open; yield False if its address has too many."""
        address = self._limited_address(scope)
        if address is None:
            yield True
            return
        self._sockets[address] += 1
        try:
            yield self._sockets[address] <= self._max_sockets
        finally:
            self._sockets[address] -= 1
            if not self._sockets[address]:
                del self._sockets[address]

    def _limited_address(self, scope: Scope) -> str | None:
        return limited_network(self._settings, scope["client"][0] if scope.get("client") else "")


def limited_network(settings: EdgeSettings, address: str) -> str | None:
    """Return the key under which limits count `address`, or `None` if no limit by address applies to it."""
    if settings.limits == "off" or (settings.profile == "local" and _is_loopback(address)):
        return None
    return client_network(address)


def client_network(address: str) -> str:
    """Return the key under which limits count `address`: an IPv4 address itself, the /64 network of an IPv6 address.

    A household or a server usually gets a whole /64, so its addresses must share one limit. An IPv4 address that is
    mapped into IPv6 counts as IPv4. Text that is not an address is returned as it is.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ip_network((int(parsed), 64), strict=False))


def enforce_limit(connection: HTTPConnection, allowance: Allowance, size: int, now: float) -> None:
    """Count a request against `allowance` and record the result for the `RateLimit` header.

    Raise `Problem` if the limit of `size` requests per minute is exceeded.
    """
    result = allowance.take(now)
    wait = allowance.retry_after
    connection.scope["state"]["ratelimit"] = (size, allowance.remaining, wait)
    if result is not LimitResult.GRANTED:
        raise Problem("rate-limited", f"more than {size} requests per minute", retry_after=wait)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
