"""Alternatives to a search that found nothing: a corrected query, or those of its words that are found."""

from dataclasses import dataclass
from typing import Final

from rest_api.read_models import search_terms
from rest_api.read_models.search_terms import SearchQuery
from rest_api.read_models.store import Store

MAX_CORRECTIONS: Final = 3
"""The number of words that are corrected in one query; one with more misspelled words is not corrected."""
MAX_CANDIDATES: Final = 50


@dataclass(frozen=True, slots=True)
class Alternative:
    """Other searches. `corrected` is a whole query; `suggestions` are single words that are found."""

    corrected: str | None = None
    suggestions: tuple[str, ...] = ()


async def find_alternative(store: Store, query: SearchQuery) -> Alternative:
    """Return the alternative to a query that matched no product. Each statement is a lookup in an index."""
    counts = await store.word_counts(query.words)
    unknown = [word for word in query.words if not counts[word]]
    known = tuple(word for word in query.words if counts[word])
    if not 0 < len(unknown) <= MAX_CORRECTIONS:
        return Alternative(suggestions=known)
    replacements = {}
    for word in unknown:
        correction = await _correction(store, word)
        if correction is None:
            return Alternative(suggestions=known)
        replacements[word] = correction
    return Alternative(query.corrected(replacements), known)


async def _correction(store: Store, word: str) -> str | None:
    """Return the word of a product for sale that is most similar to a misspelled one, `None` if there is none."""
    if not search_terms.is_correctable(word):
        return None
    ranks = {each: search_terms.difference(word, each) for each in await store.similar_words(word)}
    close = sorted((rank, each) for each, rank in ranks.items() if rank is not None)[:MAX_CANDIDATES]
    counts = await store.word_counts(each for _, each in close)
    found = [(rank, -counts[each], each) for rank, each in close if counts[each]]
    return min(found)[-1] if found else None
