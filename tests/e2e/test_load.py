"""The load tools on a whole shop: what they count must be true; how long it took is not asked here."""

import json

import pytest

from tests.testkit.shop import Shop


def test_a_load_is_answered_to_the_last_request(shop: Shop) -> None:
    told = json.loads(shop.holdfast("load", "--rate", "20", "--seconds", "3", "--products", "5", "--json").stdout)
    assert told["ok"] is True
    assert (told["sent"], told["lost"], told["cut"]) == (60, 0, 0)
    assert told["outcomes"] == {"held": 48, "removed": 12}  # twelve shoppers: three in, one out, one in
    assert told["latency_ms"]["p50"] <= told["latency_ms"]["p99"] <= told["latency_ms"]["max"]


def test_a_load_leaves_no_holds_behind(shop: Shop) -> None:
    with shop.client() as client:
        shop.holdfast("load", "--rate", "20", "--seconds", "1", "--products", "3", "--poisson")
        for number in range(1, 4):
            path = f"/v1/products/LOAD-{number:06}"
            shop.until(lambda path=path: client.get(path).status_code == 404)  # withdrawn
    held = "SELECT coalesce(sum(held), 0) FROM inventory.inventory WHERE starts_with(product_code, 'LOAD-')"
    assert shop.holdfast("psql", "-Atc", held).stdout == "0\n"


def test_too_few_shoppers_for_the_limits_is_a_sentence_with_the_number(shop: Shop) -> None:
    done = shop.holdfast("load", "--rate", "500", "--seconds", "10", "--shoppers", "3", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--shoppers 46" in done.stderr


@pytest.mark.timeout(240)
def test_the_real_day_adds_up_for_each_product(shop: Shop) -> None:
    told = json.loads(shop.holdfast("shoppers", "--pace", "2000", "--json", timeout=200).stdout)
    assert told["ok"] is True
    assert told["violations"] == []
    assert (told["shoppers"], len(told["products"])) == (63, 615)
    assert told["asked"] == told["accepted"] + told["refused"] > 0
    for product in told["products"].values():
        assert product["asked"] == product["accepted"] + product["refused"]
        assert product["accepted"] == product["in_ledger"]
    assert told["refused"] > 0  # the scarce tenth sells out
