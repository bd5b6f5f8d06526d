"""Routes of accounts: registration, the mails that prove an address, and the user's own account.

The account service decides. The edge checks shapes, limits and pages, and passes the password or token on.
"""

import re
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Depends, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AccountUser, AppState, AppStateDep, count_without_user
from rest_api.http.fields.entity_tags import ANY, entity_tags
from rest_api.security.authentication import REFRESH_COOKIE_PATH

router = APIRouter(prefix="/v1", tags=["accounts"])
_WITHOUT_USER: Final = [Depends(count_without_user)]

EmailText = Annotated[str, Field(min_length=1, max_length=254)]
PasswordText = Annotated[str, Field(max_length=1024)]
"""A password, new or entered. The account service measures it in bytes."""
TokenText = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!-~]+$")]
NameText = Annotated[str, Field(max_length=200)]
_VERSION_TAG: Final = re.compile(r'"([0-9]{1,18})"')


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class NewAccount(_Body):
    """A registration."""

    email: EmailText
    password: PasswordText
    name: NameText = ""


class MailToken(_Body):
    """The token of a mail."""

    token: TokenText


class AccountAddress(_Body):
    """The address of an account."""

    email: EmailText


class NewPassword(_Body):
    """A new password, with the token of a mail."""

    token: TokenText
    password: PasswordText


class PasswordChange(_Body):
    """A new password, with the current one."""

    current_password: PasswordText
    password: PasswordText


class ProfileChange(_Body):
    """Changes of an account. A field that is absent stays as it is; `profile` is replaced as a whole."""

    name: NameText | None = None
    profile: dict[str, Any] | None = None


class PasswordProof(_Body):
    """The password of the account."""

    password: PasswordText


class Status(BaseModel):
    """The result of a request."""

    status: Literal["confirmation_sent", "confirmed", "reset_sent", "password_changed"]


class Me(BaseModel):
    """The user's own account."""

    user_id: str
    email: str
    name: str
    profile: dict[str, Any]
    roles: list[str]
    created_at: AwareDatetime


@router.post("/accounts", status_code=202, response_model=Status, dependencies=_WITHOUT_USER)
async def register(edge: AppStateDep, body: NewAccount) -> Response:
    """Create an account, and send a mail to confirm its address. The answer is the same if the address is taken."""
    found = await edge.account_client.execute("register", **body.model_dump())
    return _json(found, 202)


@router.post("/accounts/confirm", response_model=Status, dependencies=_WITHOUT_USER)
async def confirm(edge: AppStateDep, body: MailToken) -> Response:
    """Confirm an address with the token of a mail, which can be used once."""
    return _json(await edge.account_client.execute("confirm", token=body.token))


@router.post("/accounts/password-reset", status_code=202, response_model=Status, dependencies=_WITHOUT_USER)
async def request_reset(edge: AppStateDep, body: AccountAddress) -> Response:
    """Send a mail with which a new password can be set. The answer is the same if nobody has the address."""
    return _json(await edge.account_client.execute("request_reset", email=body.email), 202)


@router.post("/accounts/password", response_model=Status, dependencies=_WITHOUT_USER)
async def reset_password(edge: AppStateDep, body: NewPassword) -> Response:
    """Set a password with the token of a mail, which can be used once. All sessions end."""
    return _json(await edge.account_client.execute("reset_password", **body.model_dump()))


@router.get("/me", response_model=Me, dependencies=SECURITY_DEPENDENCIES)
async def me(edge: AppStateDep, user: AccountUser) -> Response:
    """Return the user's own account."""
    return _me(await edge.account_client.execute("me", access_token=user.token))


@router.patch("/me", response_model=Me, dependencies=SECURITY_DEPENDENCIES)
async def update_me(edge: AppStateDep, user: AccountUser, request: Request, body: ProfileChange) -> Response:
    """Change name or profile; with `If-Match` only if the account has not changed since it was read."""
    changes = body.model_dump(exclude_unset=True)
    return _me(
        await edge.account_client.execute(
            "update_me", access_token=user.token, versions=expected_versions(request), **changes
        )
    )


@router.put("/me/password", response_model=Status, dependencies=SECURITY_DEPENDENCIES)
async def change_password(edge: AppStateDep, user: AccountUser, body: PasswordChange) -> Response:
    """Set another password. All other sessions of the user end."""
    return _json(await edge.account_client.execute("change_password", access_token=user.token, **body.model_dump()))


@router.delete("/me", status_code=204, response_class=Response, dependencies=SECURITY_DEPENDENCIES)
async def delete_me(edge: AppStateDep, user: AccountUser, request: Request, body: PasswordProof) -> Response:
    """Delete the account and end its sessions, after the password was entered once more."""
    await edge.account_client.execute(
        "delete_me", access_token=user.token, password=body.password, versions=expected_versions(request)
    )
    response = Response(status_code=204)
    delete_cookies(edge, response)
    return response


def expected_versions(request: Request) -> list[int] | None:
    """Return the versions that `If-Match` names; `None` if any will do."""
    conditions = ",".join(request.headers.getlist("if-match"))
    if not conditions or conditions.strip() == ANY:
        return None
    found = map(_VERSION_TAG.fullmatch, sorted(entity_tags(conditions)))
    return [int(match[1]) for match in found if match]


def delete_cookies(edge: AppState, response: Response) -> None:
    """Delete the cookies of a session in a browser."""
    secure, authenticator = edge.settings.profile != "local", edge.authenticator
    response.delete_cookie(authenticator.cookie, path="/", secure=secure, httponly=True, samesite="lax")
    response.delete_cookie(
        authenticator.refresh_cookie, path=REFRESH_COOKIE_PATH, secure=secure, httponly=True, samesite="lax"
    )


def _me(found: dict[str, Any]) -> Response:
    version = found.pop("version")
    return _json(found, headers={"ETag": f'"{version}"', "Cache-Control": "private, no-cache"})


def _json(found: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(found), status, headers, "application/json")
