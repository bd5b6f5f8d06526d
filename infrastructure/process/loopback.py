"""Rules of the loopback interface: which hosts are on it, and which HTTP requests the helpers of a local shop answer.

A web page can send requests to every port of the machine that shows it. Its `Origin` gives it away, and so does the
`Host` of a page whose name was made to point to this machine (DNS rebinding).
"""

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names in the `Host` header by which a loopback address is requested, without the port."""


def is_loopback_address(host: str) -> bool:
    """Return whether `host` is `localhost` or a loopback address as text. Nothing is resolved."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def resolves_to_loopback(host: str) -> bool:
    """Return whether a server that listens on `host` can be reached from this machine only.

    False for an empty host, which means all interfaces, and for a name with any other address or with none.
    """
    if is_loopback_address(host):
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(is_loopback_address(str(address[0])) for *_, address in found)


def is_loopback_url(url: str) -> bool:
    """Return whether a URL's host is a loopback address or `localhost`, without user or password."""
    try:
        parts = urlsplit(url)
        return "@" not in parts.netloc and is_loopback_address(parts.hostname or "")
    except ValueError:
        return False


def refusal_of_request(hosts: Sequence[str], origins: Sequence[str], *, any_host: bool = False) -> str | None:
    """Return why a local helper must refuse an HTTP request, `None` if it may answer.

    `hosts` and `origins` are the values of all its `Host` and `Origin` headers. Accepted are one `Host` that names
    loopback, and no `Origin` or the helper's own. With `any_host` the name is not checked, for a server that
    orchestrators reach by other addresses.
    """
    if len(hosts) != 1:
        return "a request needs exactly one Host header"
    host = hosts[0].strip().lower()
    name, separator, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    name, port = (name, port) if separator else (host, "")
    if (port and not (port.isascii() and port.isdigit())) or (not any_host and name not in NAMES):
        return "this address is for programs on this machine: the Host must be localhost, 127.0.0.1 or [::1]"
    if any(origin.strip().lower() not in {f"http://{host}", f"https://{host}"} for origin in origins):
        return "pages of another origin may not use this address"
    return None
