"""Routes outside the API: probes, metrics, API descriptions and their viewer, problem pages, and the shop's page."""

import gzip
import hashlib
import html
import mimetypes
import re
from functools import cache
from pathlib import Path
from typing import Final

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import rest_api
from infrastructure.observability import metrics
from infrastructure.process.loopback import refusal_of_request
from rest_api.http import problem_pages
from rest_api.http.dependencies import AppState, AppStateDep, app_state
from rest_api.http.fields.media_types import HTML, json_quality, quality
from rest_api.http.file_response import file_response
from rest_api.protocol.asyncapi import document
from rest_api.protocol.problems import SLUGS, Problem

router = APIRouter(include_in_schema=False)

_PACKAGE: Final = Path(rest_api.__file__).parent
_PAGES: Final = _PACKAGE / "pages"
_VIEWER: Final = _PACKAGE / "vendor" / "swagger_ui"
_FOOTER_PLACE: Final = "<!-- footer -->"
_PAGE_FILE: Final = re.compile(r"[a-z0-9_-]+\.(js|css|svg|png)")
_VARY: Final = {"Vary": "Accept"}
_VIEWER_FILES: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "start.js", "LICENSE", "NOTICE"})

_COMPRESSED_FILES: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js"})
"""Files that are stored as `NAME.gz`: each is one long line, which would drown a search through the sources."""


def unready_reason(edge: AppState) -> str | None:
    """Return the reason why the edge is not ready; `None` if it is ready."""
    own = edge.connections.fault or edge.catalogue.fault or edge.order_projector.fault
    return own or edge.account_events.fault


@router.get("/livez")
async def livez() -> Response:
    """Report that the event loop is running."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get("/readyz")
async def readyz(edge: AppStateDep) -> Response:
    """Report whether requests are accepted, and if not, the reason."""
    reason = unready_reason(edge)
    metrics.READY.set(reason is None)
    body = {"status": "ok"} if reason is None else {"status": "unavailable", "detail": reason}
    headers = {} if reason is None else {"Retry-After": "1"}
    return Response(orjson.dumps(body), 200 if reason is None else 503, headers, "application/json")


@router.get("/metrics")
async def prometheus(request: Request, edge: AppStateDep) -> Response:
    """Return metrics for Prometheus. In production only the health port serves them."""
    _not_in_production(edge)
    if refusal := refusal_of_request(request.headers.getlist("host"), request.headers.getlist("origin")):
        raise Problem("forbidden", refusal)
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/asyncapi.json")
async def asyncapi(request: Request) -> Response:
    """Describe the WebSocket's frames and the topics, as AsyncAPI 3.0."""
    _not_in_production(app_state(request))
    return Response(orjson.dumps(document(request.headers["host"])), media_type="application/json")


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """Describe the HTTP API, as OpenAPI 3.1."""
    _not_in_production(app_state(request))
    return Response(orjson.dumps(request.app.openapi()), media_type="application/json")


@router.get("/docs")
async def docs(edge: AppStateDep) -> Response:
    """Return the viewer of the API descriptions."""
    _not_in_production(edge)
    return file_response(_VIEWER / "index.html", cache_control="no-store")


@router.get("/docs/{name:segment}")
async def docs_file(edge: AppStateDep, request: Request, name: str) -> Response:
    """Return a file of the viewer."""
    _not_in_production(edge)
    if name not in _VIEWER_FILES:
        raise Problem("not-found")
    return _compressed_file(_VIEWER, name, request) if name in _COMPRESSED_FILES else _file(_VIEWER, name)


@router.get("/problems")
@router.get("/problems/")
async def list_problems(request: Request) -> Response:
    """Return the list of all kinds of problems, as a page or as JSON."""
    if _prefers_json(request):
        items = [problem_pages.description(slug) for slug in SLUGS]
        return Response(orjson.dumps({"items": items}), headers=_VARY, media_type="application/json")
    return HTMLResponse(problem_pages.list_page(), headers=_VARY)


