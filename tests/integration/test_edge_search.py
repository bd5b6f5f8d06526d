# ruff: noqa: RUF001 - names in many scripts have characters that resemble Latin ones
"""Search on a real Postgres: names find themselves in any spelling, corrections, old rows, and the plans of queries."""

import csv
import secrets
import shutil
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as run_with
from hypothesis import strategies as st

import inventory_service
from contracts.inventory import PRODUCTS, Money, Product
from infrastructure.process.settings import Settings
from infrastructure.storage.postgres import migrate
from rest_api.__main__ import MIGRATIONS
from rest_api.http import pagination
from rest_api.read_models.search_terms import SearchQuery, index_lexemes
from rest_api.read_models.store import SERVICE, ProductFilters, Store
from tests.testkit.edge import Running
from tests.testkit.product_names import NAMES, spellings
from tests.testkit.rest_client import problem, until

CATALOGUE: Final = Path(inventory_service.__file__).with_name("inventory.csv")
POSITIONS: Final = [("catalogue.products.v1", 0, 1)]


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    await migrate(settings, SERVICE, MIGRATIONS)
    opened = Store(settings)
    await opened.open()
    yield opened
    await opened.close()


def product(code: str, name: str, version: int = 1, *, deleted: bool = False) -> Product:
    return Product(code=code, name=name, price=Money(amount=100, currency="GBP"), version=version, deleted=deleted)


async def put(store: Store, *products: Product) -> None:
    for start in range(0, len(products), 500):
        await store.project(products[start : start + 500], [], POSITIONS)


async def codes(store: Store, text: str) -> list[str]:
    filters = ProductFilters(SearchQuery.parse(text))
    return [row.code for row in await store.products(filters, limit=1000, after=None)]


# ---- names ----------------------------------------------------------------------------------------------------------


async def test_each_spelling_of_a_name_finds_its_product(store: Store) -> None:
    await put(store, *(product(f"#{number}", name) for number, name in enumerate(NAMES)))
    missed = [
        (name, spelling)
        for number, name in enumerate(NAMES)
        for spelling in spellings(name)
        if f"#{number}" not in await codes(store, spelling)
    ]
    assert missed == []


async def test_each_product_of_the_catalogue_is_found_by_its_name_and_its_words(store: Store) -> None:
    with CATALOGUE.open(encoding="utf-8") as file:
        names = {row["product_code"]: row["name"] for row in csv.DictReader(file)}
    await put(store, *(product(code, name) for code, name in names.items()))
    for code, name in names.items():
        plurals = [f"{word}s" for word in name.split() if word.isalpha() and len(word) > 1 and word[-1] != "S"]
        for text in (name, name.lower(), f"{name} {code}", *filter(str.isalnum, name.split()), *plurals):
            assert code in await codes(store, text), (text, name)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("EDWARDIAN PARASOL BLACK", ["parasols", "Parasol", "black parasols", "paras", "edwardians"]),
        ("GLASS BOXES", ["box", "boxes", "glasses"]),
        ("CHERRIES", ["cherry", "cherries"]),
        ("KNIFE", ["knives"]),
        ("WHITE HANGING HEART T-LIGHT HOLDER", ["tlight", "tlights", "t-light", "t light", "t-lights", "T\u2011Light"]),
        ("TLIGHT", ["t-light", "t-lights", "tlights"]),
        ("CHILDREN'S CUTLERY", ["childrens", "children's", "children\N{RIGHT SINGLE QUOTATION MARK}s", "child"]),
        ("مُحَمَّد", ["محمد", "مُحمد"]),
        ("قَهْوَة", ["قهوه"]),
        ("קָפֶה", ["קפה"]),
        ("Σίσυφος", ["ΣΙΣΥΦΟΣ", "σισυφοσ", "σίσυφος"]),
        ("İSTANBUL", ["istanbul", "ISTANBUL", "ıstanbul"]),
        ("हिन्दी किताब", ["हिन्दी", "किताब", "हिन्"]),
        ("१२३", ["123", "١٢٣", "１２３"]),
        ("東京タワーの模型", ["タワー", "模型", "東京タワーの模型", "ﾀﾜｰ"]),
        ("ガラス", ["ｶﾞﾗｽ", "カ\u3099ラス"]),
        ("한글", [unicodedata.normalize("NFD", "한글"), "한"]),
        ("กาแฟเย็น", ["กาแฟ", "เย็น"]),
        ("ﬁne", ["fine"]),
        ("Straße", ["STRASSE", "strasse", "straß"]),
    ],
)
async def test_other_ways_to_search_for_a_name(store: Store, name: str, texts: list[str]) -> None:
    await put(store, product("#1", name), product("#2", "something else"))
    assert {text: await codes(store, text) for text in texts} == {text: ["#1"] for text in texts}


