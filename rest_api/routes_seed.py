"""Routes kept from an earlier system, for its clients: local profile only, and deprecated."""

import asyncio
import contextlib
import sys
from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from rest_api.edge import SECURED, Admin
from rest_api.problems import Problem
from rest_api.routes_pages import stream_without_upgrade

router = APIRouter(tags=["seed"], deprecated=True, dependencies=SECURED)
router.add_api_route("/cart/update-product", stream_without_upgrade, include_in_schema=False)

MIGRATION_SECONDS: Final = 120
_running = asyncio.Lock()


@router.get("/test", response_class=PlainTextResponse)
async def test() -> Response:
    """Say that everything is ok."""
    return PlainTextResponse("Everything is ok!")


@router.post("/migration")
async def migrate(_: Admin) -> dict[str, str]:
    """Bring inventory's schema up and load `inventory.csv`; it drops nothing.

    Inventory's own sub-commands do it, as processes: the edge does not reach into another service's schema.
    """
    if _running.locked():
        raise Problem("request-in-progress", "a migration is under way", retry_after=5)
    async with _running:
        for command in ("migrate", "seed"):
            await _run(command)
    return {"status": "ok"}


async def _run(command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inventory_service", command, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(MIGRATION_SECONDS):
            status = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if status:
        raise Problem("unavailable", f"{command} did not succeed; the log says why", retry_after=5)
