"""A shop of two processes: an edge, and the account service behind it."""

import asyncio
import contextlib
import io
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from websockets.sync.client import ClientConnection, connect

from account_service.__main__ import parse
from account_service.settings import Settings
from contracts import accounts, notifications
from contracts.envelope import Envelope
from contracts.topics import Topic
from infrastructure.local.servers import port_reservations
from infrastructure.messaging.topic_history import read_topic
from tests.testkit.processes import PATIENCE, Processes, Replica, clean_up, processes, until
from tests.testkit.servers import Servers

PASSWORD = "a long way to the sea"


def new_client(url: str) -> httpx.Client:
    """Return a client without cookies."""
    return httpx.Client(base_url=url, timeout=30, trust_env=False, verify=False)


@dataclass
class Login:
    """A session of an account, over HTTP."""

    url: str
    user_id: str
    email: str
    access_token: str
    refresh_token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        with new_client(self.url) as client:
            return client.request(method, path, json=body, headers={**self.headers, **headers})

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)


@dataclass
class AccountShop:
    """The running processes."""

    shop: Processes
    edge: Replica
    service: Replica

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.edge.port}"

    def client(self) -> httpx.Client:
        return new_client(self.url)

    def register(self, email: str | None = None, password: str = PASSWORD, **more: str) -> str:
        """Register an account and return its address."""
        email = email or f"ann-{secrets.token_hex(5)}@example.org"
        with self.client() as client:
            answer = client.post("/v1/accounts", json={"email": email, "password": password, **more})
        assert (answer.status_code, answer.json()) == (202, {"status": "confirmation_sent"}), answer.text
        return email

    def try_to_log_in(self, email: str, password: str = PASSWORD) -> httpx.Response:
        with self.client() as client:
            return client.post("/v1/sessions", json={"email": email, "password": password})

    def log_in(self, email: str, password: str = PASSWORD) -> Login:
        answer = self.try_to_log_in(email, password)
        assert answer.status_code == 201, answer.text
        return self.as_login(email, answer.json())

    def as_login(self, email: str, found: dict[str, str]) -> Login:
        return Login(self.url, found["user_id"], email, found["access_token"], found["refresh_token"])

    def new_login(self, **more: str) -> Login:
        """Register an account and log in."""
        return self.log_in(self.register(**more))

    def refresh(self, token: str) -> httpx.Response:
        with self.client() as client:
            return client.post("/v1/sessions/refresh", json={"refresh_token": token})

    def command(self, *arguments: str) -> str:
        """Run a sub-command of the service in this process, which is faster, and return what it prints."""
        found = {
            name.removeprefix("HOLDFAST_").lower(): value
            for name, value in self.shop.environment.items()
            if name.startswith("HOLDFAST_")
        }
        parsed = parse([*arguments])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = asyncio.run(parsed.act(Settings.model_validate(found, strict=False), parsed))
        assert status == 0
        return printed.getvalue()

    def user(self, *arguments: str) -> str:
        """Run `holdfast user` as the operator."""
        return self.command("user", *arguments)

    @contextmanager
    def socket(self, token: str) -> Iterator[ClientConnection]:
        """Open a socket that has been greeted."""
        with connect(
            f"ws://127.0.0.1:{self.edge.port}/v1/stream",
            additional_headers={"Authorization": f"Bearer {token}"},
            subprotocols=["holdfast.v1"],  # type: ignore[list-item]  # a NewType of str
            proxy=None,
        ) as opened:
            assert "welcome" in str(opened.recv(10))
            yield opened

    def count(self, table: str, condition: str = "true") -> int:
        """Return the number of rows in a table of the service."""
        settings = self.shop.settings
        with psycopg.connect(settings.postgres_url) as connection:
            query = f'SELECT count(*) FROM "{settings.schema_name("accounts")}".{table} WHERE {condition}'
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def records(self, topic: Topic) -> list[Envelope]:
        """Return all records of a topic."""

        name = self.shop.settings.topic(topic)

        async def read() -> list[Envelope]:
            return [Envelope.decode(each.key, each.value) async for each in read_topic(self.shop.settings, [name])]

        return asyncio.run(read())

    def events(self, user_id: str) -> list[Envelope]:
        """Return the events of an account."""
        return [each for each in self.records(accounts.EVENTS) if each.subject == user_id]

    def mails(self, email: str, template: str) -> list[Envelope]:
        """Return the requested mails to an address."""
        return [
            each
            for each in self.records(notifications.REQUESTS)
            if (each.data.get("recipient"), each.data["template"]) == (email, template)
        ]

    def mail(self, email: str, template: str, number: int = 1) -> dict[str, str]:
        """Return the parameters of the mail with that number to an address, after it was requested."""
        until(lambda: len(self.mails(email, template)) >= number, PATIENCE, self.service.log_tail)
        found: dict[str, str] = self.mails(email, template)[number - 1].data["params"]
        return found


@contextmanager
def running_accounts(servers: Servers, **more: str) -> Iterator[AccountShop]:
    """An edge and an account service, ready; gone afterwards with their topics and tables."""
    settings = servers.settings()
    port = port_reservations.reserve_free_port()
    environment = {
        "HOLDFAST_ACCOUNTS_URL": f"http://127.0.0.1:{port}",
        "HOLDFAST_ACCOUNTS_PORT": str(port),
        "HOLDFAST_ACCOUNTS_KEY_DELAY_SECONDS": "0.5",
        **more,
    }
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-accounts-") as folder,
        processes(servers, settings, Path(folder), **environment) as shop,
    ):
        [service] = shop.start("account_service", "accounts")
        [edge] = shop.start("rest_api", "edge")
        try:
            service.wait_ready()
            edge.wait_ready()
            yield AccountShop(shop, edge, service)
        finally:
            for replica in shop.replicas:
                replica.kept = False
                if replica.process is not None and replica.process.poll() is None:
                    replica.stop()
            asyncio.run(clean_up(settings))
