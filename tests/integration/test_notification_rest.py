"""Notices as a shopper sees them: the list, the preferences and the frames, from the edge down to the tables."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from websockets.asyncio.client import connect

from contracts import notifications as notices
from infrastructure.security.tokens import issue
from tests.testkit.notifications import NoticeStack, asked, notice_stack
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
    secret = here.settings.secret.get_secret_value()
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
