"""What of the edge is no API: probes, descriptions and their reader, the pages of problems, and the shop's page."""

import re
from pathlib import Path
from typing import Final

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from infrastructure import metrics
from rest_api import problems
from rest_api.asyncapi import document
from rest_api.edge import Edge, Here, of
from rest_api.problems import Problem

router = APIRouter(include_in_schema=False)

_HERE: Final = Path(__file__).parent
_PAGES: Final = _HERE / "pages"
_READER: Final = _HERE / "vendor" / "swagger_ui"
_PAGE_FILE: Final = re.compile(r"[a-z0-9_-]+\.(js|css|svg|png)")
_READER_FILES: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "start.js", "LICENSE", "NOTICE"})


def fault(edge: Edge) -> str | None:
    """Why the edge is not ready; None when it is."""
    return edge.hub.fault or edge.projection.fault or edge.order_projection.fault


@router.get("/livez")
async def livez() -> Response:
    """The loop turns."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get("/readyz")
async def readyz(edge: Here) -> Response:
    """Whether requests are accepted, and why not."""
    why = fault(edge)
    metrics.UP.set(why is None)
    body = {"status": "ok"} if why is None else {"status": "unavailable", "detail": why}
    headers = {} if why is None else {"Retry-After": "1"}
    return Response(orjson.dumps(body), 200 if why is None else 503, headers, "application/json")


@router.get("/metrics")
async def prometheus(edge: Here) -> Response:
    """Metrics for Prometheus; in production they are on the health port alone."""
    _not_in_production(edge)
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/asyncapi.json")
async def asyncapi(request: Request) -> Response:
    """The socket's frames and the topics, as AsyncAPI 3.0."""
    _not_in_production(of(request))
    return Response(orjson.dumps(document(request.headers["host"])), media_type="application/json")


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The HTTP side, as OpenAPI 3.1."""
    _not_in_production(of(request))
    return Response(orjson.dumps(request.app.openapi()), media_type="application/json")


@router.get("/docs")
async def docs(edge: Here) -> Response:
    """The reader of the descriptions."""
    _not_in_production(edge)
    return FileResponse(_READER / "index.html")


@router.get("/docs/{name}")
async def docs_file(edge: Here, name: str) -> Response:
    """The files of the reader."""
    _not_in_production(edge)
    if name not in _READER_FILES:
        raise Problem("not-found")
    return _file(_READER, name)


@router.get("/problems/{slug}")
async def problem_page(slug: str) -> Response:
    """What a problem means."""
    found = problems.page(slug)
    if found is None:
        raise Problem("not-found")
    return HTMLResponse(found)


@router.get("/")
async def shop() -> Response:
    """The shop's page."""
    return _file(_PAGES, "index.html")


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """The files of the shop's page."""
    if not _PAGE_FILE.fullmatch(name):
        raise Problem("not-found")
    return _file(_PAGES, name)


@router.get("/v1/stream")
async def stream_without_upgrade() -> Response:
    """What is a WebSocket is no page."""
    raise Problem("websocket-required", headers={"Upgrade": "websocket", "Connection": "Upgrade"})


def _file(folder: Path, name: str) -> Response:
    if not (folder / name).is_file():
        raise Problem("not-found")
    return FileResponse(folder / name, headers={"Cache-Control": "no-cache"})


def _not_in_production(edge: Edge) -> None:
    if edge.settings.profile == "production":
        raise Problem("not-found")
