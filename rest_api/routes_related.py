"""What is bought together with a product, from the edge's own read model: no token needed to read it."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel

from inventory_service.messages import Printable
from rest_api import cursors
from rest_api.edge import SECURED, Anybody, Here
from rest_api.gateway import RETRY_AFTER
from rest_api.problems import Problem
from rest_api.routes_catalogue import ProductBody, body
from rest_api.store import AWAY

router = APIRouter(prefix="/v1/products", tags=["catalogue"], dependencies=SECURED)


class RelatedBody(ProductBody):
    """A product, and how it goes with the one asked about.

    `support` is the share of all orders with both, `confidence` the share of those with the one asked about that have
    this one too, `lift` how many times more often that is than by chance.
    """

    support: float
    confidence: float
    lift: float


class RelatedList(BaseModel):
    """At most ten products, most often bought together first; `after` is null, for there is no second page."""

    items: list[RelatedBody]
    after: None


@router.get("/{code}/related", response_model=RelatedList)
async def list_related(edge: Here, _: Anybody, request: Request, code: Annotated[Printable, Path()]) -> Response:
    """What those who ordered this product ordered with it; nothing as long as nobody has."""
    try:
        if await edge.store.product(code) is None:
            raise Problem("unknown-product")
        found = await edge.insights.related(code)
    except AWAY:
        raise Problem("unavailable", "the catalogue is away", retry_after=RETRY_AFTER) from None
    items = [{**body(each.product), **each.measures.model_dump(exclude={"product"})} for each in found]
    return cursors.page(items, None, request)