@pytest.mark.parametrize(("name", "text"), [("हिन्दी", "हन्द"), ("कि", "की"), ("d'été", "ete"), ("BUTTER", "bus")])
async def test_words_that_differ_are_not_found(store: Store, name: str, text: str) -> None:
    await put(store, product("#1", name))
    assert await codes(store, text) == []


WORD: Final = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")), min_size=1, max_size=12)


@run_with(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.lists(WORD, min_size=1, max_size=6).map(" ".join))
def test_any_name_with_a_letter_finds_itself(settings: Settings, name: str) -> None:
    query = SearchQuery.parse(name)
    if not query.chunks:
        return
    with psycopg.connect(settings.postgres_url) as database:
        for spelling in (name, name.casefold(), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))):
            columns = (index_lexemes("#", name), SearchQuery.parse(spelling).tsquery)
            (found,) = database.execute("SELECT array_to_tsvector(%s::text[]) @@ %s::tsquery", columns).fetchone() or ()
            assert found, (name, spelling)


# ---- rows of an earlier version -------------------------------------------------------------------------------------


async def test_products_stored_before_are_indexed_and_names_changed_by_an_old_edge_too(
    settings: Settings, tmp_path: Path
) -> None:
    before = tmp_path / "migrations"
    before.mkdir()
    for file in MIGRATIONS.glob("000[1-4]_*.sql"):
        shutil.copy(file, before)
    await migrate(settings, SERVICE, before)
    schema = settings.schema_name(SERVICE)
    with psycopg.connect(settings.postgres_url, autocommit=True, options=f'-c search_path="{schema}"') as database:
        database.execute(
            "INSERT INTO product (code, version, name, amount, currency)"
            " SELECT 'P' || n, 1, 'TEAPOT ' || n, 1, 'GBP' FROM generate_series(1, 1201) n"
        )
        await migrate(settings, SERVICE, MIGRATIONS)
        store = Store(settings)
        await store.open()
        try:
            assert await codes(store, "teapots 7") == []
            assert await store.index_products() == 1201
            assert await codes(store, "teapots 1201") == ["P1201"]
            database.execute("UPDATE product SET name = 'LANTERN', version = 2 WHERE code = 'P7'")
            database.execute("UPDATE product SET words_version = 0, words = '' WHERE code = 'P8'")
            assert await store.index_products() == 2
            assert await codes(store, "lanterns") == ["P7"]
            assert await codes(store, "teapot 8") == sorted(f"P{n}" for n in (8, *range(80, 90), *range(800, 900)))
            assert await store.index_products() == 0
        finally:
            await store.close()


# ---- what the route answers -----------------------------------------------------------------------------------------


def search(client: httpx.Client, text: str, **more: Any) -> dict[str, Any]:
    response = client.get("/v1/products", params={"q": text, **more})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return {**body, "items": [item["code"] for item in body["items"]]}


def tell(edge: Running, *products: Product) -> None:
    for each in products:
        edge.carts.publish(PRODUCTS, "/inventory", each.TYPE, each.code, each.model_dump(mode="json"))


def test_a_misspelled_word_is_corrected_on_all_pages(edge: Running) -> None:
    mark = "".join(chr(ord("a") + int(digit, 16)) for digit in secrets.token_hex(4))
    tell(edge, *(product(f"{mark}-{n}", f"Lantern {mark}") for n in range(5)), product(f"{mark}-x", f"Crème {mark}"))
    with edge.client() as client:
        until(lambda: len(search(client, mark)["items"]) == 6)
        assert search(client, f"{mark} lantern", total=True) == {
            "items": [f"{mark}-{n}" for n in range(5)],
            "after": None,
            "total": 5,
        }
        for typed in ("latern", "lanturn", "lantren", "lanterms"):
            found = search(client, f"{typed} {mark}", total=True)
            assert (found["corrected"], found["total"]) == (f"lantern {mark}", 5)
        assert search(client, f"creme {mark}")["items"] == [f"{mark}-x"]
        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = search(client, f"latern {mark}", limit=2, sort="-name", **after)
            assert page["corrected"] == f"lantern {mark}"
            seen += page["items"]
            if page["after"] is None:
                break
            after = {"after": page["after"]}
        assert sorted(seen) == [f"{mark}-{n}" for n in range(5)]
        assert search(client, f"lantern crème {mark}")["suggestions"] == ["lantern", "crème", mark]
        assert search(client, f"{mark}{mark} lantern")["suggestions"] == ["lantern"]
        tell(edge, *(product(f"{mark}-{n}", f"Lantern {mark}", 2, deleted=True) for n in range(5)))
        until(lambda: search(client, mark)["items"] == [f"{mark}-x"])
        assert search(client, f"{mark[:-1]}")["items"] == [f"{mark}-x"]
        assert "lantern" not in str(search(client, f"latern {mark}"))


