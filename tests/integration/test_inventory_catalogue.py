"""The catalogue file: checked line by line, loaded wholly or not at all, and never in the way of holds."""

import asyncio
import csv
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infrastructure.process.settings import Settings as Shared
from infrastructure.storage.csv_file import CsvFileError
from inventory_service import catalogue
from inventory_service.audit import audit
from inventory_service.build_catalogue import MAX_STOCK, MIN_STOCK, catalogue_csv
from inventory_service.catalogue import DEFAULT_FILE, CatalogueError, CatalogueItem, SeedResult, read_catalogue, seed
from tests.testkit.inventory_store import Schema, add, command, schema


@pytest.fixture
async def shop(settings: Shared) -> AsyncIterator[Schema]:
    async with schema(settings) as here:
        yield here


async def test_the_shipped_catalogue_loads_and_the_same_again_changes_nothing(shop: Schema) -> None:
    items = read_catalogue(DEFAULT_FILE)
    assert await seed(shop.connection, items) == SeedResult(added=len(items), changed=0, unchanged=0)
    before = await _everything(shop)
    assert await seed(shop.connection, items) == SeedResult(added=0, changed=0, unchanged=len(items))
    assert await _everything(shop) == before
    assert (await audit(shop.connection))["violations"] == []


async def _everything(shop: Schema) -> list[tuple[object, ...]]:
    queries = (
        "SELECT * FROM inventory ORDER BY 1",
        "SELECT * FROM product ORDER BY 1",
        "SELECT * FROM stock_ledger ORDER BY 1, 2",
    )
    return [row for query in queries for row in await shop.rows(query)]


async def test_an_existing_product_gets_its_name_and_price_and_keeps_its_stock(shop: Schema) -> None:
    await shop.stock(TEAPOT=10, MUG=5)
    await shop.store().transact([command("r1", add("TEAPOT", 8))])
    done = await seed(
        shop.connection,
        [CatalogueItem("TEAPOT", "a teapot", 999, "GBP", 2), CatalogueItem("MUG", "name of MUG", 100, "GBP", 9)],
    )
    assert done == SeedResult(added=0, changed=1, unchanged=1)
    assert await shop.rows("SELECT received, held, price_minor FROM inventory WHERE product_code = 'TEAPOT'") == [
        (10, 8, 999)
    ]
    assert await shop.rows("SELECT code, name, version FROM product ORDER BY 1") == [
        ("MUG", "name of MUG", 1),
        ("TEAPOT", "a teapot", 2),
    ]
    assert await shop.rows("SELECT price_minor FROM hold") == [(100,)]


async def test_a_new_name_and_a_new_price_are_one_new_version(shop: Schema) -> None:
    await shop.stock(MUG=5)
    await seed(shop.connection, [CatalogueItem("MUG", "a mug", 101, "GBP", 5)])
    assert await shop.rows("SELECT name, version FROM product") == [("a mug", 2)]


async def test_two_may_load_at_once(settings: Shared) -> None:
    items = read_catalogue(DEFAULT_FILE)
    async with schema(settings) as one, schema(settings) as two:
        done = await asyncio.gather(seed(one.connection, items), seed(two.connection, items[::-1]))
        assert sum(each.added for each in done) == len(items)
        assert (await audit(one.connection))["violations"] == []


