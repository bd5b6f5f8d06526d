"""The proof itself, on a whole shop; and its control, which must find the classic bug every time."""

import json

from tests.testkit.shop import Shop


def test_the_shop_cannot_sell_what_it_does_not_have(shop: Shop) -> None:
    proof = json.loads(shop.holdfast("prove", "oversell", "--json", timeout=110).stdout)
    assert proof["ok"] is True
    first, second = proof["rushes"]
    assert (first["held"], first["refused"], first["unanswered"]) == (25, 175, 0)
    assert (second["held"], second["refused"], second["unanswered"]) == (12, 163, 0)
    assert first["repeats"] >= 100  # the patient half at least is answered a second time


def test_without_the_stock_check_it_oversells_five_times_of_five(shop: Shop) -> None:
    for _ in range(5):
        control = json.loads(shop.holdfast("prove", "oversell", "--control", "--json").stdout)
        assert control["oversold"] is True
        assert control["rushes"][0]["held"] > control["rushes"][0]["units"]
