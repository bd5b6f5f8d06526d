"""The words of a text, for the search index and for queries: one normalization for both, so a name finds itself. Pure.

Case, compatibility forms, composed and decomposed spellings, dotted and dotless i, and the digits of all scripts are
unified. The marks of Arabic, Hebrew and Greek are dropped, because readers leave them out. All other marks stay: a
vowel sign of an Indic script matters as much as the consonant before it.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

INDEX_VERSION: Final = 1
"""Version of the rules in this module. Increase it with every change, so that stored products are indexed again."""

MAX_WORDS: Final = 10
"""The number of words of a query that are searched for."""
MAX_WORD_LENGTH: Final = 64
"""The length to which words are cut, in the index and in queries."""
WINDOW: Final = 8
"""The length of the indexed parts of texts in scripts that do not separate words."""
CORRECTABLE_LENGTHS: Final = range(4, 33)
"""The lengths of words that can be corrected; in shorter ones, one edit makes another word."""

_SPACE_LIKE: Final = dict.fromkeys("\u200b\u200c", "-")
"""Invisible separators: zero width space and zero width non-joiner."""
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u0640")
"""Characters without a meaning for search that are not of category Cf: joiners, fillers, and the Arabic tatweel."""
_VARIATION_SELECTORS: Final = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_OPTIONAL_MARKS: Final = re.compile("[\u0370-\u03ff\u0590-\u074f\u0750-\u077f\u0870-\u08ff]")
"""Characters of Greek, Hebrew, Arabic and Syriac, after which marks are dropped."""
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U000323af]"
)
"""Characters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
_SAME_LETTERS: Final = str.maketrans(
    {
        "\N{LATIN SMALL LETTER DOTLESS I}": "i",
        "\N{ARABIC LETTER ALEF WASLA}": "\N{ARABIC LETTER ALEF}",
        "\N{ARABIC LETTER ALEF MAKSURA}": "\N{ARABIC LETTER YEH}",
        "\N{ARABIC LETTER FARSI YEH}": "\N{ARABIC LETTER YEH}",
        "\N{ARABIC LETTER KEHEH}": "\N{ARABIC LETTER KAF}",
        "\N{ARABIC LETTER TEH MARBUTA}": "\N{ARABIC LETTER HEH}",
        "\N{ARABIC LETTER HEH GOAL}": "\N{ARABIC LETTER HEH}",
        "\N{ARABIC LETTER HEH DOACHASHMEE}": "\N{ARABIC LETTER HEH}",
    }
)
"""Characters that keyboards and languages use for one another: the Turkish dotless i, and Arabic, Persian and Urdu."""
_DIACRITICS: Final = re.compile("[\u0300-\u036f]")
"""Marks of Latin and Cyrillic characters. They count in a search, but no correction is needed to add them."""
_DOT_ABOVE: Final = "\u0307"
_IRREGULAR_PLURALS: Final = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "men": "man",
    "mice": "mouse",
    "people": "person",
    "teeth": "tooth",
    "women": "woman",
}
_PLURAL_ENDINGS: Final = (
    ("ies", ("y", "ie")),
    ("ves", ("f", "fe", "ve")),
    ("es", ("", "e")),
    ("s", ("",)),
)

Chunk = tuple[str, ...]
"""The words of a piece of text without spaces, such as `t` and `light` of `T-LIGHT`."""


