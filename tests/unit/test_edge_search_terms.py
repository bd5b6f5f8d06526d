# ruff: noqa: RUF001 - names in many scripts have characters that resemble Latin ones
"""The words of search: one normalization for names and queries, plurals, corrections, and texts without words."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_api.read_models.search_terms import (
    MAX_WORD_LENGTH,
    MAX_WORDS,
    WINDOW,
    SearchQuery,
    correction_keys,
    difference,
    index_lexemes,
    is_correctable,
    is_one_edit,
    lookup_keys,
    normalize,
    split,
    stems,
)
from tests.testkit.product_names import NAMES, spellings

LETTERS = st.text("abc\u0301é", max_size=6)


@pytest.mark.parametrize("name", NAMES)
def test_all_spellings_of_a_name_have_the_same_words(name: str) -> None:
    assert {tuple(split(spelling)) for spelling in spellings(name)} == {tuple(split(name))}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी किताब", [("हिन्दी",), ("किताब",)]),
        ("१२३", [("123",)]),
        ("مُحَمَّد", [("محمد",)]),
        ("קָפֶה", [("קפה",)]),
        ("ΣΊΣΥΦΟΣ", [("σισυφοσ",)]),
        ("İSTANBUL ıstanbul", [("istanbul",), ("istanbul",)]),
        ("T-LIGHT d'été", [("t", "light"), ("d", "été")]),
        ("iPhone充電器", [("iphone", "充電器")]),
        ("ｶﾞﾗｽ", [("ガラス",)]),
        ("\u0301\u0301 \u093f", []),
        ("% _ \\ ' \"", []),
    ],
)
def test_words(text: str, words: list[tuple[str, ...]]) -> None:
    expected = [tuple(unicodedata.normalize("NFC", word) for word in chunk) for chunk in words]
    assert split(text) == expected


@given(st.text(max_size=40))
def test_normalization_is_stable(text: str) -> None:
    once = normalize(text)
    assert normalize(unicodedata.normalize("NFD", text)) == once
    assert normalize(unicodedata.normalize("NFC", text)) == once
    assert split(once) == split(text)


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("parasols", "parasol"),
        ("boxes", "box"),
        ("candles", "candle"),
        ("cherries", "cherry"),
        ("cookies", "cookie"),
        ("knives", "knife"),
        ("scarves", "scarf"),
        ("gloves", "glove"),
        ("glasses", "glass"),
        ("children", "child"),
        ("mice", "mouse"),
        ("minis", "mini"),
        ("tvs", "tv"),
    ],
)
def test_a_plural_has_its_singular_among_its_stems(plural: str, singular: str) -> None:
    assert singular in stems(plural)


@pytest.mark.parametrize("word", ["glass", "is", "s", "123s", "хвост", "lantern"])
def test_a_word_that_is_not_a_plural_has_no_stem(word: str) -> None:
    assert stems(word) == ()


@given(LETTERS, LETTERS)
def test_one_edit(one: str, other: str) -> None:
    edits = {one}
    for index in range(len(one) + 1):
        head, tail = one[:index], one[index:]
        edits |= {head + tail[1:], *(head + new + tail for new in set(other))}
        edits |= {head + new + tail[1:] for new in set(other) if tail}
        edits.add(head + tail[1::-1] + tail[2:])
    assert is_one_edit(one, other) == (other in edits)


@given(st.text("abcdé", min_size=1, max_size=8), st.text("abcdé", min_size=1, max_size=8))
def test_words_one_edit_apart_have_a_key_in_common(word: str, other: str) -> None:
    if difference(word, other) is not None:
        assert set(lookup_keys(word)) & set(correction_keys(other))


@pytest.mark.parametrize(
    ("typed", "word", "rank"),
    [
        ("latern", "lantern", 1),
        ("lanturn", "lantern", 1),
        ("lantren", "lantern", 1),
        ("lanterms", "lanterns", 1),
        ("lantrens", "lantern", 1),
        ("cafe", "café", 0),
        ("brulee", "brûlée", 0),
        ("ёлка", "елка", 0),
        ("heart", "beart", 2),
        ("lantern", "lamps", None),
    ],
)
def test_corrections(typed: str, word: str, rank: int | None) -> None:
    assert difference(typed, word) == rank


@pytest.mark.parametrize("word", ["cup", "10125", "b612", "充電器充電器", "x" * 33])
def test_short_words_codes_and_unspaced_texts_are_not_corrected(word: str) -> None:
    assert not is_correctable(word)


@pytest.mark.parametrize(
    "text",
    ["", " ", "x" * 1000, "漢" * 1000, "a-" * 500, "\u0301" * 1000, "a b " * 300, "% \\ ' & | ! ( ) <->", "﷽" * 200],
)
def test_queries_and_entries_of_the_index_are_bounded(text: str) -> None:
    query = SearchQuery.parse(text)
    assert len(query.words) <= MAX_WORDS
    assert len(query.tsquery.encode()) < 50_000
    lexemes = index_lexemes(text)
    assert max(map(len, lexemes), default=0) <= max(MAX_WORD_LENGTH, WINDOW)
    assert all(lexemes)
    assert len(lexemes) <= 2 * len(normalize(text)) + 2