HEADER = "product_code,name,price,currency,quantity\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: the header lacks product_code, name, price, currency, quantity"),
        ("product_code,name,price\n", "line 1: the header lacks currency, quantity"),
        (HEADER, "the file lists no products"),
        (HEADER + "A,a,1.00,GBP,5\nA,b,1.00,GBP,5\n", "line 3: product_code 'A' is already listed above"),
        (HEADER + "A,a,1.00,GBP\n", "line 2: 4 fields instead of 5"),
        (HEADER + "A,a,1.00,GBP,\n", "line 2: quantity must be a whole number from 0, without separators, not ''"),
        (HEADER + "A,a,1.00,GBP,-1\n", "line 2: quantity must be a whole number from 0, without separators, not '-1'"),
        (HEADER + "A,a,1.00,GBP,²\n", "line 2: quantity must be"),
        (HEADER + "A,a,1.00,GBP,99999999999\n", "line 2: quantity must be"),
        (HEADER + "A,a,1.005,GBP,1\n", "line 2: price must be an amount such as 2.55, with at most 2 decimals"),
        (HEADER + "A,a,NaN,GBP,1\n", "line 2: price must be"),
        (HEADER + "A,a,-1,GBP,1\n", "line 2: price must be"),
        (HEADER + "A,a,1e30,GBP,1\n", "line 2: price must be"),
        (HEADER + "A,a,1.00,pounds,1\n", "line 2: currency must be an ISO 4217 code such as GBP, not 'pounds'"),
        (HEADER + "Ä,a,1.00,GBP,1\n", "line 2: product_code must be 1 to 64 printable ASCII characters"),
        (HEADER + ".,a,1.00,GBP,1\n", "line 2: product_code must not be . or .."),
        (HEADER + "..,a,1.00,GBP,1\n", "line 2: product_code must not be . or .."),
        (HEADER + "A,,1.00,GBP,1\n", "line 2: name must be 1 to 200 printable characters"),
        (HEADER + 'A,"a\0b",1.00,GBP,1\n', "line 2"),
        (HEADER + "A,a,1.00,GBP,1,000\n", "line 2: 6 fields instead of 5: put a field that contains the delimiter in"),
        (HEADER + 'A,a,1.00,GBP,"1,000"\n', "line 2: quantity must be a whole number from 0, without separators"),
        ("product_code,name,currency,quantity,price\nA,a,GBP,5,2,55\n", "line 2: 6 fields instead of 5"),
        (HEADER.replace("name", "price"), "line 1: the header lacks name"),
        ("price," + HEADER + "9.99,A,a,1.00,GBP,5\n", "line 1: the header names price twice"),
        (HEADER + 'A,"a,1.00,GBP,1\nB,b,1.00,GBP,1\n', "line 2: a quote opens here and is never closed"),
        (HEADER + 'A,a,1.00,GBP,1\n\nB,"b,1.00,GBP,1\n', "line 4: a quote opens here"),
        (HEADER + 'A,"a\nb",1.00,GBP,1\n', "line 2: name must be 1 to 200 printable characters"),
        *(
            (HEADER + f'A,a,"{price}",GBP,1\n', "line 2: price must be an amount such as 2.55")
            for price in (
                *(
                    "1E3",
                    "1_000.50",
                    "\u0663.\u0665\u0660",
                    "\uff11.\uff10\uff10",
                    "+2.55",
                    "-0",
                    "-0.00",
                    "1e-999999999",
                    "0." + "0" * 31,
                ),
                *(".5", "5.", "2,55", "$2.55", "£2.55", "2.55 GBP", "Infinity", "", "0x10", "21474836.48"),
            )
        ),
        *(
            (HEADER + f"A,a,1.00,GBP,{quantity}\n", "line 2: quantity must be a whole number from 0")
            for quantity in ("9" * 5000, "1e3", "1_000", "\u0663", "\uff11\uff12", "+5", "-0", "5.0", "2147483648")
        ),
        (HEADER + f"A,{'n' * 200_000},1.00,GBP,1\n", "line 2: a field is longer than 131072 characters"),
        (HEADER + "A,a,1.00,ZZZ,1\n", "line 2: currency must be an ISO 4217 code such as GBP, not 'ZZZ'"),
        (HEADER + "A,a,1.50,JPY,1\n", "line 2: price must be an amount such as 3, with at most 0 decimals"),
        (HEADER + "A,a,1.2345,KWD,1\n", "line 2: price must be an amount such as 2.550, with at most 3 decimals"),
    ],
)
def test_a_faulty_file_is_refused_with_the_line_of_the_fault(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CatalogueError) as caught:
        read_catalogue(file)
    assert told in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_bytes((HEADER + "A,a,1.00,GBP,1\nB,café,1.00,GBP,1\n").encode("latin-1"))
    with pytest.raises(CatalogueError, match=r"c.csv: line 3: not UTF-8 \(byte 0xe9\): save the file as UTF-8"):
        read_catalogue(file)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_prices_are_in_minor_units_of_their_currency(delimiter: str, tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    rows = "J,a,1500,JPY,1\nK,b,1.25,KWD,1\nG,c,0.5,GBP,1\n,,,,\n\nU,d,21474836.47,USD,1\n"
    file.write_text((HEADER + rows).replace(",", delimiter))
    assert [(item.code, item.price) for item in read_catalogue(file)] == [
        ("J", 1500),
        ("K", 1250),
        ("G", 50),
        ("U", 2**31 - 1),
    ]


def test_a_field_with_the_delimiter_is_quoted(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text(HEADER + 'A, "JAM, LARGE",1.00,GBP,1\n')
    assert [item.name for item in read_catalogue(file)] == ["JAM, LARGE"]


def test_all_faults_are_reported_and_prices_are_exact(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text("﻿" + HEADER + "A,a,x,GBP,x\nB,,1,GBP,1\n", encoding="utf-8")
    with pytest.raises(CatalogueError) as caught:
        read_catalogue(file)
    assert len(str(caught.value).splitlines()) == 3
    file.write_text(HEADER + "A,a,2.55,GBP,1\nB,b,19.99,GBP,0\nC,c,3,GBP,1\n", encoding="utf-8")
    assert [item.price for item in read_catalogue(file)] == [255, 1999, 300]


# ---- where the shipped file comes from ------------------------------------------------------------------------------

ORDERS = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


def test_a_catalogue_is_derived_by_the_written_rules(tmp_path: Path) -> None:
    lines = [
        "1,10001,TEAPOT ,2,,2.50,,",
        "1,10001,TEAPOT,3,,2.60,,",
        "2,10001,pot,40,,2.70,,",
        "2,10002,,9,,1.00,,",
        "2,10003,FREE,9,,0,,",
        "C3,10004,RETURNED,-9,,1.00,,",
        "3,10005,LOST,-2,,1.00,,",
        "3,POST,POSTAGE,1,,18.00,,",
        *(f"4,2000{n},THING {n},1,,1.5,," for n in range(9)),
    ]
    file = tmp_path / "orders.csv"
    file.write_text(ORDERS + "\n".join(lines) + "\n")
    rows = list(csv.reader(catalogue_csv(file).splitlines()))
    assert rows[0] == list(catalogue.COLUMNS)
    assert rows[1] == ["10001", "TEAPOT", "2.70", "GBP", str(45 // 2)]
    assert rows[2] == ["20000", "THING 0", "1.50", "GBP", str(MIN_STOCK)]
    assert len(rows) == 11


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("1,10001,TEAPOT", "line 2: 3 fields instead of 8"),
        ("1,10001,TEAPOT,2,,NaN,,", "line 2: UnitPrice must be an amount"),
        ("1,10001,TEAPOT,two,,1,,", "line 2: Quantity must be a whole number"),
    ],
)
def test_orders_that_cannot_be_read_are_refused_with_their_line(row: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text(ORDERS + row + "\n")
    with pytest.raises(CsvFileError, match=told):
        catalogue_csv(file)


def test_both_editions_of_the_orders_are_read_also_in_latin_1(tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text(ORDERS + "1,10001,CAFÉ,2,,2.50,,\n")
    catalogue_of_utf8 = catalogue_csv(file)
    second = ORDERS.replace("InvoiceNo", "Invoice").replace("UnitPrice", "Price").replace(",", ";")
    file.write_bytes((second + "1;10001;CAFÉ;2;;2.50;;\n").encode("latin-1"))
    assert catalogue_csv(file) == catalogue_of_utf8
    assert "CAFÉ" in catalogue_of_utf8


def test_the_shipped_catalogue_has_plenty_of_some_and_little_of_others() -> None:
    quantities = [item.quantity for item in read_catalogue(DEFAULT_FILE)]
    assert (min(quantities), max(quantities)) == (MIN_STOCK, MAX_STOCK)
    assert len(quantities) == 615
