"""Routes of the shop's figures by minute, hour and day, for support, and the page that charts them."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel

import rest_api
from contracts.envelope import PlausibleTime, rfc3339
from contracts.insights import WINDOW_LENGTHS, Figures, WindowUnit
from infrastructure.process import clock
from rest_api.http import pagination
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AppStateDep, StaffUser
from rest_api.http.file_response import file_response
from rest_api.kafka.gateway import RETRY_AFTER
from rest_api.protocol.problems import Problem
from rest_api.read_models.store import UNAVAILABLE_ERRORS

router = APIRouter(tags=["analytics"])

_PAGE: Final = Path(rest_api.__file__).parent / "pages" / "analytics.html"
DEFAULT_RANGES: Final[Mapping[WindowUnit, timedelta]] = {
    "minute": timedelta(hours=1),
    "hour": timedelta(days=2),
    "day": timedelta(days=31),
}
"""The default time range of a list, by length of window."""


class Orders(BaseModel):
    """Numbers of orders by event in the window. `success` is the share of confirmed in confirmed and cancelled."""

    placed: int
    committed: int
    confirmed: int
    cancelled: int
    per_second: float
    success: float | None


class Money(BaseModel):
    """Amounts in minor units of one currency. `revenue` is captured - refunded.

    `average_order` is captured / payments, so declined orders do not count; in windows from before payments were
    counted, where `payments` is 0 and `captured` is not, it is ordered / orders.
    """

    currency: str
    orders: int
    ordered: int
    captured: int
    refunded: int
    payments: int
    revenue: int
    average_order: float | None


class Payments(BaseModel):
    """Numbers of payments by the provider's decision. `success` is the share of captured in captured and declined."""

    captured: int
    declined: int
    refunded: int
    success: float | None


class Conversion(BaseModel):
    """Shoppers with a hold in the window, the buyers among them, and the buyers' share."""

    shoppers: int
    buyers: int
    rate: float | None


class Holds(BaseModel):
    """Numbers of holds by decision. `refusals` is the share refused."""

    granted: int
    refused: int
    refusals: float | None


class Carts(BaseModel):
    """Carts that expired with items in them."""

    abandoned: int


class WindowBody(BaseModel):
    """A window: its times, and the requested figure, or all figures."""

    start: AwareDatetime
    end: AwareDatetime
    orders: Orders | None = None
    revenue: list[Money] | None = None
    payments: Payments | None = None
    conversion: Conversion | None = None
    holds: Holds | None = None
    carts: Carts | None = None


class WindowList(BaseModel):
    """A page of windows in order; empty windows are omitted. `after` is the cursor of the next page."""

    items: list[WindowBody]
    after: str | None


Figure = Literal["orders", "revenue", "payments", "conversion", "holds", "carts", "all"]
_FIGURES: Final[Mapping[str, Callable[[Figures], Any]]] = {
    "orders": lambda figures: Orders(
        placed=figures.orders_placed,
        committed=figures.orders_committed,
        confirmed=figures.orders_confirmed,
        cancelled=figures.orders_cancelled,
        per_second=figures.orders_per_second,
        success=figures.order_success_rate,
    ),
    "revenue": lambda figures: [
        Money(**each.model_dump(), revenue=each.revenue, average_order=each.average_order) for each in figures.takings
    ],
    "payments": lambda figures: Payments(
        captured=figures.payments_captured,
        declined=figures.payments_declined,
        refunded=figures.payments_refunded,
        success=figures.payment_success_rate,
    ),
    "conversion": lambda figures: Conversion(
        shoppers=figures.shoppers, buyers=figures.buyers, rate=figures.conversion_rate
    ),
    "holds": lambda figures: Holds(
        granted=figures.holds_granted, refused=figures.holds_refused, refusals=figures.refusal_rate
    ),
    "carts": lambda figures: Carts(abandoned=figures.carts_expired),
}


@router.get("/v1/analytics/{figure:segment}", response_model=WindowList, dependencies=SECURITY_DEPENDENCIES)
async def list_windows(  # noqa: PLR0913, PLR0917 - the filters of the contract
    edge: AppStateDep,
    _: StaffUser,
    request: Request,
    figure: Figure,
    by: WindowUnit = "hour",
    since: Annotated[PlausibleTime | None, Query(alias="from")] = None,
    until: Annotated[PlausibleTime | None, Query(alias="to")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    after: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """List the figures of windows that begin between `from` (included) and `to` (excluded); by default, the latest.

    Windows count events by the time at which they happened: a late event changes an earlier window.
    """
    end = until or clock.now()
    begin = since or end - DEFAULT_RANGES[by]
    if begin > end:
        raise Problem("invalid", errors=[{"pointer": "/from", "detail": "`from` is later than `to`"}])
    try:
        found = await edge.insights.figures(by, begin, end, limit=limit + 1, after=_cursor_time(after))
    except UNAVAILABLE_ERRORS:
        raise Problem("unavailable", "the figures cannot be read right now", retry_after=RETRY_AFTER) from None
    listed = found[:limit]
    next_cursor = pagination.encode(pagination.to_microseconds(listed[-1].start)) if len(found) > limit else None
    return pagination.page_response([_window(figures, figure) for figures in listed], next_cursor, request)


@router.get("/analytics", include_in_schema=False)
async def analytics() -> Response:
    """Return the page of charts. It asks for a token, and shows nothing without one."""
    return file_response(_PAGE)


def _window(figures: Figures, figure: Figure) -> dict[str, Any]:
    selected = _FIGURES if figure == "all" else {figure: _FIGURES[figure]}
    return {
        "start": rfc3339(figures.start),
        "end": rfc3339(figures.start + WINDOW_LENGTHS[figures.by]),
        **{name: _dumped(convert(figures)) for name, convert in selected.items()},
    }


def _dumped(body: BaseModel | list[BaseModel]) -> Any:
    return [each.model_dump() for each in body] if isinstance(body, list) else body.model_dump()


def _cursor_time(after: str | None) -> datetime | None:
    match [] if after is None else pagination.decode(after):
        case []:
            return None
        case [int(at)]:
            return pagination.from_microseconds(at)
    raise Problem("bad-cursor")
