"""Routes of the catalogue, served from the edge's read model. Public: they need no token."""

import unicodedata
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, NamedTuple

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel

from contracts.inventory import Identifier, Money
from rest_api.http import pagination
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AppState, AppStateDep, OptionalUser
from rest_api.kafka.gateway import RETRY_AFTER
from rest_api.protocol.problems import Problem
from rest_api.read_models.search import find_alternative
from rest_api.read_models.search_terms import SearchQuery
from rest_api.read_models.store import UNAVAILABLE_ERRORS, ProductFilters, ProductRow

router = APIRouter(prefix="/v1/products", tags=["catalogue"], dependencies=SECURITY_DEPENDENCIES)

MAX_SEARCH_LENGTH: Final = 200
Sort = Literal["code", "name", "-name", "price", "-price", "available", "-available"]
_SORT_COLUMNS: Final = {"code": "code", "name": "name", "price": "amount", "available": "available"}
_NO_CONTROLS: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"


class ProductBody(BaseModel):
    """A product. `available` may lag behind by 250 ms."""

    code: Identifier
    name: str
    category: str | None
    price: Money
    images: list[str]
    available: int
    version: int


class ProductList(BaseModel):
    """A page of products; `after` is the cursor of the next page, null on the last.

    `total` is the number of products on all pages, counted up to 10,000; it is present if requested. When no product
    matches `q`, `corrected` is the query whose products are listed instead, and `suggestions` are words of `q` that are
    found alone; each is present if there is one.
    """

    items: list[ProductBody]
    after: str | None
    total: int | None = None
    corrected: str | None = None
    suggestions: list[str] | None = None


class Cursor(NamedTuple):
    """A position in a list: the value sorted by, the code, and the corrected query that the list is of, if any."""

    value: str | int
    code: str
    corrected: str | None = None


def _check_length(text: str | None) -> str | None:
    """Return the composed form of a search text. A decomposed one may have several times as many characters."""
    composed = None if text is None else unicodedata.normalize("NFC", text)
    if composed is not None and len(composed) > MAX_SEARCH_LENGTH:
        raise ValueError(f"must have at most {MAX_SEARCH_LENGTH} characters")
    return composed


Text = Annotated[str | None, Query(max_length=200, pattern=_NO_CONTROLS)]
SearchText = Annotated[
    str | None, Query(max_length=5 * MAX_SEARCH_LENGTH, pattern=_NO_CONTROLS), AfterValidator(_check_length)
]
Count = Annotated[int | None, Query(ge=-(2**31), lt=2**31)]


@router.get("", response_model=ProductList)
async def list_products(  # noqa: PLR0913, PLR0917 - the filters of the contract
    edge: AppStateDep,
    _: OptionalUser,
    request: Request,
    q: SearchText = None,
    category: Text = None,
    sort: Sort = "code",
    available_min: Count = None,
    available_max: Count = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    after: Annotated[str | None, Query(max_length=4000)] = None,
    total: Annotated[bool, Query(description="count the products of all pages")] = False,  # noqa: FBT002 - a query parameter
) -> Response:
    """List products. Each word of `q` must be or begin a word of the product's code or name.

    Case, accents written in another way, and English plurals do not matter. When nothing is found, a query with one
    character corrected is tried.
    """
    cursor = None if after is None else _decode_cursor(after, sort)
    corrected = cursor.corrected if cursor else None
    text = q if corrected is None else corrected
    search = SearchQuery.parse(text) if text is not None and text.strip() else None
    filters = ProductFilters(search, category, available_min, available_max, sort)
    more: dict[str, Any] = {}
    try:
        found = await _find(edge, filters, limit + 1, cursor)
        if search and not found and cursor is None:
            alternative = await find_alternative(edge.store, search)
            if alternative.corrected is not None:
                again = replace(filters, search=SearchQuery.parse(alternative.corrected))
                if found := await _find(edge, again, limit + 1, None):
                    corrected, filters = alternative.corrected, again
            if not found and alternative.suggestions:
                more["suggestions"] = list(alternative.suggestions)
        if total:
            more["total"] = 0 if not _can_match(filters) else await edge.store.count_products(filters)
    except UNAVAILABLE_ERRORS:
        raise Problem("unavailable", "the catalogue cannot be read right now", retry_after=RETRY_AFTER) from None
    if corrected is not None:
        more["corrected"] = corrected
    listed = found[:limit]
    next_cursor = _cursor(listed[-1], sort, corrected) if len(found) > limit else None
    return pagination.page_response([product_body(product) for product in listed], next_cursor, request, **more)


async def _find(edge: AppState, filters: ProductFilters, limit: int, cursor: Cursor | None) -> list[ProductRow]:
    if not _can_match(filters):
        return []
    return await edge.store.products(filters, limit=limit, after=cursor and (cursor.value, cursor.code))


def _can_match(filters: ProductFilters) -> bool:
    """Return False for a search text of which nothing is left, such as one of marks only: no product matches it."""
    return filters.search is None or bool(filters.search)


@router.get("/{code:segment}", response_model=ProductBody)
async def show_product(edge: AppStateDep, _: OptionalUser, code: Annotated[Identifier, Path()]) -> Response:
    """Return a product, with an `ETag` that changes with the product and its stock."""
    try:
        found = await edge.store.product(code)
    except UNAVAILABLE_ERRORS:
        raise Problem("unavailable", "the catalogue cannot be read right now", retry_after=RETRY_AFTER) from None
    if found is None:
        raise Problem("unknown-product")
    etag = f'"{found.version}.{found.stock_version}"'
    return Response(orjson.dumps(product_body(found)), headers={"ETag": etag}, media_type="application/json")


def product_body(product: ProductRow) -> dict[str, Any]:
    """Return the JSON body of a product."""
    return {
        "code": product.code,
        "name": product.name,
        "category": product.category,
        "price": {"amount": product.amount, "currency": product.currency},
        "images": product.images,
        "available": product.available,
        "version": product.version,
    }


def _cursor(last: ProductRow, sort: Sort, corrected: str | None) -> str:
    """Return the cursor after `last`: the sort order, the value sorted by, the code, and a corrected query, if any."""
    also = [] if corrected is None else [corrected]
    return pagination.encode(sort, getattr(last, _SORT_COLUMNS[sort.removeprefix("-")]), last.code, *also)


def _decode_cursor(cursor: str, sort: Sort) -> Cursor:
    kind = str if _SORT_COLUMNS[sort.removeprefix("-")] in {"code", "name"} else int
    match pagination.decode(cursor):
        case [str(order), value, str(code), *corrected] if order == sort and isinstance(value, kind):
            match corrected:
                case []:
                    return Cursor(value, code)
                case [str(text)] if len(text) <= MAX_SEARCH_LENGTH:
                    return Cursor(value, code, text)
    raise Problem("bad-cursor")
