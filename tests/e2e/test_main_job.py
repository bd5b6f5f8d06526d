"""The main job from outside: a whole shop, real sockets, and processes that crash under load."""

import asyncio
import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psycopg
import pytest

from load.client import Shopper
from load.http_client import ShopClient as Edge
from load.protocol import Frame
from tests.testkit.shop import Shop, product_code


@pytest.fixture
def product(shop: Shop, tmp_path: Path) -> str:
    """A product of 12.50 with 10 units, for one test."""
    new = product_code()
    shop.seed([(new, "A teapot for a test", 1250, 10)], tmp_path)
    return new


async def test_an_add_over_a_socket_comes_back_held_with_real_products(shop: Shop, product: str) -> None:
    async with Edge(shop.http_url) as edge, Shopper(edge, await edge.create_guest()) as shopper:
        held = await shopper.request("add", id_="a1", product=product, quantity=2)
        assert (held["type"], held["quantity"], held["line_quantity"], held["version"]) == ("held", 2, 2, 1)
        assert (await shopper.request("check", product=product))["available"] == 8
        assert (await shopper.request("set", product=product, quantity=11))["reason"] == "out_of_stock"
        assert (await shopper.request("set", product=product, quantity=10))["line_quantity"] == 10
        again = await shopper.request("add", id_="a1", product=product, quantity=2)
        assert again == {**held, "replayed": True}  # answered as the first time
        assert (await shopper.request("add", id_="a1", product=product, quantity=3))["code"] == "id_reused"
        cart = await shopper.request("cart")
        assert cart["total"] == {"amount": 12500, "currency": "GBP"}
        assert cart["lines"] == [
            {
                "product": product,
                "name": "A teapot for a test",
                "quantity": 10,
                "price": {"amount": 1250, "currency": "GBP"},
            }
        ]
        assert (await shopper.request("remove", product=product))["type"] == "removed"
        assert (await shopper.request("check", product=product))["available"] == 10
        assert (await shopper.request("add", product="NO-SUCH-THING", quantity=1))["reason"] == "unknown_product"


async def test_two_shoppers_may_use_the_same_id(shop: Shop, product: str) -> None:
    async with (
        Edge(shop.http_url) as edge,
        Shopper(edge, await edge.create_guest()) as ann,
        Shopper(edge, await edge.create_guest()) as bob,
    ):
        answers = [await each.request("add", id_="1", product=product, quantity=4) for each in (ann, bob)]
        assert [answer["type"] for answer in answers] == ["held", "held"]


def test_the_same_over_rest(shop: Shop, product: str) -> None:
    with shop.client() as client:
        client.headers["Authorization"] = f"Bearer {client.post('/v1/guests').json()['token']}"
        body, key = {"product": product, "quantity": 3}, {"Idempotency-Key": "k1", "Prefer": "wait=10"}
        first = client.post("/v1/cart/items", json=body, headers=key)
        assert (first.status_code, first.json()["type"]) == (200, "held")
        assert first.headers["Preference-Applied"].startswith("wait")
        assert client.post("/v1/cart/items", json=body, headers=key).json()["id"] == first.json()["id"]
        other = client.post("/v1/cart/items", json={**body, "quantity": 4}, headers=key)
        assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")
        accepted = client.put(f"/v1/cart/items/{product}", json={"quantity": 1})
        assert accepted.status_code == 202
        where = accepted.headers["Location"]
        shop.until(lambda: client.get(where).json().get("type") == "held")
        cart = client.get("/v1/cart")
        assert [(line["product"], line["quantity"]) for line in cart.json()["lines"]] == [(product, 1)]
        assert cart.headers["ETag"]
        assert client.delete("/v1/cart", headers={"Prefer": "wait=10"}).json()["type"] == "removed"
        shop.until(lambda: client.get(f"/v1/products/{product}").json()["available"] == 10)


async def test_a_cart_that_comes_to_its_end_gives_its_units_back(shop: Shop, product: str) -> None:
    heard: list[Frame] = []
    async with Edge(shop.http_url) as edge, Shopper(edge, await edge.create_guest(), listener=heard.append) as shopper:
        await shopper.request("add", product=product, quantity=7)
        with psycopg.connect(shop.postgres_url) as database:
            database.execute(
                "UPDATE inventory.holder SET expires_at = now() - interval '1 second' WHERE user_id = %s",
                [shopper.guest.user_id],
            )
        await asyncio.to_thread(shop.until, lambda: any(frame["type"] == "expired" for frame in heard))
        for expired in (frame for frame in heard if frame["type"] == "expired"):  # each worker may report it
            assert expired["lines"] == [{"product": product, "quantity": 7}]
            assert expired["version"] == 2
        assert (await shopper.request("cart"))["lines"] == []
        assert (await shopper.request("check", product=product))["available"] == 10


async def settled(shopper: Shopper) -> Frame:
    """The cart, once nothing in it is pending: what a killed worker did not write down is retried after 5 s."""
    async with asyncio.timeout(20):
        while (cart := await shopper.request("cart", seconds=30))["pending"]:
            await asyncio.sleep(0.5)
    return cart


async def test_under_any_crash_each_request_has_one_outcome_and_nothing_is_sold_twice(
    shop: Shop, tmp_path: Path
) -> None:
    products = [product_code("KILL") for _ in range(4)]
    shop.seed([(each, "Scarce", 100, 30) for each in products], tmp_path)
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    kinds: Counter[str] = Counter()
    stop = asyncio.Event()

    async def live(edge: Edge, number: int) -> None:
        chance = random.Random(number)
        guest = await edge.create_guest()

        def note(frame: Frame) -> None:
            if frame["type"] in {"held", "refused", "removed"}:
                kinds[frame["type"]] += 1
                told = {name: value for name, value in frame.items() if name != "replayed"}
                seen[guest.user_id, frame["id"]].add(json.dumps(told, sort_keys=True))

        async with Shopper(edge, guest, listener=note) as shopper:
            while not stop.is_set():
                choices: list[tuple[str, dict[str, Any]]] = [
                    ("add", {"quantity": 1}),
                    ("set", {"quantity": chance.randint(0, 5)}),
                    ("remove", {}),
                ]
                verb, fields = chance.choice(choices)
                answer = await shopper.request(verb, product=chance.choice(products), seconds=60, **fields)
                assert answer["type"] in {"held", "refused", "removed"}, answer
                await asyncio.sleep(chance.uniform(0.05, 0.6))
            cart = await settled(shopper)
            assert {line["product"]: line["quantity"] for line in cart["lines"]} == shopper.state.lines
            assert cart["pending"] == []

    async with Edge(shop.http_url) as edge:
        shoppers = [asyncio.create_task(live(edge, number)) for number in range(25)]
        for victim in ("inventory-1", "cart-1", "edge", "inventory-2", "cart-2", "redis"):
            await asyncio.sleep(1.5)
            await asyncio.to_thread(shop.kill, victim)
        await asyncio.to_thread(shop.wait_ready)
        await asyncio.sleep(1)
        stop.set()
        await asyncio.gather(*shoppers)
    assert {key: told for key, told in seen.items() if len(told) > 1} == {}
    assert min(kinds[kind] for kind in ("held", "refused", "removed")) > 0
    audit = json.loads(shop.holdfast("audit", "--json", check=False).stdout)
    assert audit["violations"] == []
    restarts = {name: each["restarts"] for name, each in shop.status()["services"].items()}
    assert all(restarts[name] >= 1 for name in ("inventory-1", "cart-1", "edge", "inventory-2", "cart-2", "redis"))
