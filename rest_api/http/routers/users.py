"""Routes of administrators about all accounts, and the published keys of access tokens."""

from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from contracts.accounts import Role
from contracts.inventory import Identifier
from rest_api.http import pagination
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AdminToken, AppStateDep
from rest_api.protocol.problems import Problem

router = APIRouter(tags=["users"])

UserId = Annotated[Identifier, Path()]


class User(BaseModel):
    """An account as an administrator sees it."""

    user_id: str
    email: str
    name: str
    roles: list[Role]
    confirmed: bool
    status: Literal["active", "disabled"]
    created_at: AwareDatetime


class UserList(BaseModel):
    """A page of accounts, oldest first."""

    items: list[User]
    after: str | None


class Roles(BaseModel):
    """All roles of an account."""

    model_config = ConfigDict(extra="forbid", strict=True)

    roles: Annotated[list[Role], Field(min_length=1, max_length=4)]


class KeySet(BaseModel):
    """A JSON Web Key Set (RFC 7517)."""

    keys: list[dict[str, str]]


@router.get("/v1/users", response_model=UserList, dependencies=SECURITY_DEPENDENCIES)
async def list_users(
    edge: AppStateDep,
    admin: AdminToken,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    after: Annotated[str | None, Query(max_length=512)] = None,
) -> Response:
    """List all accounts, oldest first."""
    start = ""
    if after is not None:
        match pagination.decode(after):
            case [str(start)]:
                pass
            case _:
                raise Problem("bad-cursor")
    found = await edge.account_client.execute("users", access_token=admin.token, limit=limit, after=start)
    items = [_without_version(each) for each in found["items"]]
    return pagination.page_response(items, pagination.encode(found["after"]) if found["after"] else None, request)


@router.get("/v1/users/{user_id:segment}", response_model=User, dependencies=SECURITY_DEPENDENCIES)
async def show_user(edge: AppStateDep, admin: AdminToken, user_id: UserId) -> Response:
    """Return an account."""
    return _user(await edge.account_client.execute("user", access_token=admin.token, user_id=user_id))


@router.put("/v1/users/{user_id:segment}/roles", response_model=User, dependencies=SECURITY_DEPENDENCIES)
async def set_roles(edge: AppStateDep, admin: AdminToken, user_id: UserId, body: Roles) -> Response:
    """Give an account exactly these roles. Its access tokens end, and its sessions go on with fresh ones."""
    found = await edge.account_client.execute(
        "set_roles", access_token=admin.token, user_id=user_id, roles=list(body.roles)
    )
    return _user(found)


@router.post("/v1/users/{user_id:segment}/disable", response_model=User, dependencies=SECURITY_DEPENDENCIES)
async def disable_user(edge: AppStateDep, admin: AdminToken, user_id: UserId) -> Response:
    """Disable an account and end its sessions."""
    return _user(await edge.account_client.execute("disable", access_token=admin.token, user_id=user_id))


@router.get("/.well-known/jwks.json", response_model=KeySet)
async def key_set(edge: AppStateDep) -> Response:
    """Return the public keys that verify access tokens of accounts."""
    found = await edge.authenticator.account_keys.key_set()
    headers = {"Cache-Control": "public, max-age=60"}
    return Response(orjson.dumps(found), headers=headers, media_type="application/json")


def _user(found: dict[str, object]) -> Response:
    return Response(orjson.dumps(_without_version(found)), media_type="application/json")


def _without_version(found: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in found.items() if name != "version"}