def normalize(text: str) -> str:
    """Return a text in the form in which it is searched. Spaces and punctuation stay."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", "".join(_significant(folded)).translate(_SAME_LETTERS))


def _significant(decomposed: str) -> Iterator[str]:
    """Yield the characters that matter, with the decimal digits of all scripts as ASCII."""
    base = ""
    for character in decomposed:
        category = unicodedata.category(character)
        if character in _SPACE_LIKE:
            if not is_unspaced(base):
                yield _SPACE_LIKE[character]
        elif category == "Cf" or character in _INVISIBLE or _VARIATION_SELECTORS.match(character):
            continue
        elif category == "Nd":
            base = str(unicodedata.decimal(character))
            yield base
        elif not category.startswith("M"):
            base = character
            yield character
        elif not (_OPTIONAL_MARKS.match(base) or (character == _DOT_ABOVE and base == "i")):
            yield character


def split(text: str) -> list[Chunk]:
    """Return the words of a text, grouped by the spaces in it. A word is a run of characters, digits and their marks.

    Where the script changes to or from one without spaces, a new word begins.
    """
    chunks = (tuple(_words(chunk)) for chunk in normalize(text).split())
    return [chunk for chunk in chunks if chunk]


def _words(chunk: str) -> Iterator[str]:
    word = ""
    for character in chunk:
        kind = unicodedata.category(character)[0]
        if word and (kind == "M" or (kind in "LN" and is_unspaced(word) == is_unspaced(character))):
            word += character
        else:
            if word:
                yield word
            word = character if kind in "LN" else ""
    if word:
        yield word


def is_unspaced(word: str) -> bool:
    """Return True if the word is of a script that does not separate words."""
    return _UNSPACED.match(word) is not None


def stems(word: str) -> tuple[str, ...]:
    """Return the possible singular forms of a word that may be an English plural.

    A stem only matches a whole word or another stem, so a wrong one such as `tenni` does no harm.
    """
    if word in _IRREGULAR_PLURALS:
        return (_IRREGULAR_PLURALS[word],)
    if not (word.isascii() and word.isalpha()) or word.endswith("ss"):
        return ()
    for ending, singulars in _PLURAL_ENDINGS:
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return tuple(word.removesuffix(ending) + singular for singular in singulars)
    return ()


# ---- the index ------------------------------------------------------------------------------------------------------


def index_lexemes(*texts: str) -> list[str]:
    """Return the lexemes under which a product with these texts, its code and its name, is found."""
    return sorted({lexeme for text in texts for lexeme in _lexemes(text)})


def _lexemes(text: str) -> Iterator[str]:
    chunks = split(text)
    if not chunks:
        yield from _symbols(text)
    yield from (symbol for symbol in normalize(text) if unicodedata.category(symbol) == "So")
    for chunk in chunks:
        for word in (*_joined(chunk), *chunk):
            if is_unspaced(word):
                yield from _windows(word)
            else:
                yield word[:MAX_WORD_LENGTH]
                yield from (stem[:MAX_WORD_LENGTH] for stem in stems(word))


def _symbols(text: str) -> list[str]:
    """Return the visible characters of a text without words; it can be found by nothing else."""
    return [each for each in normalize(text) if unicodedata.category(each)[0] in "PS"]


def _joined(chunk: Chunk) -> list[str]:
    """Return the words of a chunk written as one word, such as `tlight` for `T-LIGHT`, if there are several."""
    return ["".join(chunk)[:MAX_WORD_LENGTH]] if len(chunk) > 1 and not any(map(is_unspaced, chunk)) else []


def _windows(word: str) -> Iterator[str]:
    """Yield the part of a word from each of its characters on, so that each part of it is the beginning of a lexeme."""
    for start in range(len(word)):
        if not unicodedata.category(word[start]).startswith("M"):
            yield word[start : start + WINDOW]


def vocabulary(lexemes: Iterable[str]) -> list[str]:
    """Return the lexemes that a misspelled word may be corrected to."""
    return [lexeme for lexeme in lexemes if is_correctable(lexeme)]


# ---- queries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A parsed search text. All of its chunks must be found in a product."""

    chunks: tuple[Chunk, ...]
    symbols: tuple[str, ...] = ()
    """The characters of a text without words."""

    @classmethod
    def parse(cls, text: str) -> "SearchQuery":
        """Return the query for a text; further words than `MAX_WORDS` are ignored."""
        chunks: list[Chunk] = []
        room = MAX_WORDS
        for chunk in split(text):
            if room:
                chunks.append(chunk[:room])
                room -= len(chunks[-1])
        return cls(tuple(chunks), () if chunks else tuple(_symbols(text)[:MAX_WORDS]))

    def __bool__(self) -> bool:
        """Return False if the text had nothing that can be searched for."""
        return bool(self.chunks or self.symbols)

    @property
    def words(self) -> list[str]:
        """The different words, in order."""
        return list(dict.fromkeys(word for chunk in self.chunks for word in chunk))

    @property
    def tsquery(self) -> str:
        """The query in the syntax of Postgres' `tsquery`."""
        return " & ".join([*map(_chunk_tsquery, self.chunks), *map(_quote, self.symbols)])

    def corrected(self, replacements: Mapping[str, str]) -> str:
        """Return the text of this query with some of its words replaced."""
        return " ".join("-".join(replacements.get(word, word) for word in chunk) for chunk in self.chunks)


