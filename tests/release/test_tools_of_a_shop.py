"""The tools of an operator on a whole shop of their own: its story, its state, what they leave behind, its accounts.

The last test forges records, so that the audit of this shop finds violations from then on.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts import deliveries, inventory, orders, payments
from contracts.envelope import Envelope
from contracts.ids import derive_id
from infrastructure.process.settings import Settings
from tests.conftest import SERVICES
from tests.testkit.payments import talk
from tests.testkit.rest_client import wanted
from tests.testkit.shop import Shop, product_code

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def own_shop() -> Iterator[Shop]:
    """A whole shop whose records may be forged."""
    with tempfile.TemporaryDirectory(prefix="holdfast-tools-") as folder:
        running = Shop(Path(folder) / ".holdfast")
        running.up("--workers", "cart=2", "--only", f"{SERVICES},notifications,email,sms,push,catcher")
        try:
            yield running
        finally:
            running.down()


@pytest.fixture(scope="module")
def product(own_shop: Shop) -> str:
    """A product of which there is enough."""
    code = product_code("TOOLS")
    with tempfile.TemporaryDirectory() as folder:
        own_shop.seed([(code, "A product for tools", 500, 1000)], Path(folder))
    return code


def buy(shop: Shop, product: str, key: str, token: str = "tok_approve") -> tuple[str, str, dict[str, str]]:
    """Order one product as a new guest; return the guest, the order, and the headers of the guest."""
    with shop.client() as client:
        guest = client.post("/v1/guests").json()
        headers = {"Authorization": f"Bearer {guest['token']}", "Prefer": "wait=10"}
        body = wanted(items=[{"product": product, "quantity": 1}], payment={"token": token})
        placed = client.post("/v1/orders", json=body, headers={**headers, "Idempotency-Key": key})
    assert placed.is_success, placed.text
    return guest["user_id"], placed.json()["order_id"], headers


def wait_for(shop: Shop, headers: dict[str, str], order: str, status: str) -> None:
    """Return when an order has a status."""
    with shop.client() as client:
        shop.until(lambda: client.get(f"/v1/orders/{order}", headers=headers).json().get("status") == status, 60)


def run_story(shop: Shop, *arguments: str) -> dict[str, Any]:
    """Return the story as JSON."""
    report: dict[str, Any] = json.loads(shop.holdfast("story", *arguments, "--json").stdout)
    return report


@pytest.mark.timeout(600)
def test_the_story_of_an_order_has_every_step_from_any_of_its_ids(own_shop: Shop, product: str) -> None:
    user, order, guest = buy(own_shop, product, "story-1")
    wait_for(own_shop, guest, order, "delivered")
    other_user, other_order, _ = buy(own_shop, product, "story-1")
    report = run_story(own_shop, order)
    assert report["complete"] is True
    types = [step["type"] for step in report["steps"]]
    for expected in (
        "orders.place",
        "inventory.commit",
        "orders.placed",
        "payments.charge",
        "payments.captured",
        "inventory.sell",
        "deliveries.book",
        "deliveries.delivered",
        "orders.delivered",
    ):
        assert expected in types, types
    times = [datetime.fromisoformat(step["time"]) for step in report["steps"]]
    assert times == sorted(times)
    assert not any(other_order in json.dumps(step) for step in report["steps"])
    places = {step["place"] for step in report["steps"]}
    request = next(step["request_id"] for step in report["steps"] if step["type"] == "orders.place")
    trace = next(step["trace"] for step in report["steps"] if step["type"] == "orders.place")
    for other in (request, trace):
        assert {step["place"] for step in run_story(own_shop, other)["steps"]} >= places
    assert other_order in json.dumps(run_story(own_shop, request)), "one idempotency key of two shoppers"
    assert f"--user {min(user, other_user)}" in own_shop.holdfast("story", request).stdout
    of_one = json.dumps(run_story(own_shop, request, "--user", user))
    assert (order in of_one, other_order in of_one) == (True, False)
    assert own_shop.holdfast("story", request, "--user", "nobody", check=False).returncode == 1
    assert set(types) <= {step["type"] for step in run_story(own_shop, user)["steps"]}

    def mails() -> list[str]:
        return [step["summary"] for step in run_story(own_shop, user)["steps"] if step["type"] == "mail"]

    own_shop.until(mails, 30)
    assert all(order in mail for mail in mails())
    printed = own_shop.holdfast("story", order)
    assert "ann@example.org" not in printed.stdout
    assert len([line for line in printed.stdout.splitlines() if "@" in line]) >= len(report["steps"]) - 3


def test_an_unknown_id_is_one_sentence_that_says_what_was_read(own_shop: Shop) -> None:
    done = own_shop.holdfast("story", "no-such-order", check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    for part in ("'no-such-order'", "topics, whose oldest record is of 20", "the logs and the local mailbox"):
        assert part in done.stderr


def test_status_has_the_address_and_the_time_of_each_process(own_shop: Shop) -> None:
    content = own_shop.status()
    assert httpx.get(f"{content['provider']}/readyz").status_code == 200
    assert httpx.get(content["mails"]).status_code == 200
    assert content["smtp"].startswith("smtp://127.0.0.1:")
    for name, entry in content["services"].items():
        assert datetime.fromisoformat(entry["since"]) <= datetime.now().astimezone(), name
        assert entry["address"], name
        if sys.platform == "linux":
            assert 0 < entry["pss_bytes"] <= entry["rss_bytes"], name
    printed = own_shop.holdfast("status").stdout
    for address in (content["provider"], content["mails"], content["services"]["cart-1"]["address"]):
        assert address in printed
    before = content["services"]["cart-1"]["since"]
    own_shop.kill("cart-1")
    own_shop.until(lambda: own_shop.status()["services"]["cart-1"]["restarts"] == 1, 60)
    own_shop.wait_ready()
    assert own_shop.status()["services"]["cart-1"]["since"] > before


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--workers", "cart=3"], {}, "--workers cart=3 (running: 2)"),
        (["--only", "edge,cart"], {}, "--only cart,edge (running: "),
        (["--infra-only"], {}, "--infra-only (running: "),
        (["--no-limits"], {}, "--no-limits (running: with limits)"),
        ([], {"HOLDFAST_LIMIT_CHANGES": "7"}, "the setting HOLDFAST_LIMIT_CHANGES"),
    ],
)
@pytest.mark.parametrize("detach", [True, False])
def test_options_that_a_running_shop_does_not_have_are_named_and_not_applied(
    own_shop: Shop, arguments: list[str], environment: dict[str, str], named: str, *, detach: bool
) -> None:
    before = own_shop.status()["services"].keys()
    done = up(own_shop, *["--detach"] * detach, *arguments, **environment)
    assert done.returncode == 10
    assert "a shop is already running here" in done.stderr
    assert f"not applied: {named}" in done.stderr.replace("\n", " ")
    assert "run `holdfast down`" in done.stderr
    assert own_shop.status()["services"].keys() == before


@pytest.mark.parametrize("arguments", [[], ["--workers", "cart=2"]])
def test_an_up_that_asks_for_nothing_else_is_done(own_shop: Shop, arguments: list[str]) -> None:
    exported = own_shop.holdfast("env").stdout.replace("export ", "").splitlines()
    environment = dict(line.split("=", 1) for line in exported if "'" not in line)
    assert up(own_shop, "--detach", *arguments, **environment).returncode == 0


def up(shop: Shop, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `holdfast up` on a shop that runs."""
    return subprocess.run(
        [sys.executable, "-m", "infrastructure.local", "up", *arguments],
        env={**shop.environment, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def example(name: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an example in a directory, with an environment that names no shop but the one given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return subprocess.run(
        [sys.executable, CHECKOUT / "examples" / name, *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["first_add.py", "first_order.py"])
def test_an_example_finds_the_shop_that_it_belongs_to_or_refuses(
    own_shop: Shop, product: str, tmp_path: Path, name: str
) -> None:
    below = own_shop.root.parent / "a" / "folder"
    below.mkdir(parents=True, exist_ok=True)
    for done in (
        example(name, below, product),
        example(name, tmp_path, product, HOLDFAST_ROOT=str(own_shop.root)),
        example(name, tmp_path, product, HOLDFAST_HTTP_URL=own_shop.http_url),
    ):
        assert done.returncode == 0, done.stderr
        assert '"held"' in done.stdout
    refused = example(name, tmp_path, product)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"holdfast: no shop runs here: {tmp_path} has no .holdfast")
    assert "Traceback" not in refused.stderr


def test_a_load_program_that_is_run_directly_refuses_without_a_shop(tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    done = subprocess.run(
        [sys.executable, "-m", "load", "guests", "1"],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "no shop runs here" in done.stderr


def listed(shop: Shop, beginning: str) -> list[str]:
    """Return the products for sale whose code begins so."""
    with shop.client() as client:
        found: list[str] = []
        after = ""
        while after is not None:
            page = client.get("/v1/products", params={"limit": 100, "after": after} if after else {"limit": 100}).json()
            found += [item["code"] for item in page["items"]]
            after = page.get("after")
        return [code for code in found if code.startswith(beginning)]


@pytest.mark.timeout(600)
def test_a_proof_leaves_nothing_on_the_shelf(own_shop: Shop) -> None:
    proof = json.loads(
        own_shop.holdfast("prove", "oversell", "--buyers", "10", "--stock", "3", "--json", timeout=280).stdout
    )
    assert proof["ok"] is True
    own_shop.until(lambda: listed(own_shop, "PROOF-") == [])
    with own_shop.client() as client:
        assert client.get(f"/v1/products/{proof['product']}").status_code == 404


@pytest.mark.timeout(600)
def test_a_load_leaves_nothing_on_the_shelf_and_its_next_run_sells_it_again(own_shop: Shop) -> None:
    for _ in range(2):
        run = own_shop.holdfast(
            "load", "--rate", "10", "--seconds", "1", "--products", "3", "--json", check=False, timeout=280
        )
        told = json.loads(run.stdout)
        assert (told["ok"], told["outcomes"].get("refused")) == (True, None)
        own_shop.until(lambda: listed(own_shop, "LOAD-") == [])


@pytest.mark.timeout(600)
def test_the_audit_has_its_verdict_first_and_each_figure_with_owner_and_unit(own_shop: Shop, product: str) -> None:
    _, order, guest = buy(own_shop, product, "for-the-audit")
    wait_for(own_shop, guest, order, "delivered")
    report = json.loads(own_shop.holdfast("audit", "--json", timeout=280).stdout)
    assert report.keys() >= {"ok", "violations", "digest", "figures", "services"}
    assert report["services"]["between services"]["figures"]["orders_compared"] >= 1
    verdict, *lines = own_shop.holdfast("audit", timeout=280).stdout.splitlines()
    assert verdict.startswith("no violations in cart, inventory, ")
    heads = [line for line in lines if line and not line.startswith(" ")]
    assert heads[:-1] == [*report["services"]]
    labels: dict[str, list[str]] = {}
    for line in lines:
        if line in report["services"]:
            labels[line] = []
        elif line.startswith("  "):
            match = re.fullmatch(r"  (\S.*?) {2,}(-?\d+) +(\S.*?) *", line)
            assert match, line
            labels[[*labels][-1]].append(match[1])
    for name, part in report["services"].items():
        assert len(labels[name]) == len(part["figures"]), name


@pytest.mark.timeout(600)
def test_forged_records_that_every_service_believes_are_violations_that_name_the_order(
    own_shop: Shop, product: str
) -> None:
    unpaid_user, unpaid, guest = buy(own_shop, product, "unpaid", "tok_timeout")
    wait_for(own_shop, guest, unpaid, "committed")
    price = inventory.Money(amount=500, currency="GBP")
    ids = {"order_id": unpaid, "user_id": unpaid_user}
    captured = payments.Captured(**ids, payment_id=derive_id(unpaid, "payment"), amount=price)
    address = orders.Address.model_validate(wanted()["address"])
    line = inventory.Line(product=product, quantity=1, price=price)
    ghost = deliveries.Book(
        order_id="a-ghost", user_id="nobody", shipment_id="a-ghosts-parcel", address=address, lines=(line,)
    )
    free_user, free, _ = buy(own_shop, product, "sold-for-nothing", "tok_timeout")
    sell = inventory.Sell(order_id=free, user_id=free_user)
    asyncio.run(_forge(own_shop, captured, ghost, sell))
    wait_for(own_shop, guest, unpaid, "delivered")

    def run_audit(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "infrastructure.local", "audit", *options],
            env={**own_shop.environment, "HOLDFAST_AUDIT_GRACE_SECONDS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )

    def violations() -> list[str]:
        done = run_audit("--json")
        report = json.loads(done.stdout)
        assert done.returncode == (0 if report["ok"] else 1)
        return list(report["violations"])

    forged = {
        unpaid: "orders (delivered) has capture",
        "a-ghost": "delivery has parcel a-ghosts-parcel",
        free: "inventory has its stock as sold; orders has it as committed",
    }
    for _ in range(5):  # a fact counts after the grace period of a second
        texts = violations()
        missing = [
            part
            for order, part in forged.items()
            if not any(text.startswith(f"order {order}: ") and part in text for text in texts)
        ]
        if not missing:
            break
    assert missing == [], texts
    printed = run_audit().stdout
    assert printed.startswith("the audit found violations: ")
    assert f"violation (between services): order {unpaid}: " in printed.replace("\n", " ")


async def _forge(shop: Shop, captured: payments.Captured, book: deliveries.Book, sell: inventory.Sell) -> None:
    settings = Settings(kafka=shop.status()["kafka"])
    async with talk(settings, payments.EVENTS) as speaker:
        speaker.source = "/payments"
        await speaker.say(payments.EVENTS, captured)
        speaker.source = "/orders"
        await speaker.say(deliveries.REQUESTS, book)
        event = Envelope.of(sell, source="/orders", request_id=f"{sell.order_id}/sell", time=datetime.now(UTC))
        await speaker.producer.send_and_wait(settings.topic(inventory.REQUESTS), event.encode(), event.key)
