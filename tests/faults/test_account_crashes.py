"""The account service, ended between any two of its effects: no event is lost, and none has two ids."""

import secrets
from collections.abc import Iterator

import pytest

from contracts import accounts
from infrastructure.process.failpoints import EXIT_KILLED, FAILPOINTS
from tests.testkit.accounts import PASSWORD, AccountShop, running_accounts
from tests.testkit.processes import until
from tests.testkit.servers import Servers

POINTS = [point for point in FAILPOINTS if point.startswith("accounts.")]


@pytest.fixture(scope="module")
def shop(servers: Servers) -> Iterator[AccountShop]:
    with running_accounts(servers) as here:
        yield here


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_loses_no_event_and_publishes_each_under_one_id(shop: AccountShop, point: str) -> None:
    email = f"crash-{secrets.token_hex(4)}@example.org"
    crashes = shop.service.exits.count(EXIT_KILLED)
    shop.service.arm(f"{point}:1")
    body = {"email": email, "password": PASSWORD}
    with shop.client() as client:
        first = client.post("/v1/accounts", json=body)
        until(lambda: shop.service.exits.count(EXIT_KILLED) > crashes, why=shop.service.log_tail)
        shop.service.wait_ready()
        assert point == "accounts.published" or first.status_code == 503, first.text
        if first.status_code == 503:
            assert client.post("/v1/accounts", json=body).status_code == 202
    login = shop.log_in(email)
    until(lambda: bool(shop.events(login.user_id)))
    registered = {each.id for each in shop.events(login.user_id) if each.type == accounts.Registered.TYPE}
    assert registered == {f"{login.user_id}/1/registered"}
    shop.mail(email, "account_confirm")
    until(lambda: shop.count("outbox") == 0)
    assert shop.count("account", f"email = '{email}'") == 1
    assert shop.refresh(login.refresh_token).status_code == 200
