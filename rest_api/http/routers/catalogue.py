"""Routes of the catalogue, served from the edge's read model. Public: they need no token."""

import re
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from contracts.inventory import Identifier, Money
from rest_api.http import pagination
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AppStateDep, OptionalUser
from rest_api.kafka.gateway import RETRY_AFTER
from rest_api.protocol.problems import Problem
from rest_api.read_models.store import UNAVAILABLE_ERRORS, ProductFilters, ProductRow

router = APIRouter(prefix="/v1/products", tags=["catalogue"], dependencies=SECURITY_DEPENDENCIES)

MAX_WORDS: Final = 10
_WORD: Final = re.compile(r"[^\W_]+")

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
    """A page of products; `after` is the cursor of the next page, null on the last."""

    items: list[ProductBody]
    after: str | None


Text = Annotated[str | None, Query(max_length=200, pattern=_NO_CONTROLS)]
Count = Annotated[int | None, Query(ge=-(2**31), lt=2**31)]


@router.get("", response_model=ProductList)
async def list_products(  # noqa: PLR0913, PLR0917 - the filters of the contract
    edge: AppStateDep,
    _: OptionalUser,
    request: Request,
    q: Text = None,
    category: Text = None,
    sort: Sort = "code",
    available_min: Count = None,
    available_max: Count = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    after: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """List products. Each word of `q` must begin a word of the product's code or name."""
    words = None if q is None or not q.strip() else tuple(_WORD.findall(q.lower()))[:MAX_WORDS]
    filters = ProductFilters(words, category, available_min, available_max, sort)
    cursor = None if after is None else _decode_cursor(after, sort)
    if words == ():  # only punctuation: no product matches
        return pagination.page_response([], None, request)
    try:
        found = await edge.store.products(filters, limit=limit + 1, after=cursor)
    except UNAVAILABLE_ERRORS:
        raise Problem("unavailable", "the catalogue cannot be read right now", retry_after=RETRY_AFTER) from None
    listed = found[:limit]
    next_cursor = _cursor(listed[-1], sort) if len(found) > limit else None
    return pagination.page_response([product_body(product) for product in listed], next_cursor, request)


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


def _cursor(last: ProductRow, sort: Sort) -> str:
    """Return the cursor after `last`: the sort order, the value sorted by, and the code, which breaks ties."""
    return pagination.encode(sort, getattr(last, _SORT_COLUMNS[sort.removeprefix("-")]), last.code)


def _decode_cursor(cursor: str, sort: Sort) -> tuple[str | int, str]:
    kind = str if _SORT_COLUMNS[sort.removeprefix("-")] in {"code", "name"} else int
    match pagination.decode(cursor):
        case [str(order), value, str(code)] if order == sort and isinstance(value, kind):
            return value, code
    raise Problem("bad-cursor")
