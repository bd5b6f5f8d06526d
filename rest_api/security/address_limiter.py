"""Limits per client network: requests with and without a user, new guests, and open sockets."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, TypeVar

from starlette.requests import HTTPConnection
from starlette.types import Scope

from infrastructure.process import clock
from rest_api.protocol.problems import Problem
from rest_api.security.costs import is_change
from rest_api.security.token_bucket import Allowance, LimitResult
from rest_api.settings import EdgeSettings

MAX_ADDRESSES: Final = 50_000
"""Number of networks kept for each limit; beyond it the least recently used one is dropped."""
GUESTS_WINDOW_SECONDS: Final = 3600.0
"""The window of the limit of new guests."""


_Kept = TypeVar("_Kept")


@dataclass(frozen=True, slots=True)
class NetworkAllowances:
    """The allowances that all users of one client network share, for changes and for everything else."""

    changes: Allowance
    others: Allowance


class AddressLimiter:
    """The limits per network. In the local profile loopback is exempt, because all tests and load come from it.

    A limit counts an IPv6 /64 network as one client, see `client_network`.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._requests = settings.limit_anonymous
        self._guests = settings.limit_network_guests
        self._changes, self._others = settings.limit_network_changes, settings.limit_network_others
        self._max_sockets = settings.limit_address_sockets
        self._addresses: OrderedDict[str, Allowance] = OrderedDict()
        """Requests without a user, by network."""
        self._new_guests: OrderedDict[str, Allowance] = OrderedDict()
        self._networks: OrderedDict[str, NetworkAllowances] = OrderedDict()
        """Requests and frames with and without a user, by network."""
        self._sockets: Counter[str] = Counter()

    def count_request(self, connection: HTTPConnection) -> None:
        """Count an anonymous request; raise `Problem` if its network has exceeded the limit."""
        address = self._limited_address(connection.scope)
        if address is not None:
            now = clock.now().timestamp()
            allowance = _recent(self._addresses, address) or _add(
                self._addresses, address, Allowance(self._requests, now)
            )
            enforce_limit(connection, allowance, self._requests, now)

    def count_guest(self, connection: HTTPConnection) -> None:
        """Count a new guest; raise `Problem` if the network has exceeded the limit."""
        address = self._limited_address(connection.scope)
        if address is None:
            return
        now = clock.now().timestamp()
        allowance = _recent(self._new_guests, address) or _add(
            self._new_guests, address, Allowance(self._guests, now, GUESTS_WINDOW_SECONDS)
        )
        if allowance.take(now) is not LimitResult.GRANTED:
            detail = f"more than {self._guests} new guests per hour from one network"
            raise Problem("rate-limited", detail, retry_after=allowance.retry_after)

    def count_any(self, connection: HTTPConnection, *, cost: int = 1) -> None:
        """Count a request against the limit that all users of its network share; raise `Problem` if it is exceeded."""
        allowances = self.allowances(connection.scope)
        if allowances is None:
            return
        scope = connection.scope
        changing = is_change(scope.get("method", "GET"), scope.get("path", ""))
        allowance = allowances.changes if changing else allowances.others
        if allowance.take(clock.now().timestamp(), cost) is not LimitResult.GRANTED:
            detail = f"more than {allowance.size} requests per minute from one network"
            raise Problem("rate-limited", detail, retry_after=allowance.retry_after)

    def allowances(self, scope: Scope) -> NetworkAllowances | None:
        """Return the allowances that the network of a connection shares; `None` if it has no limit."""
        address = self._limited_address(scope)
        if address is None:
            return None
        now = clock.now().timestamp()
        return _recent(self._networks, address) or _add(
            self._networks, address, NetworkAllowances(Allowance(self._changes, now), Allowance(self._others, now))
        )

    @contextmanager
    def count_socket(self, scope: Scope) -> Iterator[bool]:
        """Count a socket while the context is open; yield False if its network has too many."""
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


def _recent(kept: OrderedDict[str, _Kept], address: str) -> _Kept | None:
    if address in kept:
        kept.move_to_end(address)
    return kept.get(address)


def _add(kept: OrderedDict[str, _Kept], address: str, allowance: _Kept) -> _Kept:
    kept[address] = allowance
    if len(kept) > MAX_ADDRESSES:
        kept.popitem(last=False)
    return allowance


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


def enforce_limit(connection: HTTPConnection, allowance: Allowance, size: int, now: float, cost: int = 1) -> None:
    """Count a request of `cost` against `allowance` and record the result for the `RateLimit` header.

    Raise `Problem` if the limit of `size` requests per minute is exceeded.
    """
    result = allowance.take(now, cost)
    wait = allowance.retry_after
    connection.scope["state"]["ratelimit"] = (size, allowance.remaining, wait)
    if result is not LimitResult.GRANTED:
        detail = f"more than {size} requests per minute"
        if cost > 1:
            detail += f"; this one counts as {cost}"
        raise Problem("rate-limited", detail, retry_after=wait)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
