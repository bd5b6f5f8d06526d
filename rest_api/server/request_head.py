"""Strict reading of request lines, headers, chunk lines and trailers, on top of h11's receive buffer.

h11 accepts some messages that another HTTP parser, such as a proxy in front, could read differently (request smuggling:
RFC 9112, section 11.2). They are refused here, as are heads that are cheap to send and expensive to parse.
"""

import re
from typing import Final

import h11
from h11._receivebuffer import ReceiveBuffer

from rest_api.http.middleware.request_limits import MAX_BODY_BYTES, MAX_HEAD_BYTES

MAX_HEADER_LINES: Final = 100
MAX_CHUNKS: Final = 1024
"""Most chunks of one body. Each chunk costs as much CPU time as a small packet, even if it has a single byte."""
MAX_CHUNK_LINE_BYTES: Final = 256
BAD_REQUEST: Final = 400
TOO_LARGE: Final = 413
HEADERS_TOO_LARGE: Final = 431
VERSION_NOT_SUPPORTED: Final = 505
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_VERSION: Final = re.compile(rb"HTTP/([0-9])\.[0-9]")
_ABSOLUTE_FORM: Final = re.compile(rb"(?i:https?)://([^/?#@]+)([/?][^#]*)?")
_CONTENT_LENGTH: Final = b"content-length:"
_TRANSFER_ENCODING: Final = b"transfer-encoding:"
_HOST: Final = b"host:"


class StrictReceiveBuffer(ReceiveBuffer):
    """A receive buffer that refuses ambiguous, too long and too many lines, and converts targets to origin form.

    Each refusal is an `h11.LocalProtocolError`, which h11 raises again as a `RemoteProtocolError` with the same status.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reads_trailer = False
        self._chunks = 0
        self._skipped_empty_line = False

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return the lines of a request's head, or of a chunked body's trailer, once complete."""
        if not self._reads_trailer:
            self._skip_empty_line()
        before = len(self)
        lines = super().maybe_extract_lines()
        if lines is None:
            return None
        trailer, self._reads_trailer, self._chunks, self._skipped_empty_line = self._reads_trailer, False, 0, False
        _check_lines(lines, before - len(self), headers=len(lines) if trailer else len(lines) - 1)
        if lines and not trailer:
            _check_head(lines)
            lines[0] = _convert_target(lines)
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        """Return the line that begins a chunk, once complete."""
        line = super().maybe_extract_next_line()
        if line is None:
            if len(self) > MAX_CHUNK_LINE_BYTES or b"\n" in self._data:
                raise h11.LocalProtocolError("a chunk must begin with a short line that ends with CR LF")
            return None
        chunk = _CHUNK_LINE.fullmatch(line)
        self._chunks += 1
        if chunk is None or len(line) > MAX_CHUNK_LINE_BYTES or self._chunks > MAX_CHUNKS:
            raise h11.LocalProtocolError("invalid, too long or too many chunk lines")
        size = int(chunk[1], 16)
        if size > MAX_BODY_BYTES:
            raise h11.LocalProtocolError("the chunk is too large", error_status_hint=TOO_LARGE)
        self._reads_trailer = size == 0
        return line

    def is_next_line_obviously_invalid_request_line(self) -> bool:
        """Return whether the first byte cannot begin a request; a CR may begin the empty line that is skipped."""
        return self._data != b"\r" and super().is_next_line_obviously_invalid_request_line()

    def _skip_empty_line(self) -> None:
        """Skip one empty line in front of a request, which some clients send after a body (RFC 9112, section 2.2)."""
        if self._data.startswith(b"\r\n") and not self._skipped_empty_line:
            self._skipped_empty_line = True
            self._extract(2)


def _check_lines(lines: list[bytearray], size: int, *, headers: int) -> None:
    """Refuse too many or too long lines, folded lines, and line ends other than CR LF; `size` includes line ends."""
    if headers > MAX_HEADER_LINES or size > MAX_HEAD_BYTES:
        raise h11.LocalProtocolError("too many or too long headers", error_status_hint=HEADERS_TOO_LARGE)
    if sum(map(len, lines)) + 2 * len(lines) + 2 != size or any(b"\r" in line for line in lines):
        raise h11.LocalProtocolError("lines must end with CR LF")
    if any(line.startswith((b" ", b"\t")) for line in lines):
        raise h11.LocalProtocolError("a header must be a single line")


def _check_head(lines: list[bytearray]) -> None:
    """Refuse versions other than HTTP/1.x, and bodies whose length can be understood in two ways."""
    version = _VERSION.fullmatch(lines[0].rpartition(b" ")[2])
    if version is not None and version[1] != b"1":
        raise h11.LocalProtocolError("this server speaks HTTP/1.1", error_status_hint=VERSION_NOT_SUPPORTED)
    lengths = [line for line in lines if line[:15].lower() == _CONTENT_LENGTH]
    codings = [line for line in lines if line[:18].lower() == _TRANSFER_ENCODING]
    if len(lengths) + len(codings) > 1 or any(b"," in line for line in lengths):
        raise h11.LocalProtocolError("a body must have one length")
    if codings and lines[0].endswith(b"HTTP/1.0"):
        raise h11.LocalProtocolError("HTTP/1.0 has no Transfer-Encoding")


def _convert_target(lines: list[bytearray]) -> bytearray:
    """Return the request line with its target in origin form, or `*`; replace Host by the host of an absolute target.

    The server must accept the absolute form, and must then ignore Host (RFC 9112, section 3.2.2).
    """
    method, _, rest = lines[0].partition(b" ")
    target, _, version = rest.partition(b" ")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return lines[0]
    if method == b"CONNECT":
        return bytearray(b"CONNECT / " + version)  # no route accepts the method, and the target is not a path
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute is None:
        raise h11.LocalProtocolError("the request target must be a path or an http URL")
    host = b"Host: " + absolute[1]
    places = [number for number, line in enumerate(lines) if line[:5].lower() == _HOST]
    if len(places) == 1:
        lines[places[0]] = bytearray(host)
    elif not places and version == b"HTTP/1.0":
        lines.append(bytearray(host))
    path = absolute[2] or (b"*" if method == b"OPTIONS" else b"/")
    return bytearray(method + b" " + (b"/" if path.startswith(b"?") else b"") + path + b" " + version)
