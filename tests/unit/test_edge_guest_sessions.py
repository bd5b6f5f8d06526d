"""Sessions of guests: renewal keeps the first login's end, renews guests only, and ends the older tokens."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import jwt
import pytest

from infrastructure.process import clock
from infrastructure.security.tokens import Identity, InvalidToken, issue, verify
from rest_api.__main__ import build_state
from rest_api.app import create_app
from rest_api.protocol.problems import Problem
from rest_api.security.guest_sessions import GuestSession, GuestSessions
from rest_api.settings import EdgeSettings

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SECRET: Final = "a secret of at least 32 characters, for tests"


class Time:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    found = Time()
    monkeypatch.setattr(clock, "now", found)
    return found


class Rows:
    """The table of sessions in memory; `away` raises as Postgres does."""

    def __init__(self) -> None:
        self.rows: dict[str, GuestSession] = {}
        self.away = False
        self.lookups = 0

    async def replace_tokens(
        self,
        user_id: str,
        issued_at: int,
        ends_at: datetime,  # noqa: ARG002 - the store's signature
        overlap: float,
    ) -> GuestSession:
        self._check()
        known = self.rows.get(user_id, GuestSession())
        if not known.issued_at:
            self.rows[user_id] = GuestSession(0, issued_at)
        elif issued_at - known.issued_at >= overlap:
            self.rows[user_id] = GuestSession(known.issued_at, issued_at)
        return self.rows[user_id]

    async def guest_session(self, user_id: str) -> GuestSession:
        self._check()
        self.lookups += 1
        return self.rows.get(user_id, GuestSession())

    async def changed_sessions(self, seconds: float) -> dict[str, GuestSession]:  # noqa: ARG002 - as above
        self._check()
        return dict(self.rows)

    def _check(self) -> None:
        if self.away:
            raise ConnectionError


@asynccontextmanager
async def edge(rows: Rows, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    configured = EdgeSettings.model_validate({"secret": SECRET, **settings})
    state = build_state(configured, 8080)[0]
    state.authenticator.guest_sessions = GuestSessions(
        rows, overlap=configured.renewed_token_seconds, errors=(ConnectionError,)
    )
    transport = httpx.ASGITransport(create_app(state), client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="https://localhost:8080") as client:
        yield client


async def become_guest(client: httpx.AsyncClient, token: str | None = None) -> httpx.Response:
    client.cookies.clear()
    response = await client.post("/v1/guests", headers={"Authorization": f"Bearer {token}"} if token else {})
    client.cookies.clear()
    return response


async def status(client: httpx.AsyncClient, token: str) -> tuple[int, str]:
    response = await client.post("/v1/ws-tickets", headers={"Authorization": f"Bearer {token}"})
    kind = response.json()["type"] if response.status_code != 201 else ""
    return response.status_code, kind


VALID = (503, "/problems/unavailable")
"""The answer to a valid token here, where Redis is away."""
ENDED = (401, "/problems/token-expired")


def token(user: str = "u1", roles: tuple[str, ...] = ("guest",), *, at: datetime = NOW, **more: Any) -> str:
    return issue(SECRET, user_id=user, roles=roles, lifetime=more.pop("lifetime", 30 * DAY), now=at, **more)[0]


# ---- the claim ------------------------------------------------------------------------------------------------------


def test_a_token_without_the_claim_began_when_it_was_issued() -> None:
    claims = jwt.decode(token(), SECRET, algorithms=["HS256"], audience="holdfast", options={"verify_exp": False})
    assert claims.pop("auth_time") == claims["iat"]
    header = jwt.get_unverified_header(token())
    old = jwt.encode(claims, SECRET, algorithm="HS256", headers=header)
    assert verify(SECRET, old, now=NOW).auth_time == NOW


@pytest.mark.parametrize("value", ["1", 1.5, None, True, -1, 2**40, int((NOW + timedelta(hours=1)).timestamp())])
def test_a_first_login_that_is_no_time_or_in_the_future_is_refused(value: object) -> None:
    claims = jwt.decode(token(), SECRET, algorithms=["HS256"], audience="holdfast", options={"verify_exp": False})
    forged = jwt.encode(
        {**claims, "auth_time": value}, SECRET, algorithm="HS256", headers=jwt.get_unverified_header(token())
    )
    with pytest.raises(InvalidToken):
        verify(SECRET, forged, now=NOW)


# ---- renewal --------------------------------------------------------------------------------------------------------


async def test_renewal_without_end_ends_at_the_first_logins_end(time: Time) -> None:
    async with edge(Rows(), guest_token_hours=30 * 24, guest_session_hours=100 * 24) as client:
        current = (await become_guest(client)).json()
        user = current["user_id"]
        for day in range(20, 100, 20):
            time.now = NOW + day * DAY
            current = (await become_guest(client, current["token"])).json()
            assert current["user_id"] == user
            assert datetime.fromisoformat(current["expires_at"]) == min(time.now + 30 * DAY, NOW + 100 * DAY)
        time.now = NOW + 100 * DAY - timedelta(seconds=1)
        assert await status(client, current["token"]) == VALID
        time.now = NOW + 100 * DAY + timedelta(minutes=1)
        assert await status(client, current["token"]) == ENDED
        assert (await become_guest(client, current["token"])).status_code == 401


async def test_a_token_of_400_days_ago_is_over_whatever_it_says(time: Time) -> None:
    old = token(at=NOW - 400 * DAY, lifetime=1000 * DAY)
    async with edge(Rows()) as client:
        assert await status(client, old) == ENDED
        refused = await become_guest(client, old)
        assert (refused.status_code, refused.json()["type"]) == ENDED


@pytest.mark.parametrize("roles", [("support",), ("admin",), ("service",), ("guest", "support"), ("unheard-of",)])
async def test_only_a_guests_token_is_renewed(time: Time, roles: tuple[str, ...]) -> None:
    rows = Rows()
    async with edge(rows) as client:
        staff = token("boss", roles, lifetime=timedelta(minutes=1))
        refused = await become_guest(client, staff)
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/forbidden")
        assert "set-cookie" not in refused.headers
        assert await status(client, staff) == VALID
    assert not rows.rows


@pytest.mark.parametrize("roles", [(), ("guest",), ("shopper",)])
async def test_tokens_without_rights_are_guests(time: Time, roles: tuple[str, ...]) -> None:
    async with edge(Rows()) as client:
        assert (await become_guest(client, token("u1", roles))).json()["user_id"] == "u1"


async def test_an_expired_token_and_one_from_the_future_are_not_renewed(time: Time) -> None:
    async with edge(Rows()) as client:
        assert (await become_guest(client, token(at=NOW - 40 * DAY))).status_code == 401
        assert (await become_guest(client, token(at=NOW + timedelta(minutes=5)))).status_code == 401


async def test_the_older_token_ends_a_minute_after_the_renewal(time: Time) -> None:
    async with edge(Rows()) as client:
        first = (await become_guest(client)).json()["token"]
        time.now += timedelta(minutes=10)
        second = (await become_guest(client, first)).json()["token"]
        assert await status(client, first) == VALID, "for requests under way"
        time.now += timedelta(seconds=59)
        assert await status(client, first) == VALID
        time.now += timedelta(seconds=1)
        assert await status(client, first) == ENDED
        assert (await become_guest(client, first)).status_code == 401
        assert await status(client, second) == VALID


async def test_renewing_all_the_time_does_not_keep_old_tokens(time: Time) -> None:
    async with edge(Rows()) as client:
        first = current = (await become_guest(client)).json()["token"]
        for _ in range(5):
            time.now += timedelta(seconds=40)
            current = (await become_guest(client, current)).json()["token"]
        assert await status(client, first) == ENDED
        assert await status(client, current) == VALID


async def test_a_cookie_that_was_replaced_is_as_none_where_no_token_is_needed(time: Time) -> None:
    async with edge(Rows()) as client:
        first = (await become_guest(client)).json()
        time.now += timedelta(minutes=10)
        await become_guest(client, first["token"])
        time.now += timedelta(minutes=2)
        client.cookies.set("holdfast_session", first["token"])
        found = await client.post("/v1/guests", headers={"Origin": "http://localhost:8080"})
        assert found.status_code == 201
        assert found.json()["user_id"] != first["user_id"]


# ---- several edges --------------------------------------------------------------------------------------------------


def identity(user: str = "u1", issued_at: datetime = NOW) -> Identity:
    return Identity(user, frozenset({"guest"}), issued_at + DAY, "t", issued_at, issued_at)


async def refused(sessions: GuestSessions, who: Identity) -> bool:
    try:
        await sessions.check(who)
    except Problem as problem:
        return problem.slug == "token-expired"
    return False


async def one_round(loop: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a loop until it sleeps for the first time."""

    class Slept(Exception):
        pass

    async def sleep(_: float) -> None:
        raise Slept

    with monkeypatch.context() as patch:
        patch.setattr("rest_api.security.guest_sessions.asyncio.sleep", sleep)
        with pytest.raises(Slept):
            await loop()


