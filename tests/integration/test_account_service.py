"""Accounts on real servers: the account service and an edge in front of it."""

import base64
import io
import json
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from contracts import accounts
from tests.testkit.accounts import PASSWORD, AccountShop, Login, running_accounts
from tests.testkit.processes import until
from tests.testkit.servers import Servers

OTHER_PASSWORD = "another way to the sea"


@pytest.fixture(scope="module")
def somebody(shop: AccountShop) -> Login:
    """An account that no test changes."""
    return shop.new_login()


@pytest.fixture(scope="module")
def root(shop: AccountShop) -> Login:
    """An administrator."""
    email = f"root-{secrets.token_hex(4)}@example.org"
    add(shop, email, "--role", "admin")
    return shop.log_in(email)


@pytest.fixture(scope="module")
def shop(servers: Servers) -> Iterator[AccountShop]:
    with running_accounts(servers) as here:
        yield here


def slug(answer: httpx.Response) -> str:
    return str(answer.json()["type"]).removeprefix("/problems/")


def close_code(socket: ClientConnection) -> int | None:
    """Return the code with which the server closes a socket."""
    deadline = time.monotonic() + 10
    try:
        while time.monotonic() < deadline:
            socket.recv(10)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None
    raise AssertionError("the socket is still open")


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


def add(shop: AccountShop, email: str, *options: str) -> dict[str, Any]:
    """Create an account as the operator, with PASSWORD."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
        found: dict[str, Any] = json.loads(shop.user("add", email, *options, "--json"))
    return found


# ---- registration, login, the own account ----------------------------------------------------------------------------


def test_a_registered_account_can_log_in_at_once_and_is_read_changed_and_deleted(shop: AccountShop) -> None:
    email = shop.register(name="Ann Bee")
    login = shop.log_in(email.upper())
    answer = login.get("/v1/me")
    me = answer.json()
    assert (me.pop("created_at")[-1], answer.headers["etag"]) == ("Z", '"1"')
    assert me == {"user_id": login.user_id, "email": email, "name": "Ann Bee", "profile": {}, "roles": ["shopper"]}
    assert login.request("GET", "/v1/me", **{"If-None-Match": '"1"'}).status_code == 304
    profile = {"address": {"city": "Bath"}, "n": [1, None, "é"]}
    changed = login.request("PATCH", "/v1/me", {"profile": profile}, **{"If-Match": '"1"'})
    assert (changed.status_code, changed.headers["etag"], changed.json()["profile"]) == (200, '"2"', profile)
    late = login.request("PATCH", "/v1/me", {"name": "Bee"}, **{"If-Match": '"1"'})
    assert (late.status_code, slug(late)) == (412, "precondition-failed")
    assert login.get("/v1/me").json()["name"] == "Ann Bee"
    wrong = login.request("DELETE", "/v1/me", {"password": OTHER_PASSWORD})
    assert (wrong.status_code, slug(wrong)) == (401, "invalid-credentials")
    assert login.request("DELETE", "/v1/me", {"password": PASSWORD}).status_code == 204
    until(lambda: login.get("/v1/me").status_code == 401)
    assert slug(shop.try_to_log_in(email)) == "invalid-credentials"
    until(lambda: {each.type for each in shop.events(login.user_id)} >= {accounts.Deleted.TYPE})
    kinds = [each.type.rpartition(".")[2] for each in shop.events(login.user_id)]
    assert kinds == ["registered", "updated", "sessions-ended", "deleted"]
    text = "".join(each.encode().decode() for each in shop.events(login.user_id))
    assert not [word for word in (email, "Ann", "Bath") if word in text]
    shop.log_in(shop.register(email))


def test_a_taken_address_and_a_wrong_password_say_nothing(shop: AccountShop) -> None:
    email = shop.register()
    token = shop.mail(email, "account_confirm")["token"]
    with shop.client() as client:
        assert client.post("/v1/accounts/confirm", json={"token": token}).json() == {"status": "confirmed"}
        used = client.post("/v1/accounts/confirm", json={"token": token})
        assert (used.status_code, used.json()["errors"][0]["pointer"]) == (422, "/token")
    shop.register(email, OTHER_PASSWORD)
    shop.mail(email, "account_exists")
    answers = [shop.try_to_log_in(email, OTHER_PASSWORD), shop.try_to_log_in("nobody@example.org")]
    for each in answers:
        assert (each.status_code, slug(each)) == (401, "invalid-credentials")
    first, second = ({**each.json(), "instance": ""} for each in answers)
    assert first == second
    shop.log_in(email)


def test_the_confirmed_registration_of_two_decides_and_ends_the_sessions_of_the_other(shop: AccountShop) -> None:
    email = shop.register(password=OTHER_PASSWORD)
    stranger = shop.log_in(email, OTHER_PASSWORD)
    shop.register(email)
    token = shop.mail(email, "account_confirm", 2)["token"]
    with shop.client() as client:
        assert client.post("/v1/accounts/confirm", json={"token": token}).status_code == 200
    until(lambda: stranger.get("/v1/me").status_code == 401)
    assert shop.refresh(stranger.refresh_token).status_code == 401
    assert shop.try_to_log_in(email, OTHER_PASSWORD).status_code == 401
    shop.log_in(email)


def test_a_password_is_reset_once_by_mail_and_all_sessions_end(shop: AccountShop) -> None:
    login = shop.new_login()
    with shop.client() as client:
        for email in (login.email, "nobody@example.org"):
            answer = client.post("/v1/accounts/password-reset", json={"email": email})
            assert (answer.status_code, answer.json()) == (202, {"status": "reset_sent"})
        token = shop.mail(login.email, "password_reset")["token"]
        weak = client.post("/v1/accounts/password", json={"token": token, "password": "password1"})
        assert (weak.status_code, weak.json()["errors"][0]["pointer"]) == (422, "/password")
        body = {"token": token, "password": OTHER_PASSWORD}
        assert client.post("/v1/accounts/password", json=body).json() == {"status": "password_changed"}
        assert client.post("/v1/accounts/password", json=body).status_code == 422
    until(lambda: login.get("/v1/me").status_code == 401)
    assert shop.try_to_log_in(login.email).status_code == 401
    shop.log_in(login.email, OTHER_PASSWORD)
    shop.mail(login.email, "password_changed")


def test_a_change_of_password_ends_the_other_sessions(shop: AccountShop) -> None:
    login = shop.new_login()
    other = shop.log_in(login.email)
    body = {"current_password": PASSWORD, "password": OTHER_PASSWORD}
    wrong = login.request("PUT", "/v1/me/password", {**body, "current_password": OTHER_PASSWORD})
    assert slug(wrong) == "invalid-credentials"
    assert login.request("PUT", "/v1/me/password", body).json() == {"status": "password_changed"}
    until(lambda: other.get("/v1/me").status_code == 401)
    assert login.get("/v1/me").status_code == 200
    shop.log_in(login.email, OTHER_PASSWORD)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/accounts", {"email": "a@example.org", "password": PASSWORD, "roles": ["admin"]}),
        ("POST", "/v1/accounts", {"email": "a@example.org", "password": "x" * 1025}),
        ("POST", "/v1/accounts", {"email": "nobody", "password": PASSWORD}),
        ("POST", "/v1/sessions", {"email": "a@example.org", "password": "x" * 2000}),
        ("POST", "/v1/sessions", {"email": "a@example.org", "password": PASSWORD, "user_id": "u"}),
        ("PATCH", "/v1/me", {"roles": ["admin"]}),
        ("PATCH", "/v1/me", {"email": "b@example.org"}),
        ("PATCH", "/v1/me", {"user_id": "x"}),
        ("PATCH", "/v1/me", {"profile": {"x": "y" * 17_000}}),
        ("PATCH", "/v1/me", {"name": "a\u202eb"}),
    ],
)
def test_what_nobody_may_set_is_refused(somebody: Login, method: str, path: str, body: dict[str, Any]) -> None:
    answer = somebody.request(method, path, body)
    assert (answer.status_code, slug(answer)) == (422, "invalid"), answer.text
    assert PASSWORD not in answer.text


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_a_logout_ends_the_token_and_closes_its_sockets_only(shop: AccountShop, somebody: Login) -> None:
    login = shop.new_login()
    other = shop.log_in(login.email)
    listed = login.get("/v1/sessions").json()
    assert [each["current"] for each in listed["items"]] == [False, True]
    assert listed["after"] is None
    with shop.socket(login.access_token) as socket, shop.socket(other.access_token) as kept:
        answer = login.request("DELETE", "/v1/sessions/current")
        assert answer.status_code == 204
        assert 'holdfast_session=""' in answer.headers["set-cookie"]
        assert close_code(socket) == 4401
        until(lambda: slug(login.get("/v1/cart")) == "token-expired")
        kept.send('{"id":"1","type":"unwatch"}')
        assert other.get("/v1/me").status_code == 200
    assert shop.refresh(login.refresh_token).status_code == 401
    [left] = other.get("/v1/sessions").json()["items"]
    assert somebody.request("DELETE", f"/v1/sessions/{left['session_id']}").status_code == 404
    with shop.socket(other.access_token) as socket:
        assert other.request("DELETE", "/v1/sessions").status_code == 204
        assert close_code(socket) == 4401


def test_each_refresh_token_is_valid_once_and_its_reuse_ends_the_family(shop: AccountShop) -> None:
    login = shop.new_login()
    second = shop.refresh(login.refresh_token)
    assert second.status_code == 200
    assert second.json().keys() == {"user_id", "access_token", "refresh_token", "expires_at"}
    with shop.socket(second.json()["access_token"]) as socket:
        reused = shop.refresh(login.refresh_token)
        assert (reused.status_code, slug(reused)) == (401, "token-expired")
        assert close_code(socket) == 4401
    assert shop.refresh(second.json()["refresh_token"]).status_code == 401
    access = shop.refresh(login.access_token)
    assert access.status_code == 401


def test_two_clients_with_one_refresh_token_at_the_same_instant_get_one_answer_and_no_session(
    shop: AccountShop,
) -> None:
    for _ in range(2):
        login = shop.new_login()
        start = threading.Barrier(2)
        answers: list[httpx.Response] = []

        def refresh(login: Login = login, start: threading.Barrier = start, answers: list[Any] = answers) -> None:
            start.wait(10)
            answers.append(shop.refresh(login.refresh_token))

        threads = [threading.Thread(target=refresh) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(each.status_code for each in answers) == [200, 401]
        [granted] = [each.json() for each in answers if each.status_code == 200]
        assert shop.refresh(granted["refresh_token"]).status_code == 401


def test_a_browser_stays_logged_in_by_its_cookies_and_no_other_page_uses_them(shop: AccountShop) -> None:
    email = shop.register()
    own = {"Origin": shop.url}
    with shop.client() as browser:
        answer = browser.post("/v1/sessions", json={"email": email, "password": PASSWORD}, headers=own)
        cookies = answer.headers.get_list("set-cookie")
        assert all("HttpOnly" in each and "SameSite=lax" in each for each in cookies)
        assert ["Path=/v1/sessions" in each for each in cookies] == [False, True]
        assert browser.get("/v1/me").status_code == 200
        assert slug(browser.patch("/v1/me", json={"name": "x"})) == "bad-origin"
        evil = {"Origin": "https://evil.example"}
        assert slug(browser.post("/v1/sessions/refresh", headers=evil)) == "bad-origin"
        assert slug(browser.post("/v1/sessions/refresh")) == "bad-origin"
        assert browser.patch("/v1/me", json={"name": "x"}, headers=own).status_code == 200
        assert browser.post("/v1/sessions/refresh", headers=own).status_code == 200
        assert browser.post("/v1/guests", headers=own).status_code == 403, "the account is not turned into a guest"
        assert browser.delete("/v1/sessions/current", headers=own).status_code == 204
        assert not browser.cookies


# ---- access ----------------------------------------------------------------------------------------------------------

OWN = [
    ("GET", "/v1/me", None),
    ("PATCH", "/v1/me", {"name": "x"}),
    ("DELETE", "/v1/me", {"password": PASSWORD}),
    ("PUT", "/v1/me/password", {"current_password": PASSWORD, "password": OTHER_PASSWORD}),
    ("GET", "/v1/sessions", None),
    ("DELETE", "/v1/sessions", None),
    ("DELETE", "/v1/sessions/current", None),
]
ADMINS = [
    ("GET", "/v1/users", None),
    ("GET", "/v1/users/nobody", None),
    ("PUT", "/v1/users/nobody/roles", {"roles": ["admin"]}),
    ("POST", "/v1/users/nobody/disable", None),
]


def test_who_may_use_which_route(shop: AccountShop, somebody: Login, root: Login) -> None:
    with shop.client() as client:
        guest = {"Authorization": f"Bearer {client.post('/v1/guests').json()['token']}"}
        for method, path, body in [*OWN, *ADMINS]:
            client.cookies.clear()
            assert client.request(method, path, json=body).status_code == 401, path
            assert client.request(method, path, json=body, headers=guest).status_code == 403, path
    for method, path, body in ADMINS:
        assert somebody.request(method, path, body).status_code == 403, path
        assert root.request(method, path, body).status_code == (200 if path == "/v1/users" else 404), path


def test_changed_roles_close_sockets_refuse_tokens_and_come_with_the_next_refresh(
    shop: AccountShop, root: Login
) -> None:
    login = shop.new_login()
    page = root.get("/v1/users?limit=1").json()
    assert (len(page["items"]), page["after"] is not None) == (1, True)
    following = root.get(f"/v1/users?limit=100&after={page['after']}").json()["items"]
    assert login.user_id in {each["user_id"] for each in following}
    with shop.socket(login.access_token) as socket:
        answer = root.request("PUT", f"/v1/users/{login.user_id}/roles", {"roles": ["support", "shopper"]})
        assert answer.json()["roles"] == ["shopper", "support"]
        assert close_code(socket) == 4403
        until(lambda: slug(login.get("/v1/cart")) == "token-expired")
    assert slug(login.get("/v1/me")) == "token-expired"
    fresh = shop.as_login(login.email, shop.refresh(login.refresh_token).json())
    assert claims(fresh.access_token)["roles"] == ["shopper", "support"]
    assert fresh.get("/v1/me").json()["roles"] == ["shopper", "support"]
    assert fresh.get("/v1/analytics/orders").status_code == 200


def test_a_disabled_account_is_out_at_once_and_back_when_it_is_enabled(shop: AccountShop, root: Login) -> None:
    login = shop.new_login()
    with shop.socket(login.access_token) as socket:
        assert root.request("POST", f"/v1/users/{login.user_id}/disable").json()["status"] == "disabled"
        assert close_code(socket) == 4403
    until(lambda: slug(login.get("/v1/cart")) == "account-disabled")
    assert shop.refresh(login.refresh_token).status_code == 401
    assert slug(shop.try_to_log_in(login.email)) == "account-disabled"
    assert slug(shop.try_to_log_in(login.email, OTHER_PASSWORD)) == "invalid-credentials"
    shop.user("disable", login.email, "--undo")
    shop.log_in(login.email)


def test_the_operator_manages_users(shop: AccountShop) -> None:
    email = f"op-{secrets.token_hex(4)}@example.org"
    added = add(shop, email, "--role", "service", "--name", "A Program")
    assert (added["roles"], added["confirmed"]) == (["service"], True)
    login = shop.log_in(email)
    assert email in shop.user("list")
    shop.user("role", email, "admin")
    assert json.loads(shop.user("show", login.user_id, "--json"))["roles"] == ["admin"]
    shop.user("delete", email)
    until(lambda: slug(login.get("/v1/cart")) == "token-expired")
    gone = shop.shop.run("account_service", "user", "show", email)
    assert (gone.returncode, "there is no account" in gone.stderr) == (1, True)


# ---- keys and crashes ------------------------------------------------------------------------------------------------


def test_keys_rotate_without_a_restart_and_revoked_ones_end_their_tokens(shop: AccountShop) -> None:
    login = shop.new_login()

    def published() -> set[str]:
        with shop.client() as client:
            return {each["kid"] for each in client.get("/.well-known/jwks.json").json()["keys"]}

    before = published()
    new = shop.command("rotate-key").strip()
    until(lambda: new in published())
    until(lambda: _kid(shop.log_in(login.email).access_token) == new)
    assert login.get("/v1/me").status_code == 200, "the old key is still published"
    assert before <= published()
    revoked = shop.command("rotate-key", "--revoke").strip()
    until(lambda: published() == {revoked})
    until(lambda: login.get("/v1/cart").status_code == 401)
    fresh = shop.refresh(login.refresh_token).json()
    assert _kid(fresh["access_token"]) == revoked
    assert shop.as_login(login.email, fresh).get("/v1/me").status_code == 200


def _kid(token: str) -> str:
    head = token.split(".", maxsplit=1)[0]
    return str(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])


def test_while_the_account_service_is_gone_nobody_is_logged_out_and_nobody_can_log_in(shop: AccountShop) -> None:
    login = shop.new_login()
    with shop.socket(login.access_token) as socket:
        shop.service.kept = False
        shop.service.kill()
        assert shop.service.process is not None
        shop.service.process.wait(10)
        away = shop.try_to_log_in(login.email)
        assert (away.status_code, slug(away), "retry-after" in away.headers) == (503, "unavailable", True)
        assert login.get("/v1/me").status_code == 503
        assert login.get("/v1/orders").status_code == 200
        with shop.client() as client:
            assert client.post("/v1/guests").status_code == 201
            assert client.get("/.well-known/jwks.json").status_code == 200
        socket.ping().wait(10)
    shop.service.again()
    assert login.get("/v1/me").status_code == 200
    assert shop.refresh(login.refresh_token).status_code == 200
    shop.log_in(login.email)


def test_nothing_that_opens_an_account_lies_in_a_table_or_a_log(shop: AccountShop) -> None:
    login = shop.new_login()
    token = shop.mail(login.email, "account_confirm")["token"]
    until(lambda: shop.count("outbox") == 0)
    settings = shop.shop.settings
    stored = ""
    with psycopg.connect(settings.postgres_url) as connection:
        for table in ("account", "session", "one_time_token", "signing_key", "outbox"):
            rows = connection.execute(f'SELECT t::text FROM "{settings.schema_name("accounts")}".{table} t'.encode())
            stored += "\n".join(row[0] for row in rows)
        [memory, passes] = connection.execute(
            f"SELECT substring(password_hash from 'm=([0-9]+)'), substring(password_hash from 't=([0-9]+)')"
            f' FROM "{settings.schema_name("accounts")}".account LIMIT 1'.encode()
        ).fetchone() or ("0", "0")
    assert int(memory) >= 19456
    assert int(passes) >= 2
    logs = "".join(each.log.read_text() for each in (shop.edge, shop.service))
    for secret in (PASSWORD, token, login.refresh_token, login.access_token):
        assert secret not in stored + logs
