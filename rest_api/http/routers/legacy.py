"""Deprecated routes, kept for clients of an earlier system. Local profile only."""

import asyncio
import contextlib
import sys
from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from infrastructure.process.environment import SERVER_SECRETS, child_environment
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AdminUser
from rest_api.http.routers.pages import stream_without_upgrade
from rest_api.protocol.problems import Problem

router = APIRouter(tags=["seed"], deprecated=True, dependencies=SECURITY_DEPENDENCIES)
router.add_api_route("/cart/update-product", stream_without_upgrade, include_in_schema=False)

MIGRATION_SECONDS: Final = 120
_migration_lock = asyncio.Lock()


@router.get("/test", response_class=PlainTextResponse)
async def test() -> Response:
    """Report that everything is ok."""
    return PlainTextResponse("Everything is ok!")


@router.post("/migration")
async def migrate(_: AdminUser) -> dict[str, str]:
    """Migrate inventory's schema and load `inventory.csv`; nothing is dropped.

    Both are done by subcommands of the inventory service, run as processes: the edge does not touch another service's
    schema.
    """
    if _migration_lock.locked():
        raise Problem("request-in-progress", "a migration is already running", retry_after=5)
    async with _migration_lock:
        for command in ("migrate", "seed"):
            await _run(command)
    return {"status": "ok"}


async def _run(command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "inventory_service",
        command,
        stdin=asyncio.subprocess.DEVNULL,
        env=child_environment({}, SERVER_SECRETS),
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
        raise Problem("unavailable", f"{command} failed; see the log", retry_after=5)