async def test_another_edge_learns_of_a_renewal(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows()
    here, there = (GuestSessions(rows, overlap=0, errors=(ConnectionError,)) for _ in range(2))
    assert not await refused(there, identity())
    assert rows.lookups == 1
    time.now += timedelta(minutes=1)
    await here.replace("u1", time.now, time.now + DAY)
    assert await refused(here, identity())
    assert not await refused(there, identity())
    await one_round(there.run, monkeypatch)
    assert await refused(there, identity())
    assert rows.lookups == 1, "one for each user, not for each request"


async def test_without_postgres_a_verified_token_counts_and_is_checked_again_later(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows()
    sessions = GuestSessions(rows, overlap=0, errors=(ConnectionError,))
    rows.rows["u1"] = GuestSession(0, int((NOW - timedelta(hours=1)).timestamp()))
    old = identity(issued_at=NOW - 2 * DAY)
    rows.away = True
    assert not await refused(sessions, old)
    await sessions.replace("u2", NOW, NOW + DAY)
    await one_round(sessions.run, monkeypatch)
    rows.away = False
    assert not await refused(sessions, old), "for some seconds, no lookup is tried"
    time.now += timedelta(seconds=6)
    assert await refused(sessions, old)
    staff = replace(old, roles=frozenset({"support"}))
    assert not await refused(sessions, staff), "a staff token of the same user is another session"


async def test_an_edge_remembers_a_bounded_number_of_sessions(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rest_api.security.guest_sessions.MAX_KNOWN", 10)
    sessions = GuestSessions(Rows(), overlap=0, errors=(ConnectionError,))
    for number in range(100):
        assert not await refused(sessions, identity(f"u{number}"))
    assert len(sessions._known) == 10


# ---- cookie and headers ---------------------------------------------------------------------------------------------

PRODUCTION = {
    "profile": "production",
    "webhook_secret": "another secret of at least 32 characters",
    "allowed_origins": "https://shop.example",
}


async def test_in_production_the_cookie_has_the_host_prefix_and_the_plain_one_still_counts(time: Time) -> None:
    async with edge(Rows(), **PRODUCTION) as client:
        response = await client.post("/v1/guests")
        parts = response.headers["set-cookie"].split("; ")
        assert parts[0] == f"__Host-holdfast_session={response.json()['token']}"
        assert {"Secure", "Path=/", "HttpOnly"} <= set(parts)
        assert not any(part.lower().startswith("domain") for part in parts)
        for name in ("__Host-holdfast_session", "holdfast_session"):
            client.cookies.clear()
            cookie = {"Cookie": f"{name}={response.json()['token']}", "Origin": "https://shop.example"}
            assert (await client.post("/v1/guests", headers=cookie)).json()["user_id"] == response.json()["user_id"]
        planted = token("evil")
        both = {"Cookie": f"holdfast_session={planted}; __Host-holdfast_session={response.json()['token']}"}
        client.cookies.clear()
        found = await client.post("/v1/guests", headers={**both, "Origin": "https://shop.example"})
        assert found.json()["user_id"] == response.json()["user_id"], "a sibling host cannot plant a session"


@pytest.mark.parametrize("origin", ["http://localhost:8080", "http://127.0.0.1:8080", "null"])
async def test_in_production_pages_of_localhost_are_strangers(time: Time, origin: str) -> None:
    async with edge(Rows(), **PRODUCTION) as client:
        response = await client.post("/v1/guests", headers={"Origin": origin})
        assert (response.status_code, response.json()["type"]) == (403, "/problems/bad-origin")
        allowed = await client.get("/v1/products", headers={"Origin": origin})
        assert "access-control-allow-origin" not in allowed.headers


@pytest.mark.parametrize(
    ("path", "inline"), [("/", False), ("/analytics", False), ("/problems/forbidden", False), ("/docs", True)]
)
async def test_only_the_viewer_may_write_styles(time: Time, path: str, inline: bool) -> None:
    async with edge(Rows()) as client:
        response = await client.get(path)
    assert response.status_code == 200
    assert ("unsafe-inline" in response.headers["content-security-policy"]) is inline
    assert "'unsafe-inline'" not in response.headers["content-security-policy"].partition("style-src")[0]
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert "geolocation=()" in response.headers["permissions-policy"]
    assert "strict-transport-security" not in response.headers, "locally, http must stay possible"
    assert inline or (" style=" not in response.text and "<style" not in response.text)


async def test_production_over_tls_asks_for_tls_alone(time: Time) -> None:
    async with edge(Rows(), **PRODUCTION) as client:
        assert "max-age=31536000" in (await client.get("/")).headers["strict-transport-security"]
        assert "strict-transport-security" not in (await client.get("http://localhost:8080/")).headers
