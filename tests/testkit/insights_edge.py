"""An edge that gets its products and insights from a test: related products, and the shop's figures."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from contracts.insights import FIGURES, RELATED, Figures, Related, RelatedProduct, WindowUnit, window_key
from contracts.inventory import PRODUCTS, STOCK, Money, Product, Stock
from infrastructure.process.settings import Settings
from infrastructure.security.secrets import DEVELOPMENT_SECRET
from infrastructure.security.tokens import issue
from tests.testkit.edge import Running, running_edge
from tests.testkit.servers import Servers


@contextmanager
def insights_edge(servers: Servers) -> Iterator[Running]:
    """Run an edge without limits that knows the products A to G."""
    with running_edge(servers, f"t{secrets.token_hex(3)}.", HOLDFAST_LIMITS="off") as running:
        for code in "ABCDEFG":
            tell_product(running, code)
        yield running


def token(role: str, settings: Settings) -> dict[str, str]:
    secret = DEVELOPMENT_SECRET
    signed, _ = issue(secret, user_id="s1", roles=(role,), lifetime=timedelta(minutes=5), now=datetime.now(UTC))
    return {"Authorization": f"Bearer {signed}"}


def tell_product(edge: Running, code: str, *, version: int = 1, deleted: bool = False) -> None:
    price = Money(amount=100, currency="GBP")
    product = Product(code=code, name=f"name of {code}", price=price, version=version, deleted=deleted)
    edge.carts.publish(PRODUCTS, "/inventory", product.TYPE, code, product.model_dump(mode="json"))
    stock = Stock(product=code, available=9, received=9, held=0, sold=0, version=version)
    edge.carts.publish(STOCK, "/inventory", stock.TYPE, code, stock.model_dump(mode="json"))


def tell_related(edge: Running, product: str, others: str, version: int) -> None:
    items = tuple(RelatedProduct(product=other, support=1 / 3, confidence=0.5, lift=1.5) for other in others)
    told = Related(product=product, orders=3, items=items, version=version)
    edge.carts.publish(RELATED, "/insights", told.TYPE, product, told.model_dump(mode="json"))


def tell_figures(edge: Running, by: WindowUnit, start: datetime, version: int = 1, **numbers: Any) -> None:
    told = Figures(window=window_key(by, start), by=by, start=start, version=version, **numbers)
    edge.carts.publish(FIGURES, "/insights", told.TYPE, told.window, told.model_dump(mode="json"))


def related(client: httpx.Client, product: str) -> list[str]:
    answer = client.get(f"/v1/products/{product}/related")
    assert answer.status_code == 200, answer.text
    assert answer.json()["after"] is None
    return [item["code"] for item in answer.json()["items"]]
