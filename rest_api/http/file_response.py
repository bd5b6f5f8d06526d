"""Responses with a page's file from memory.

Starlette's `FileResponse` keeps the file open until the client has read the response. Clients that do not read would
hold two descriptors each.
"""

from collections.abc import Mapping
from functools import lru_cache
from os import stat_result
from pathlib import Path
from typing import Final

from fastapi import Response
from fastapi.responses import FileResponse

MAX_FILES: Final = 64
"""Most files, or versions of a file, in memory. The pages and the vendored viewer have fewer."""


def file_response(
    path: Path,
    *,
    cache_control: str = "no-cache",
    media_type: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a response with the content of `path`, whose validators and media type are those of `FileResponse`."""
    status = path.stat()
    given = {"Cache-Control": cache_control, **(headers or {})}
    described = FileResponse(path, headers=given, media_type=media_type, stat_result=status).headers
    described["accept-ranges"] = "none"
    return Response(_content(path, _version(status)), headers=dict(described))


@lru_cache(MAX_FILES)
def _content(path: Path, version: tuple[int, int]) -> bytes:  # noqa: ARG001 - a changed file is read again
    return path.read_bytes()


def _version(status: stat_result) -> tuple[int, int]:
    return status.st_mtime_ns, status.st_size
