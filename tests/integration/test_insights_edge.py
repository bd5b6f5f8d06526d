"""The insights at the edge: related products for everybody, figures for support."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from contracts.envelope import rfc3339
from contracts.insights import WINDOW_LENGTHS, Takings
from tests.testkit.edge import Running
from tests.testkit.insights_edge import insights_edge, related, tell_figures, tell_product, tell_related, token
from tests.testkit.processes import until
from tests.testkit.servers import Servers

NOON = datetime(2026, 3, 21, 12, 0, tzinfo=UTC)
"""A time long ago: the page shows the last two days."""


@pytest.fixture(scope="module")
def edge(servers: Servers) -> Iterator[Running]:
    with insights_edge(servers) as running:
        yield running


@pytest.fixture
def client(edge: Running) -> Iterator[httpx.Client]:
    with edge.client() as found:
        yield found


def test_related_products_are_shown_as_products(client: httpx.Client, edge: Running) -> None:
    until(lambda: client.get("/v1/products/E").status_code == 200)
    assert related(client, "A") == [], "nobody has ordered it yet"
    tell_related(edge, "A", "DBC", version=2)
    until(lambda: related(client, "A") == ["D", "B", "C"])
    first = client.get("/v1/products/A/related").json()["items"][0]
    assert first == {
        **client.get("/v1/products/D").json(),
        "support": 1 / 3,
        "confidence": 0.5,
        "lift": 1.5,
    }
    tell_related(edge, "A", "B", version=1)
    tell_related(edge, "C", "AB", version=1)
    until(lambda: related(client, "C") == ["A", "B"])
    assert related(client, "A") == ["D", "B", "C"], "an older version changes nothing"
    tell_product(edge, "B", version=2, deleted=True)
    until(lambda: related(client, "A") == ["D", "C"])
    answer = client.get("/v1/products/NONE/related")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-product")


def test_figures_are_for_support(client: httpx.Client, edge: Running) -> None:
    assert client.get("/v1/analytics/orders").status_code == 401
    for role, status in (("shopper", 403), ("service", 403), ("support", 200), ("admin", 200)):
        assert client.get("/v1/analytics/orders", headers=token(role, edge.settings)).status_code == status


def test_figures_by_window(client: httpx.Client, edge: Running) -> None:
    headers = token("support", edge.settings)
    for number in range(5):
        tell_figures(edge, "hour", NOON + timedelta(hours=number), orders_placed=number)
    takings = (Takings(currency="GBP", orders=2, ordered=501, captured=400, refunded=100),)
    full = {
        "orders_placed": 36,
        "orders_committed": 3,
        "orders_confirmed": 3,
        "orders_cancelled": 1,
        "payments_captured": 4,
        "payments_declined": 1,
        "payments_refunded": 1,
        "holds_granted": 9,
        "holds_refused": 1,
        "carts_expired": 2,
        "shoppers": 4,
        "buyers": 1,
        "takings": takings,
    }
    tell_figures(edge, "hour", NOON + timedelta(hours=2), version=2, **full)
    tell_figures(edge, "day", NOON.replace(hour=0), orders_placed=7)
    span = {"from": rfc3339(NOON), "to": rfc3339(NOON + timedelta(hours=4))}

    def ask(figure: str, **more: Any) -> dict[str, Any]:
        answer = client.get(f"/v1/analytics/{figure}", params={**span, **more}, headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    until(lambda: [item["orders"]["placed"] for item in ask("orders")["items"]] == [0, 1, 36, 3])
    until(lambda: len(ask("orders", by="day", **{"from": rfc3339(NOON - timedelta(days=1))})["items"]) == 1)
    third = ask("all")["items"][2]
    assert third == {
        "start": rfc3339(NOON + timedelta(hours=2)),
        "end": rfc3339(NOON + timedelta(hours=3)),
        "orders": {
            "placed": 36,
            "committed": 3,
            "confirmed": 3,
            "cancelled": 1,
            "per_second": 0.01,
            "success": 0.75,
        },
        "revenue": [
            {
                "currency": "GBP",
                "orders": 2,
                "ordered": 501,
                "captured": 400,
                "refunded": 100,
                "payments": 0,
                "revenue": 300,
                "average_order": 250.5,
            }
        ],
        "payments": {"captured": 4, "declined": 1, "refunded": 1, "success": 0.8},
        "conversion": {"shoppers": 4, "buyers": 1, "rate": 0.25},
        "holds": {"granted": 9, "refused": 1, "refusals": 0.1},
        "carts": {"abandoned": 2},
    }
    for figure in ("orders", "revenue", "payments", "conversion", "holds", "carts"):
        assert ask(figure)["items"][2] == {name: third[name] for name in ("start", "end", figure)}
    paged, after = [], None
    while True:
        page = ask("orders", limit=3, **({"after": after} if after else {}))
        paged.append([item["orders"]["placed"] for item in page["items"]])
        after = page["after"]
        if after is None:
            break
    assert paged == [[0, 1, 36], [3]]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"by": "week"}, 422),
        ({"from": "yesterday"}, 422),
        ({"from": "2026-11-21T12:00:00"}, 422),
        ({"from": "0001-01-01T00:00:00Z"}, 422),
        ({"to": "9999-12-31T23:59:59-12:00"}, 422),
        ({"from": "2026-11-22T00:00:00Z", "to": "2026-11-21T00:00:00Z"}, 422),
        ({"limit": "101"}, 422),
        ({"after": "nonsense"}, 400),
        ({"after": "WyJ4Il0"}, 400),
    ],
)
def test_invalid_queries_are_refused(query: dict[str, str], status: int, client: httpx.Client, edge: Running) -> None:
    answer = client.get("/v1/analytics/orders", params=query, headers=token("support", edge.settings))
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_there_is_no_such_figure(client: httpx.Client, edge: Running) -> None:
    assert client.get("/v1/analytics/weather", headers=token("support", edge.settings)).status_code == 422


def test_the_page_and_its_files(client: httpx.Client) -> None:
    page = client.get("/analytics")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for name in ("analytics.js", "analytics.css"):
        assert f"/static/{name}" in page.text
        assert client.get(f"/static/{name}").status_code == 200


def test_the_windows_of_a_length_are_all_described(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()["paths"]["/v1/analytics/{figure}"]["get"]["parameters"]
    assert next(each for each in described if each["name"] == "by")["schema"]["enum"] == list(WINDOW_LENGTHS)
