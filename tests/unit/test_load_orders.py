"""A file of real orders as shoppers: the same rules as the catalogue was made by, and nothing lost on the way."""

from collections import Counter

import pytest

from infrastructure.storage.csv_file import CsvFileError
from inventory_service.build_catalogue import catalogue_csv
from load.cli import DEFAULT_ORDER_FILE
from load.order_file import OrderFile, read_order_file
from load.order_replay import ProductTotals

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"


def day_of(*lines: str) -> OrderFile:
    return read_order_file([HEADER, *lines])


def line(invoice: str = "1", code: str = "10001", name: str = "A", units: object = 1, price: str = "1.00") -> str:
    return f"{invoice},{code},{name},{units},12/1/2010 8:26,{price},,UK"


def test_an_invoice_is_a_shopper_whose_lines_are_spread_over_its_minute() -> None:
    day = day_of(line(units=2), line(code="10002"), line("2", units=3).replace("8:26", "9:26"))
    first, second = day.shoppers
    assert [(want.at, want.product, want.quantity) for want in first.adds] == [(0, "10001", 2), (30, "10002", 1)]
    assert [want.at for want in second.adds] == [3600]
    assert day.seconds == 3600


def test_lines_of_one_product_in_one_invoice_are_one_demand() -> None:
    (visit,) = day_of(line(units=2), line(units=3)).shoppers
    assert [want.quantity for want in visit.adds] == [5]


def test_a_demand_that_no_frame_can_hold_is_asked_in_several() -> None:
    (visit,) = day_of(line(units=2500)).shoppers
    assert [want.quantity for want in visit.adds] == [999, 999, 502]


@pytest.mark.parametrize(
    "skipped",
    [line("C1"), line(code="POST"), line(units=-1), line(units=0), line(name=" "), line(price="0"), line(code="D")],
)
def test_fees_returns_cancellations_and_nameless_lines_are_skipped(skipped: str) -> None:
    day = day_of(skipped, line())
    assert (len(day.shoppers), day.skipped_lines) == (1, 1)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "header lacks"),
        (["a,b"], "header lacks InvoiceNo"),
        ([HEADER], "no order"),
        ([HEADER, line("C1")], "no order"),
        ([HEADER, line(units="many")], "line 2"),
        ([HEADER, line(price="free")], "line 2"),
        ([HEADER, line().replace("8:26", "late")], "line 2"),
        ([HEADER, "1,10001"], "line 2"),
        ([HEADER, line(price="NaN")], "line 2: UnitPrice must be an amount such as 2.55, not 'NaN'"),
        ([HEADER, line(), line(price="1e400")], "line 3: UnitPrice"),
        ([HEADER, line(price="\u0663.\u0665\u0660")], "line 2: UnitPrice"),
        ([HEADER, line(price="1_000.50")], "line 2: UnitPrice"),
        ([HEADER, line(units="\uff11\uff12")], "line 2: Quantity"),
        ([HEADER, line(units="9" * 5000)], "line 2: Quantity .{0,100}…'$"),
        ([HEADER, line(name="n" * 200_000)], "line 2: a field is longer"),
        ([HEADER, line(name='"open')], "line 2: a quote opens here and is never closed"),
        ([HEADER.replace("Country", "Quantity"), line()], "line 1: the header names Quantity twice"),
        ([HEADER, line().replace("12/1/2010", "1/13/2010x")], "line 2: InvoiceDate"),
    ],
)
def test_a_malformed_order_file_is_refused_with_its_line(lines: list[str], why: str) -> None:
    with pytest.raises(CsvFileError, match=why):
        read_order_file(lines)


@pytest.mark.parametrize(
    ("lines", "products"),
    [
        (["\n", line() + "\n", ",,,,,,,\n"], ["10001"]),
        ([line().replace(",", ";")], ["10001"]),
        ([line().replace(",", "\t")], ["10001"]),
        ([line().replace("12/1/2010 8:26", "2010-12-01 08:26:00")], ["10001"]),
        ([line(name='"JAM, LARGE"')], ["10001"]),
    ],
)
def test_an_order_file_may_be_written_in_several_ways(lines: list[str], products: list[str]) -> None:
    header = HEADER
    for delimiter in ";\t":
        if delimiter in lines[0]:
            header = HEADER.replace(",", delimiter)
    day = read_order_file([header, *lines])
    assert [add.product for shopper in day.shoppers for add in shopper.adds] == products
    second = header.replace("InvoiceNo", "Invoice").replace("UnitPrice", "Price")
    assert read_order_file([second, *lines]) == day, "the second edition of the data set has other column names"


def test_the_shipped_day_asks_for_what_the_catalogue_was_made_of() -> None:
    """Two rules in two places, which must stay one: the products of the day are the products of the catalogue."""
    with DEFAULT_ORDER_FILE.open(encoding="utf-8-sig", newline="") as file:
        day = read_order_file(file)
    asked = Counter(want.product for visit in day.shoppers for want in visit.adds)
    catalogue = [row.split(",")[0] for row in catalogue_csv(DEFAULT_ORDER_FILE).splitlines()[1:]]
    assert sorted(asked) == catalogue
    assert (len(day.shoppers), day.skipped_lines) == (63, 13)


def test_a_product_adds_up_only_if_all_was_answered_and_the_ledger_agrees() -> None:
    assert ProductTotals(5, 3, Counter(out_of_stock=2), 0, 3).is_balanced
    assert not ProductTotals(5, 3, Counter(out_of_stock=1), 1, 3).is_balanced
    assert not ProductTotals(5, 3, Counter(out_of_stock=2), 0, 4).is_balanced
    assert not ProductTotals(5, 5, Counter(out_of_stock=1), 0, 5).is_balanced
