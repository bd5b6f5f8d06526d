"""The simulated provider over real HTTP, spoken to by the client that payment has: it keeps a real one's promises."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from contracts.inventory import Money
from infrastructure.local.servers import port_reservations
from infrastructure.security.breaker import Unavailable
from infrastructure.security.webhooks import HEADER, verify
from order_service.payment.model import (
    CreateCharge,
    CreateRefund,
    KeyUnknown,
    NoResponse,
    Operation,
    QueryCharge,
    Rejection,
    StatusReport,
    VoidCharge,
)
from order_service.payment.provider.server import Control
from order_service.payment.provider.webhooks import WebhookSender
from order_service.payment.provider_client import ProviderClient
from tests.testkit.payments import KEY, SECRET, file_in, provider

TEN = Money(amount=1000, currency="GBP")
STEP = Operation(key="pay-1", order_id="o-1", user_id="ann", payment_id="pay-1", intent="charge", amount=TEN)
CAPTURED = StatusReport("captured", TEN)


def create(token: str) -> CreateCharge:
    return CreateCharge(TEN, token)


@pytest.mark.parametrize("token", ["tok_approve", "tok_twice"])
async def test_a_charge_is_captured_once_however_often_it_is_made(token: str) -> None:
    async with provider() as (_, client):
        answers = [await client.execute(STEP, create(token)) for _ in range(3)]
        assert answers == [CAPTURED] * 3
        assert await client.execute(STEP, QueryCharge()) == CAPTURED
        assert await client.execute(STEP, VoidCharge()) == CAPTURED, "too late"
        assert [(entry["type"], entry["amount"]) for entry in await client.history()] == [("captured", 1000)]


async def test_a_declined_one_stays_declined() -> None:
    async with provider() as (_, client):
        answers = [await client.execute(STEP, ask) for ask in (create("tok_decline"), QueryCharge(), VoidCharge())]
        assert {answer.status for answer in answers if isinstance(answer, StatusReport)} == {"declined"}


async def test_one_that_is_never_answered_is_undecided_until_it_is_voided() -> None:
    async with provider() as (_, client):
        assert isinstance(await client.execute(STEP, create("tok_timeout")), NoResponse)
        pending = await client.execute(STEP, QueryCharge())
        assert isinstance(pending, StatusReport)
        assert pending.status == "pending"
        for ask in (VoidCharge(), VoidCharge(), QueryCharge(), create("tok_timeout")):
            voided = await client.execute(STEP, ask)
            assert isinstance(voided, StatusReport)
            assert voided.status == "voided"


async def test_a_late_one_is_captured_after_its_client_has_given_up() -> None:
    async with provider(late=0.5) as (_, client):
        assert isinstance(await client.execute(STEP, create("tok_late")), NoResponse)
        async with asyncio.timeout(5):
            while await client.execute(STEP, QueryCharge()) != CAPTURED:
                await asyncio.sleep(0.02)


async def test_a_late_one_that_was_voided_is_never_captured() -> None:
    async with provider(late=0.6) as (server, client):
        assert isinstance(await client.execute(STEP, create("tok_late")), NoResponse)
        voided = await client.execute(STEP, VoidCharge())
        assert isinstance(voided, StatusReport)
        assert voided.status == "voided"
        async with asyncio.timeout(5):
            while server._timers:
                await asyncio.sleep(0.02)
        assert [entry["type"] for entry in await client.history()] == ["voided"]


async def test_a_void_of_an_unknown_payment_refuses_a_later_charge() -> None:
    async with provider() as (_, client):
        assert await client.execute(STEP, QueryCharge()) == KeyUnknown()
        for ask in (VoidCharge(), create("tok_approve")):
            answer = await client.execute(STEP, ask)
            assert isinstance(answer, StatusReport)
            assert answer.status == "voided"


async def test_a_wrong_amount_is_said_as_it_was_taken() -> None:
    async with provider() as (_, client):
        taken = StatusReport("captured", Money(amount=999, currency="GBP"))
        assert [await client.execute(STEP, ask) for ask in (create("tok_wrong_amount"), QueryCharge())] == [
            taken,
            taken,
        ]


async def test_money_is_given_back_once_and_never_more_than_was_taken() -> None:
    def back(key: str, amount: int) -> tuple[Operation, CreateRefund]:
        return replace(STEP, key=key, intent="refund"), CreateRefund(Money(amount=amount, currency="GBP"))

    async with provider() as (_, client):
        assert await client.execute(*back("r-1", 1)) == KeyUnknown()
        await client.execute(STEP, create("tok_approve"))
        for _ in range(2):
            assert await client.execute(*back("r-1", 600)) == StatusReport(
                "refunded", Money(amount=600, currency="GBP")
            )
        assert await client.execute(*back("r-2", 401)) == Rejection("400 are left of 1000")
        assert await client.execute(*back("r-2", 400)) == StatusReport("refunded", Money(amount=400, currency="GBP"))
        assert [entry["amount"] for entry in await client.history()] == [1000, 600, 400]


@pytest.mark.parametrize(("token", "word"), [("tok_free", "known token"), ("4111 1111 1111 1111", "card number")])
async def test_a_token_that_is_none_is_refused_in_a_sentence(token: str, word: str) -> None:
    async with provider() as (_, client):
        answer = await client.execute(STEP, create(token))
        assert isinstance(answer, Rejection)
        assert word in answer.reason
        assert await client.history() == []


async def test_the_same_key_for_another_amount_is_refused() -> None:
    async with provider() as (_, client):
        await client.execute(STEP, create("tok_approve"))
        answer = await client.execute(STEP, CreateCharge(Money(amount=1, currency="GBP"), "tok_approve"))
        assert answer == Rejection("this key belongs to a charge of another amount or token")


@pytest.mark.parametrize("mood", [Control(down=True), Control(fail=1), Control(slow=5)])
async def test_a_provider_that_cannot_is_unavailable_and_has_done_nothing(mood: Control) -> None:
    async with provider() as (server, client):
        server.control = mood
        with pytest.raises(Unavailable):
            await client.execute(STEP, QueryCharge())
        server.control = Control()
        assert await client.history() == []


async def test_a_wrong_key_is_ours_to_mend_and_no_outcome() -> None:
    async with provider() as (_, client):
        client._headers["Authorization"] = "Bearer another"
        await client.close()
        async with client:
            with pytest.raises(Unavailable, match="401"):
                await client.execute(STEP, create("tok_approve"))


async def test_an_answer_that_makes_no_sense_is_not_an_outcome() -> None:
    async with (
        listener([{"status": "captured"}, {"status": "eaten"}]) as (url, _),
        ProviderClient(url, KEY, timeout=1) as client,
    ):
        for _ in range(2):
            with pytest.raises(Unavailable, match="invalid body"):
                await client.execute(STEP, QueryCharge())


async def test_webhooks_are_signed_and_may_come_before_the_answer_and_twice() -> None:
    async with listener([{}]) as (url, heard), provider(webhook_url=f"{url}/hook", patience=2) as (server, client):
        await client.execute(STEP, create("tok_twice"))
        assert len(heard) >= 1, "before the answer"
        other = replace(STEP, key="pay-2", payment_id="pay-2")
        await client.execute(other, create("tok_approve"))
        async with asyncio.timeout(5):
            while len(heard) < 3:
                await asyncio.sleep(0.02)
        for headers, body in heard:
            verify(SECRET, headers[HEADER], body, datetime.now(UTC))
        told = [json.loads(body) for _, body in heard]
        assert [each["data"]["key"] for each in told].count("pay-1") == 2
        assert told[0]["type"] == "charge.captured"
        assert told[0]["data"]["metadata"] == {"order_id": "o-1", "user_id": "ann"}
        assert not server.database.scheduled_captures()


PAGE = "http://evil.example"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/control", {}, 200),
        ("POST", "/control", {"Origin": PAGE, "Content-Type": "text/plain"}, 403),
        ("POST", "/control", {"Origin": "null"}, 403),
        ("POST", "/control", {"Host": "evil.example"}, 403),
        ("GET", "/v1/history", {}, 200),
        ("GET", "/v1/history", {"Origin": PAGE}, 403),
        ("GET", "/v1/history", {"Host": "evil.example"}, 403),
        ("GET", "/readyz", {"Host": "evil.example"}, 403),
        ("POST", "/v1/charges", {"Host": "evil.example"}, 403),
    ],
)
async def test_the_provider_answers_programs_of_this_machine_and_no_web_page(
    method: str, path: str, headers: dict[str, str], status: int
) -> None:
    async with provider() as (server, client), aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {KEY}", **headers}
        async with session.request(method, client.url + path, data=b'{"fail": 1}', headers=headers) as response:
            assert response.status == status
        assert server.control.fail == (1 if status == 200 and path == "/control" else 0)


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("http://127.0.0.1:9/hook", True),
        ("http://localhost:9/hook", True),
        ("https://shop.example/v1/webhooks/payments", True),
        ("https://shop.example/v1/webhooks/payments?x", False),
        ("http://169.254.169.254/latest", False),
        ("http://10.0.0.1/", False),
        ("http://0.0.0.0:9/", False),
        ("http://127.0.0.1@10.0.0.1/", False),
        ("http://2130706433/", False),
    ],
)
async def test_webhooks_go_to_the_configured_url_and_this_machine_only(url: str, accepted: bool) -> None:
    sender = WebhookSender(SECRET, "https://shop.example/v1/webhooks/payments")
    assert sender.accepts(url) is accepted
    async with provider() as (server, client):
        server.webhooks._configured_url = "https://shop.example/v1/webhooks/payments"
        body = {"key": "k", "amount": 1, "currency": "GBP", "token": "tok_decline", "webhook_url": url}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{client.url}/v1/charges", json=body, headers=headers) as response,
        ):
            assert (response.status, (await response.json()).get("type")) == (
                (201, None) if accepted else (422, "invalid")
            )


async def test_a_webhook_follows_no_redirect_and_no_stored_url_elsewhere() -> None:
    async with listener([{}]) as (url, heard):

        async def redirect(_: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(f"{url}/there")

        app = web.Application()
        app.router.add_post("/away", redirect)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sender = WebhookSender(SECRET)
        try:
            assert not await sender.deliver(f"http://127.0.0.1:{runner.addresses[0][1]}/away", {"status": "captured"})
            assert not await sender.deliver("http://10.0.0.1/", {"status": "captured"})
        finally:
            await sender.close()
            await runner.cleanup()
    assert heard == []


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "status"),
    [
        ("GET", "/v1/history", b"", KEY.encode() + b"\xff", 401),
        ("GET", f"/v1/history?after={10**30}", b"", KEY.encode(), 422),
        ("GET", f"/v1/history?after=-{10**30}", b"", KEY.encode(), 422),
        ("GET", f"/v1/history?after={'9' * 5000}", b"", KEY.encode(), 422),
        ("GET", f"/v1/history?limit={10**30}", b"", KEY.encode(), 200),
        ("POST", "/v1/charges", b'{"key":"k","amount":%d,"currency":"GBP","token":"tok_approve"}', KEY.encode(), 422),
        ("POST", "/v1/charges/k/refunds", b'{"key":"r","amount":%d}', KEY.encode(), 422),
    ],
)
async def test_numbers_and_keys_of_any_kind_are_answered(
    method: str, path: str, body: bytes, key: bytes, status: int
) -> None:
    async with provider() as (_, client):
        parts = urlsplit(client.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        content = body % 10**30 if body else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        length = b"Content-Length: %d\r\n\r\n" % len(content)
        writer.write(head.encode() + b"Authorization: Bearer " + key + b"\r\n" + length + content)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer


def test_kill_9_forgets_no_capture(tmp_path: Path) -> None:
    port = port_reservations.reserve_free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")},
        "HOLDFAST_PROVIDER_PORT": str(port),
        "HOLDFAST_PROVIDER_KEY": KEY,
        "HOLDFAST_PROVIDER_FILE": file_in(tmp_path),
        "HOLDFAST_PROVIDER_LATE_SECONDS": "1",
    }

    async def ask(*asks: tuple[str, Any]) -> list[Any]:
        async with ProviderClient(f"http://127.0.0.1:{port}", KEY, timeout=0.5) as client:
            return [await client.execute(replace(STEP, key=key, payment_id=key), each) for key, each in asks]

    for attempt in range(2):
        process = subprocess.Popen([sys.executable, "-m", "order_service.payment.provider", "run"], env=environment)
        try:
            _wait(f"http://127.0.0.1:{port}/readyz")
            if attempt == 0:
                asyncio.run(ask(("a", create("tok_approve")), ("b", create("tok_late")), ("c", VoidCharge())))
            else:
                end = time.monotonic() + 10
                while asyncio.run(ask(("b", QueryCharge()))) != [CAPTURED]:
                    assert time.monotonic() < end, "what was to be captured late still is"
                [captured, voided] = asyncio.run(ask(("a", QueryCharge()), ("c", create("tok_approve"))))
                assert (captured, voided.status) == (CAPTURED, "voided")
        finally:
            process.send_signal(signal.SIGKILL if attempt == 0 else signal.SIGTERM)
            assert process.wait(10) == (-9 if attempt == 0 else 0)


def _wait(url: str) -> None:
    async def answered() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return response.ok
        except aiohttp.ClientError:
            return False

    end = time.monotonic() + 20
    while not asyncio.run(answered()):
        assert time.monotonic() < end
        time.sleep(0.05)


@asynccontextmanager
async def listener(answers: list[dict[str, Any]]) -> AsyncIterator[tuple[str, list[tuple[Any, bytes]]]]:
    """A small HTTP server that answers with `answers` in turn, the last one repeatedly, and records its requests."""
    heard: list[tuple[Any, bytes]] = []

    async def hear(request: web.Request) -> web.Response:
        heard.append((request.headers, await request.read()))
        return web.json_response(answers[min(len(heard), len(answers)) - 1])

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hear)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", heard
    finally:
        await runner.cleanup()