def _chunk_tsquery(chunk: Chunk) -> str:
    all_words = " & ".join(map(word_tsquery, chunk))
    return "(" + " | ".join([*map(word_tsquery, _joined(chunk)), f"({all_words})"]) + ")"


def word_tsquery(word: str) -> str:
    """Return the query for one word: it begins a word of the product, or its singular is a word or a singular there."""
    if is_unspaced(word):
        parts = [word[start : start + WINDOW] for start in range(0, len(word), WINDOW)]
        return "(" + " & ".join(f"{_quote(part)}:*" for part in parts) + ")"
    singulars = [_quote(stem[:MAX_WORD_LENGTH]) for stem in stems(word)]
    return "(" + " | ".join([f"{_quote(word[:MAX_WORD_LENGTH])}:*", *singulars]) + ")"


def _quote(lexeme: str) -> str:
    """Return a lexeme as a literal of `tsquery`; no character in it is an operator."""
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"


# ---- corrections ----------------------------------------------------------------------------------------------------


def is_correctable(word: str) -> bool:
    """Return True if the word is long enough for a correction, and is neither a number nor a code."""
    return (
        len(word) in CORRECTABLE_LENGTHS
        and not is_unspaced(word)
        and not any(unicodedata.category(character)[0] == "N" for character in word)
    )


def correction_keys(word: str) -> list[str]:
    """Return the word without its diacritics, and that without each of its characters.

    Two words that are at most one edit apart, diacritics aside, have a key in common.
    """
    plain = _without_diacritics(word)
    return sorted({plain, *(plain[:index] + plain[index + 1 :] for index in range(len(plain)))})


def lookup_keys(word: str) -> list[str]:
    """Return the keys of a word and of its singular forms."""
    return sorted({key for form in (word, *stems(word)) for key in correction_keys(form)})


def difference(word: str, other: str) -> int | None:
    """Rate how much a word differs from a misspelled one or from a singular of it; `None` if by more than one edit.

    0 is a difference in diacritics only, 1 one edit, 2 one edit of the first character.
    """
    forms, plain = [_without_diacritics(form) for form in (word, *stems(word))], _without_diacritics(other)
    if plain in forms:
        return 0
    if not any(is_one_edit(form, plain) for form in forms):
        return None
    return 1 if plain[:1] == forms[0][:1] else 2


def is_one_edit(one: str, other: str) -> bool:
    """Return True if at most one character is inserted, removed, replaced, or exchanged with the next one."""
    if abs(len(one) - len(other)) > 1:
        return False
    pairs = enumerate(zip(one, other, strict=False))
    start = next((index for index, (left, right) in pairs if left != right), min(len(one), len(other)))
    rest, other_rest = one[start:], other[start:]
    if len(rest) != len(other_rest):
        longer, shorter = sorted((rest, other_rest), key=len, reverse=True)
        return longer[1:] == shorter
    return rest[1:] == other_rest[1:] or (rest[:2] == other_rest[1::-1] and rest[2:] == other_rest[2:])


def _without_diacritics(word: str) -> str:
    return unicodedata.normalize("NFC", _DIACRITICS.sub("", unicodedata.normalize("NFD", word)))
