"""The catalogue over HTTP, from the edge's own read model: no token needed to read it."""

import re
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from inventory_service.messages import Money, Printable
from rest_api import cursors
from rest_api.edge import SECURED, Anybody, Here
from rest_api.gateway import RETRY_AFTER
from rest_api.problems import Problem
from rest_api.store import AWAY, Filters, Shown

router = APIRouter(prefix="/v1/products", tags=["catalogue"], dependencies=SECURED)

MAX_WORDS: Final = 10
_WORD: Final = re.compile(r"[^\W_]+")

Sort = Literal["code", "name", "-name", "price", "-price", "available", "-available"]
_SORTED_BY: Final = {"code": "code", "name": "name", "price": "amount", "available": "available"}
_NO_CONTROLS: Final = r"^[^\x00-\x1f\x7f]*$"


class ProductBody(BaseModel):
    """A product; `available` may lag 250 ms."""

    code: Printable
    name: str
    category: str | None
    price: Money
    images: list[str]
    available: int
    version: int


class ProductList(BaseModel):
    """A page of products; `after` is the cursor of the next one, null on the last."""

    items: list[ProductBody]
    after: str | None


Text = Annotated[str | None, Query(max_length=200, pattern=_NO_CONTROLS)]
Count = Annotated[int | None, Query(ge=-(2**31), lt=2**31)]


@router.get("", response_model=ProductList)
async def list_products(  # noqa: PLR0913, PLR0917 - the filters of the contract
    edge: Here,
    _: Anybody,
    request: Request,
    q: Text = None,
    category: Text = None,
    sort: Sort = "code",
    available_min: Count = None,
    available_max: Count = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    after: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """Products whose code or name has every word of `q` (or a word that begins with it), page by page."""
    words = None if q is None or not q.strip() else tuple(_WORD.findall(q.lower()))[:MAX_WORDS]
    filters = Filters(words, category, available_min, available_max, sort)
    cursor = None if after is None else _opened(after, sort)
    if words == ():  # nothing but punctuation: no product has such a word
        return cursors.page([], None, request)
    try:
        found = await edge.store.products(filters, limit=limit + 1, after=cursor)
    except AWAY:
        raise Problem("unavailable", "the catalogue is away", retry_after=RETRY_AFTER) from None
    shown = found[:limit]
    more = _cursor(shown[-1], sort) if len(found) > limit else None
    return cursors.page([body(product) for product in shown], more, request)


@router.get("/{code}", response_model=ProductBody)
async def show_product(edge: Here, _: Anybody, request: Request, code: Annotated[Printable, Path()]) -> Response:
    """One product, with an `ETag` that changes with it and with its stock."""
    try:
        found = await edge.store.product(code)
    except AWAY:
        raise Problem("unavailable", "the catalogue is away", retry_after=RETRY_AFTER) from None
    if found is None:
        raise Problem("unknown-product")
    etag = f'"{found.version}.{found.stock_version}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(orjson.dumps(body(found)), headers={"ETag": etag}, media_type="application/json")


def body(product: Shown) -> dict[str, Any]:
    """A product as JSON has it."""
    return {
        "code": product.code,
        "name": product.name,
        "category": product.category,
        "price": {"amount": product.amount, "currency": product.currency},
        "images": product.images,
        "available": product.available,
        "version": product.version,
    }


def _cursor(last: Shown, sort: Sort) -> str:
    """Where a page ended: the order, the value it is ordered by, and the code, which settles ties."""
    return cursors.sealed(sort, getattr(last, _SORTED_BY[sort.removeprefix("-")]), last.code)


def _opened(cursor: str, sort: Sort) -> tuple[str | int, str]:
    kind = str if _SORTED_BY[sort.removeprefix("-")] in {"code", "name"} else int
    match cursors.opened(cursor):
        case [str(order), value, str(code)] if order == sort and isinstance(value, kind):
            return value, code
    raise Problem("bad-cursor")
