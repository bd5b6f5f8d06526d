"""Tokens of accounts at the edge: what ends them before their time, their keys, and the sockets that they opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contracts.accounts import Deleted, Disabled, Enabled, Event, RolesChanged, SessionsEnded, Updated
from infrastructure.process import clock
from infrastructure.security.key_set import encode_key_set
from infrastructure.security.tokens import Identity, issue_for_account
from rest_api.__main__ import build_state
from rest_api.app import create_app
from rest_api.protocol.problems import Problem
from rest_api.security.account_keys import AccountKeys
from rest_api.security.account_sessions import TOKEN_SECONDS, AccountSessions
from rest_api.security.guest_sessions import is_guest
from rest_api.settings import EdgeSettings

NOW = datetime(2026, 11, 21, 3, 24, 41, tzinfo=UTC)
KEY = Ed25519PrivateKey.generate()


def identity(version: int = 1, session: str | None = "s1", user: str = "u1") -> Identity:
    return Identity(user, frozenset({"shopper"}), NOW, "t", NOW, NOW, session, version)


def after(*events: Event, at: float = 0.0) -> AccountSessions:
    sessions = AccountSessions()
    for event in events:
        sessions.apply(event, at)
    return sessions


def code(sessions: AccountSessions, who: Identity) -> int | None:
    refusal = sessions.refusal(who)
    return refusal.close_code if refusal else None


ENDED = SessionsEnded(user_id="u1", session_ids=("s1",), reason="logged_out")


@pytest.mark.parametrize(
    ("event", "older", "same"),
    [
        (RolesChanged(user_id="u1", version=2, roles=("admin",)), 4403, None),
        (Disabled(user_id="u1", version=2), 4403, None),
        (Deleted(user_id="u1", version=2), 4401, None),
        (Updated(user_id="u1", version=2, fields=("name",)), None, None),
        (Enabled(user_id="u1", version=2), None, None),
        (ENDED, 4401, 4401),
    ],
)
def test_what_ends_a_token(event: Event, older: int | None, same: int | None) -> None:
    sessions = after(event)
    assert code(sessions, identity(version=1)) == older
    assert code(sessions, identity(version=2)) == same
    assert code(sessions, identity(user="u2", session="s2")) is None
    assert code(sessions, identity(session=None)) is None, "a guest has no session"


def test_another_session_of_the_same_account_goes_on() -> None:
    assert code(after(ENDED), identity(session="s2")) is None


def test_repeated_and_older_events_change_nothing() -> None:
    newer, older = Disabled(user_id="u1", version=5), RolesChanged(user_id="u1", version=3, roles=("admin",))
    for events in ((older, newer), (newer, older), (newer, older, newer)):
        sessions = after(*events)
        assert sessions.refusal(identity(version=4)) == after(newer).refusal(identity(version=4))
        assert sessions.refusal(identity(version=5)) is None


def test_nothing_is_kept_for_longer_than_a_token_lives() -> None:
    sessions = after(ENDED, Disabled(user_id="u1", version=2))
    later = SessionsEnded(user_id="u2", session_ids=("s9",), reason="logged_out")
    sessions.apply(later, TOKEN_SECONDS)
    assert code(sessions, identity()) == 4403
    sessions.apply(later, TOKEN_SECONDS + 1)
    assert code(sessions, identity()) is None
    assert code(sessions, identity(user="u2", session="s9")) == 4401


def test_an_account_is_never_taken_for_a_guest() -> None:
    assert not is_guest(identity())
    assert is_guest(identity(session=None))


# ---- keys ------------------------------------------------------------------------------------------------------------


class Service:
    """An account service that publishes one key, counts the reads, and is away at times."""

    def __init__(self) -> None:
        self.kid = "k1"
        self.reads = 0
        self.away = False
        self.broken = False

    async def key_set(self) -> Any:
        self.reads += 1
        if self.away:
            raise Problem("unavailable")
        return "nonsense" if self.broken else encode_key_set({self.kid: KEY.public_key()})


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    current = [NOW]
    monkeypatch.setattr(clock, "now", lambda: current[0])
    return current


async def test_keys_are_read_once_and_kept_while_the_service_is_away(moment: list[datetime]) -> None:
    service = Service()
    keys = AccountKeys(service.key_set)
    assert [*await keys.with_key("k1")] == ["k1"]
    service.away = True
    for _ in range(5):
        moment[0] += timedelta(hours=1)
        assert [*await keys.with_key("k1")] == ["k1"]
    assert service.reads == 1
    assert await keys.key_set() == encode_key_set({"k1": KEY.public_key()})


async def test_an_unknown_key_is_looked_for_once_a_second(moment: list[datetime]) -> None:
    service = Service()
    keys = AccountKeys(service.key_set)
    await keys.with_key("k1")
    for _ in range(100):
        await keys.with_key("unknown")
    assert service.reads == 1
    moment[0] += timedelta(seconds=1)
    service.kid = "k2"
    assert [*await keys.with_key("k2")] == ["k2"]
    assert service.reads == 2


@pytest.mark.parametrize("fault", ["away", "broken"])
async def test_without_any_key_nobody_says_whether_a_token_is_valid(moment: list[datetime], fault: str) -> None:
    service = Service()
    setattr(service, fault, True)
    keys = AccountKeys(service.key_set)
    with pytest.raises(Problem) as refused:
        await keys.with_key("k1")
    assert refused.value.slug == "unavailable"
    setattr(service, fault, False)
    moment[0] += timedelta(seconds=1)
    assert [*await keys.with_key("k1")] == ["k1"]


# ---- requests --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def edge(service: Service, *, read: bool = True) -> AsyncIterator[tuple[httpx.AsyncClient, AccountSessions]]:
    state = build_state(EdgeSettings(), 8080)[0]
    state.authenticator.account_keys = AccountKeys(service.key_set)
    if read:
        state.authenticator.accounts_fault = lambda: None
    transport = httpx.ASGITransport(create_app(state), client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
        yield client, state.authenticator.account_sessions


def token(**more: Any) -> dict[str, str]:
    fields: dict[str, Any] = {"user_id": "u1", "roles": ["shopper"], "session_id": "s1", "account_version": 1, **more}
    text, _ = issue_for_account(KEY, "k1", lifetime=timedelta(minutes=15), now=NOW, auth_time=NOW, **fields)
    return {"Authorization": f"Bearer {text}"}


def slug(response: httpx.Response) -> str:
    return str(response.json()["type"]).removeprefix("/problems/")


@pytest.mark.usefixtures("moment")
async def test_a_token_is_refused_from_the_event_on_that_ends_it() -> None:
    async with edge(Service()) as (client, sessions):
        admin = token(roles=["admin"])
        assert slug(await client.get("/v1/users/x", headers=token())) == "forbidden"
        assert slug(await client.get("/v1/users/x", headers=admin)) == "unavailable", "passed on"
        sessions.apply(RolesChanged(user_id="u1", version=2, roles=("shopper",)), NOW.timestamp())
        assert slug(await client.get("/v1/users/x", headers=admin)) == "token-expired"
        assert slug(await client.get("/v1/users/x", headers=token(account_version=2))) == "forbidden"


@pytest.mark.usefixtures("moment")
async def test_an_edge_that_does_not_know_what_has_ended_refuses_tokens_of_accounts_and_not_of_guests() -> None:
    async with edge(Service(), read=False) as (client, _):
        assert slug(await client.get("/v1/me", headers=token())) == "unavailable"
        assert (await client.post("/v1/guests")).status_code == 201


@pytest.mark.usefixtures("moment")
async def test_the_token_of_an_account_is_not_renewed_as_a_guests() -> None:
    async with edge(Service()) as (client, _):
        answer = await client.post("/v1/guests", headers=token())
        assert (answer.status_code, slug(answer)) == (403, "forbidden")


@pytest.mark.usefixtures("moment")
@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
async def test_no_foreign_page_logs_anybody_in(origin: str) -> None:
    async with edge(Service()) as (client, _):
        body = {"email": "ann@example.org", "password": "a long way to the sea"}
        answer = await client.post("/v1/sessions", json=body, headers={"Origin": origin})
        assert slug(answer) == "bad-origin"