@router.get("/problems/{slug:segment}")
async def show_problem(request: Request, slug: str) -> Response:
    """Return the explanation of a kind of problem, as a page or as JSON."""
    if slug not in SLUGS:
        raise Problem("not-found", "there is no kind of problem with this name; /problems/ lists them")
    if _prefers_json(request):
        body = orjson.dumps(problem_pages.description(slug))
        return Response(body, headers=_VARY, media_type="application/json")
    return HTMLResponse(problem_pages.kind_page(slug), headers=_VARY)


@router.get("/")
async def shop(edge: AppStateDep) -> Response:
    """Return the shop's page. In the local profile it has links to figures, mails and descriptions."""
    if edge.settings.profile != "local":
        return _file(_PAGES, "index.html")
    shared = _file(_PAGES, "index.html")
    footer = _local_footer(edge.settings.mails_url)
    page = bytes(shared.body).replace(_FOOTER_PLACE.encode(), footer.encode())
    validators = {name: shared.headers[name] for name in ("cache-control", "accept-ranges", "last-modified")}
    etag = f'"{hashlib.blake2b(page, digest_size=12).hexdigest()}"'
    return HTMLResponse(page, headers={**validators, "ETag": etag})


@router.get("/static/{name:segment}")
async def static(name: str) -> Response:
    """Return a file of the shop's pages."""
    if not _PAGE_FILE.fullmatch(name):
        raise Problem("not-found")
    return _file(_PAGES, name)


@router.get("/v1/stream")
async def stream_without_upgrade() -> Response:
    """Answer a plain GET on a WebSocket route with 426."""
    raise Problem("websocket-required", headers={"Upgrade": "websocket", "Connection": "Upgrade"})


def _prefers_json(request: Request) -> bool:
    """Return True if a client would rather have JSON than a page; the page is the default."""
    accept = request.headers.get("accept", "")
    return json_quality(accept) > quality(accept, HTML)


def _compressed_file(folder: Path, name: str, request: Request) -> Response:
    """Return a file that is stored compressed, decompressed for a client that does not accept gzip."""
    headers = {"Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    media_type = mimetypes.guess_type(name)[0]
    stored = folder / f"{name}.gz"
    if _accepts_gzip(request.headers.get("accept-encoding", "")):
        return file_response(stored, media_type=media_type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(_decompressed(stored), media_type=media_type, headers=headers)


@cache
def _decompressed(stored: Path) -> bytes:
    """Return the content of a vendored file; all responses share it, so clients that do not read cost no memory."""
    return gzip.decompress(stored.read_bytes())


def _accepts_gzip(header: str) -> bool:
    """Return whether an `Accept-Encoding` names gzip, or everything, and does not give it the weight 0."""
    weights = {}
    for part in header.lower().split(","):
        coding, _, parameters = part.partition(";")
        weights[coding.strip()] = not re.fullmatch(r"q=0(\.0*)?", parameters.replace(" ", ""))
    return weights.get("gzip", weights.get("*", False))


def _file(folder: Path, name: str) -> Response:
    if not (folder / name).is_file():
        raise Problem("not-found")
    return file_response(folder / name)


def _local_footer(mails_url: str) -> str:
    """Return the footer of the shop's page in the local profile; without a mail catcher it has no link to mails."""
    links = {
        "Figures": "/analytics",
        "Mails": mails_url,
        "HTTP API": "/docs",
        "Events and frames (AsyncAPI)": "/asyncapi.json",
        "Status": "/readyz",
    }
    items = "".join(f'<a href="{html.escape(url)}">{text}</a>' for text, url in links.items() if url)
    return f'<footer class="local"><nav aria-label="For developers"><span>This local shop:</span>{items}</nav></footer>'


def _not_in_production(edge: AppState) -> None:
    if edge.settings.profile == "production":
        raise Problem("not-found")