def test_names_are_found_over_http_in_any_form(edge: Running) -> None:
    mark = secrets.token_hex(4)
    long = "é" * 200
    names = [*NAMES, long]
    tell(edge, *(product(f"{mark}-{number}", name) for number, name in enumerate(names)))
    with edge.client() as client:
        until(lambda: len(search(client, mark, limit=100)["items"]) == 100)
        for number, name in enumerate(names):
            for form in ("NFC", "NFD"):
                text = unicodedata.normalize(form, name.upper() if name is not long else name)
                assert f"{mark}-{number}" in search(client, text, limit=100)["items"], text


@pytest.mark.parametrize(
    "text",
    ["\u0301" * 200, "%", "\\", "'", "'\\'", '"', ":*", "a:*", "' | 'a", "((((", "!a", "a <-> b", "漢" * 200,
     "a-" * 100, "\u200b", "\U000e0001", "\ufdfa" * 200, "x " * 100, "'" * 200, "\u202e", "क़" * 100],
)  # fmt: skip
def test_any_text_can_be_searched_for(edge: Running, text: str) -> None:
    with edge.client() as client:
        assert set(search(client, text, total=True)) <= {"items", "after", "total", "corrected", "suggestions"}


@pytest.mark.parametrize("text", ["\0", "a\0", "x" * 201, "é" * 201, "e\u0301" * 201, "x" * 1001])
def test_texts_that_cannot_be_searched_for(edge: Running, text: str) -> None:
    with edge.client() as client:
        problem(client.get(f"/v1/products?q={quote(text)}"), 422, "invalid")


@pytest.mark.parametrize("extra", [["x" * 201], [1], [None], ["x", "y"], ["\0"]])
def test_a_cursor_with_another_correction_than_a_text_is_refused(edge: Running, extra: list[Any]) -> None:
    with edge.client() as client:
        after = pagination.encode("code", "A", "A", *extra)
        problem(client.get("/v1/products", params={"q": "a", "after": after}), 400, "bad-cursor")


# ---- cost -----------------------------------------------------------------------------------------------------------


async def test_searches_of_many_products_use_the_indexes(store: Store, settings: Settings) -> None:
    syllables = [f"{one}{two}" for one in "bdfgklmnprst" for two in "aeiou"]

    def word(number: int) -> str:
        return "".join(syllables[number // 60**power % 60] for power in range(3))

    names = [f"{word(n)} {word(n % 97)} {word(n % 89)}" for n in range(10_000)]
    await put(store, *(product(f"P{n}", name) for n, name in enumerate(names)), product("RARE", "RARE LANTERN"))
    schema = settings.schema_name(SERVICE)
    with psycopg.connect(settings.postgres_url, autocommit=True, options=f'-c search_path="{schema}"') as database:
        database.execute("VACUUM ANALYZE product, vocabulary")

        def plan(query: str, *values: Any) -> str:
            return "\n".join(row[0] for row in database.execute(f"EXPLAIN {query}".encode(), values).fetchall())

        search_plan = plan(
            "SELECT * FROM product WHERE words @@ %s::tsquery AND version > 0 AND NOT deleted ORDER BY code LIMIT 51",
            SearchQuery.parse("rare lanterns").tsquery,
        )
        assert "product_words" in search_plan, search_plan
        similar = plan("SELECT word FROM vocabulary WHERE keys && %s::text[] LIMIT 200", ["latern", "latrn"])
        assert "vocabulary_keys" in similar, similar
    assert await codes(store, "lantern") == ["RARE"]
