"""Notices as a shopper sees them: the list, the preferences and the frames, from the edge down to the tables."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import psycopg
import pytest
from websockets.asyncio.client import connect

from contracts import notifications as notices
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from infrastructure.security.tokens import issue
from rest_api.http.routers.notifications import NewNotice
from rest_api.read_models.notices import DELETE_LIMIT, NoticeReadModel
from rest_api.read_models.store import SQL_FOLDER, Store
from rest_api.settings import EdgeSettings
from tests.testkit.notifications import NoticeStack, asked, event, notice_stack
from tests.testkit.processes import PATIENCE
from tests.testkit.servers import Servers

URL = "/v1/notifications"


@pytest.fixture(scope="module")
def here(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoticeStack]:
    with notice_stack(servers, tmp_path_factory.mktemp("notices"), edge=True) as made:
        yield made


@pytest.fixture
def user() -> str:
    return f"u-{secrets.token_hex(4)}"


@pytest.fixture
async def edge(here: NoticeStack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=here.edge, trust_env=False, timeout=PATIENCE) as client:
        yield client


def bearer(here: NoticeStack, user: str, role: str = "customer") -> dict[str, str]:
    secret = DEVELOPMENT_SECRET
    token, _ = issue(secret, user_id=user, roles=[role], lifetime=timedelta(hours=1), now=datetime.now(UTC))
    return {"Authorization": f"Bearer {token}"}


async def listed(edge: httpx.AsyncClient, headers: dict[str, str], count: int) -> list[dict[str, str]]:
    """The list, once it has that many."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = await edge.get(URL, headers=headers)
            assert answer.status_code == 200, answer.text
            if len(items := answer.json()["items"]) >= count:
                return list(items)
            await asyncio.sleep(0.1)


async def test_a_service_sends_a_notice_once(here: NoticeStack, edge: httpx.AsyncClient, user: str) -> None:
    service, shopper = bearer(here, "billing", "service"), bearer(here, user)
    wanted = {"user_id": user, "channel": "push", "params": {"title": "Hello", "body": "World"}, "cause": "news/1"}
    address = here.edge.replace("http", "ws") + "/v1/stream"
    async with connect(address, additional_headers=shopper, proxy=None) as socket:
        for _ in range(2):
            answer = await edge.post(URL, json=wanted, headers=service)
            assert (answer.status_code, answer.headers["location"]) == (202, URL), answer.text
        async with asyncio.timeout(PATIENCE):
            while (frame := json.loads(await socket.recv()))["type"] != "notice":
                pass
    [item] = await listed(edge, shopper, 1)
    assert (frame["title"], frame["body"], frame["cause"]) == ("Hello", "World", "news/1")
    assert (item["id"], item["title"], item["body"], item["status"]) == (frame["notice_id"], "Hello", "World", "sent")
    assert (await edge.get(URL, headers=service)).json() == {"items": [], "after": None}, "it is another's"
    for headers, status in ((shopper, 403), ({}, 401)):
        assert (await edge.post(URL, json=wanted, headers=headers)).status_code == status
    assert (await edge.post(URL, json={**wanted, "channel": "pigeon"}, headers=service)).status_code == 422


@pytest.mark.parametrize(
    "change",
    [
        {"params": {"title": "a\0b"}},
        {"params": {"body": "\0"}},
        {"params": {"a\0": "b"}},
        {"cause": "a\0"},
        {"order_id": "\0"},
        {"user_id": "a\0"},
    ],
)
async def test_a_nul_in_a_notice_is_refused(
    here: NoticeStack, edge: httpx.AsyncClient, user: str, change: dict[str, object]
) -> None:
    body = {"user_id": user, "channel": "push", "params": {"title": "t"}, **change}
    answer = await edge.post(URL, json=body, headers=bearer(here, "billing", "service"))
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid"), answer.text


