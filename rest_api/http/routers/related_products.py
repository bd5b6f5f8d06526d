"""The route of related products, served from the edge's read model. Public: needs no token."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel

from contracts.inventory import Identifier
from rest_api.http import pagination
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AppStateDep, OptionalUser
from rest_api.http.routers.catalogue import ProductBody, product_body
from rest_api.kafka.gateway import RETRY_AFTER
from rest_api.protocol.problems import Problem
from rest_api.read_models.store import UNAVAILABLE_ERRORS

router = APIRouter(prefix="/v1/products", tags=["catalogue"], dependencies=SECURITY_DEPENDENCIES)


class RelatedBody(ProductBody):
    """A related product, with the measures of its association with the requested product.

    `support` is the share of all orders that contain both. `confidence` is the share of the requested product's orders
    that also contain this one. `lift` says how many times more often that is than by chance.
    """

    support: float
    confidence: float
    lift: float


class RelatedList(BaseModel):
    """At most ten products, most often bought together first. `after` is always null: there is only one page."""

    items: list[RelatedBody]
    after: None


@router.get("/{code:segment}/related", response_model=RelatedList)
async def list_related(
    edge: AppStateDep, _: OptionalUser, request: Request, code: Annotated[Identifier, Path()]
) -> Response:
    """List the products most often ordered together with this one; empty if there are none yet."""
    try:
        if await edge.store.product(code) is None:
            raise Problem("unknown-product")
        found = await edge.insights.related_products(code)
    except UNAVAILABLE_ERRORS:
        raise Problem("unavailable", "the catalogue cannot be read right now", retry_after=RETRY_AFTER) from None
    items = [{**product_body(related.product), **related.measures.model_dump(exclude={"product"})} for related in found]
    return pagination.page_response(items, None, request)