async def test_a_notice_that_fits_into_a_body_and_into_no_record_is_refused(
    here: NoticeStack, edge: httpx.AsyncClient, user: str
) -> None:
    body = {"user_id": user, "channel": "push", "params": {"title": "t"}}
    texts = {f"p_{chr(ord('a') + number)}": "x" * 4000 for number in range(16)}
    empty = len(json.dumps({**body, "params": {**texts, "body": ""}}, separators=(",", ":")))
    for room in range(40, 0, -8):  # the body is never too large, the record is
        params = {**texts, "body": "x" * (64 * 1024 - empty - room)}
        content = json.dumps({**body, "params": params}, separators=(",", ":"))
        headers = {**bearer(here, "billing", "service"), "Content-Type": "application/json"}
        answer = await edge.post(URL, content=content, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid"), answer.text
        assert [each["pointer"] for each in answer.json()["errors"]] == ["/params"]


async def test_no_text_of_a_notice_is_stored_with_its_key(
    here: NoticeStack, edge: httpx.AsyncClient, user: str
) -> None:
    """Also not by an earlier version: a migration has replaced its fingerprints, and repeats are still recognised."""
    service = {**bearer(here, "billing", "service"), "Idempotency-Key": f"secret-{user}"}
    wanted = {
        "user_id": user,
        "channel": "push",
        "params": {"title": "Hello", "body": f"Dear {user}, of 1 High Street"},
    }
    first = await edge.post(URL, json=wanted, headers=service)
    with psycopg.connect(here.settings.postgres_url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "{here.settings.schema_name("edge")}"'.encode())
        rows = connection.execute("SELECT fingerprint, answer FROM claim WHERE user_id = 'billing'").fetchall()
        assert "High Street" not in str(rows)
        text = NewNotice.model_validate(wanted).model_dump_json()
        changed = connection.execute(
            "UPDATE claim SET fingerprint = %s WHERE id = %s", (f"POST {URL} {text}", first.json()["request_id"])
        )
        assert changed.rowcount == 1
        migration = (SQL_FOLDER / "migrations" / "0006_notice_reasons.sql").read_text()
        connection.execute(migration[migration.index("UPDATE claim") :].encode())
    repeated = await edge.post(URL, json=wanted, headers=service)
    assert (repeated.status_code, repeated.json()) == (202, first.json())


async def test_a_notice_that_was_not_sent_is_listed_with_its_reason(
    here: NoticeStack, edge: httpx.AsyncClient, user: str
) -> None:
    now = datetime.now(UTC)
    sent = notices.Sent(
        user_id=user,
        notice_id=f"{user}-0",
        template="message",
        channel="email",
        cause="c",
        title="Hello",
        body="",
        accepted_at=now,
    )
    later, earlier = {"notice_id": f"{user}-1"}, {"notice_id": f"{user}-2", "accepted_at": now - timedelta(days=1)}
    skipped = notices.Skipped.model_validate({**dict(sent), **later, "reason": "recipient_limit"})
    failed = notices.Failed.model_validate({**dict(sent), **earlier, "reason": "ConnectionError: 10.0.0.1"})
    for each in (skipped, failed):
        await here.say((notices.EVENTS, event(each, "/notifications", user, each.notice_id)))
    first, second = await listed(edge, bearer(here, user), 2)
    assert (first["status"], first["reason"]) == ("skipped", "recipient_limit")
    assert (second["status"], "reason" in second) == ("failed", False), "an operator's reason is not the shopper's"


async def test_old_notices_are_deleted_from_the_list_faster_than_they_come(
    here: NoticeStack, edge: httpx.AsyncClient, user: str
) -> None:
    settings = EdgeSettings(postgres_url=here.settings.postgres_url, prefix=here.settings.prefix)
    store = Store(settings)
    await store.open()
    try:
        async with store.transaction() as connection:
            await connection.execute(
                "INSERT INTO notice (notice_id, user_id, channel, template, cause, title, body, status, accepted_at,"
                " settled_at) SELECT %(user)s || n, %(user)s, 'push', 'message', n, 't', 'b', 'sent', at, at"
                " FROM generate_series(0, %(count)s) n, LATERAL (SELECT now() - interval '89 days' * sign(n) -"
                " interval '2 days' * sign(n) AS at) _",
                {"user": user, "count": 2 * DELETE_LIMIT + 1},
            )
        await NoticeReadModel(settings, store, lambda *_: None).delete_old(90)
        rows = await store.fetch_all("SELECT notice_id FROM notice WHERE user_id = %(user)s", {"user": user})
    finally:
        await store.close()
    assert rows == [(f"{user}0",)]


async def test_the_same_key_is_the_same_notice(here: NoticeStack, edge: httpx.AsyncClient, user: str) -> None:
    service = {**bearer(here, "billing", "service"), "Idempotency-Key": user}
    wanted = {"user_id": user, "channel": "push", "params": {"title": "Hello", "body": "World"}}
    first, second = [await edge.post(URL, json=wanted, headers=service) for _ in range(2)]
    assert first.json() == second.json()
    assert len(await listed(edge, bearer(here, user), 1)) == 1
    other = await edge.post(URL, json={**wanted, "template": "cart_changed"}, headers=service)
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")


async def test_preferences_are_returned_to_a_waiting_client(
    here: NoticeStack, edge: httpx.AsyncClient, user: str
) -> None:
    headers = bearer(here, user)
    address = f"{URL}/preferences"
    assert (await edge.get(address, headers=headers)).json() == {"email": True, "sms": True, "push": True}
    wish = {"email": False, "sms": True, "push": False}
    answer = await edge.put(address, json=wish, headers={**headers, "Prefer": "wait=20"})
    assert (answer.status_code, answer.json()) == (200, wish), answer.text
    assert (await edge.get(address, headers=headers)).json() == wish
    later = await edge.put(address, json={**wish, "push": True}, headers=headers)
    assert (later.status_code, later.headers["location"]) == (202, address)
    async with asyncio.timeout(PATIENCE):
        while not (await edge.get(address, headers=headers)).json()["push"]:
            await asyncio.sleep(0.1)
    assert (await edge.put(address, json={"email": True}, headers=headers)).status_code == 422


async def test_the_list_has_pages_and_forgets_with_the_service(
    here: NoticeStack, edge: httpx.AsyncClient, user: str
) -> None:
    headers = bearer(here, user)
    now = datetime.now(UTC)
    sends = [
        notices.Send(user_id=user, template="message", channel="push", params={"title": str(n)}, cause=f"n/{n}")
        for n in range(5)
    ]
    await here.say(*(asked(user, send, now - timedelta(minutes=n)) for n, send in enumerate(sends)))
    await listed(edge, headers, 5)
    seen, path = [], f"{URL}?limit=2"
    while path:
        answer = await edge.get(path, headers=headers)
        seen += [item["title"] for item in answer.json()["items"]]
        path = answer.links["next"]["url"] if "next" in answer.links else ""
    assert seen == ["0", "1", "2", "3", "4"], "the newest first"
    assert (await edge.get(f"{URL}?after=nonsense", headers=headers)).status_code == 400
    await here.say(asked(user, notices.Forget(user_id=user)))
    async with asyncio.timeout(PATIENCE):
        while (await edge.get(URL, headers=headers)).json()["items"]:
            await asyncio.sleep(0.1)
