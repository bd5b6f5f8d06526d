"""The shop's figures by minute, hour and day, for support; and the page that draws them."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import AfterValidator, AwareDatetime, BaseModel

from infrastructure import clock
from infrastructure.envelope import rfc3339
from order_service.insights.messages import LENGTHS, By, Figures
from rest_api import cursors
from rest_api.edge import SECURED, Here, Staff
from rest_api.gateway import RETRY_AFTER
from rest_api.problems import Problem
from rest_api.store import AWAY

router = APIRouter(tags=["analytics"])

_PAGE: Final = Path(__file__).parent / "pages" / "analytics.html"
EARLIEST: Final = datetime(1971, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)
SPANS: Final[Mapping[By, timedelta]] = {
    "minute": timedelta(hours=1),
    "hour": timedelta(days=2),
    "day": timedelta(days=31),
}
"""How far back a list goes when it is not said."""


class Orders(BaseModel):
    """Orders by what became of them in the window. `success` is confirmed of confirmed and cancelled."""

    placed: int
    committed: int
    confirmed: int
    cancelled: int
    per_second: float
    success: float | None


class Money(BaseModel):
    """Minor units of one currency. `revenue` is captured less refunded; `average_order` is ordered, by orders."""

    currency: str
    orders: int
    ordered: int
    captured: int
    refunded: int
    revenue: int
    average_order: float | None


class Payments(BaseModel):
    """Payments by the provider's decision. `success` is captured of captured and declined."""

    captured: int
    declined: int
    refunded: int
    success: float | None


class Conversion(BaseModel):
    """Shoppers who had something held in the window, those of them who ordered, and their share."""

    shoppers: int
    buyers: int
    rate: float | None


class Holds(BaseModel):
    """Holds by decision. `refusals` is the share refused."""

    granted: int
    refused: int
    refusals: float | None


class Carts(BaseModel):
    """Carts that came to their end with something in them."""

    abandoned: int


class WindowBody(BaseModel):
    """One window; beside its times the figure that was asked for, or all of them."""

    start: AwareDatetime
    end: AwareDatetime
    orders: Orders | None = None
    revenue: list[Money] | None = None
    payments: Payments | None = None
    conversion: Conversion | None = None
    holds: Holds | None = None
    carts: Carts | None = None


class WindowList(BaseModel):
    """Windows in their order; those in which nothing happened are left out. `after` is the next page's cursor."""

    items: list[WindowBody]
    after: str | None


def _storable(moment: datetime) -> datetime:
    if not EARLIEST < moment < LATEST:
        raise ValueError("lies between 1971 and 2100")
    return moment


Moment = Annotated[AwareDatetime, AfterValidator(_storable)]
Figure = Literal["orders", "revenue", "payments", "conversion", "holds", "carts", "all"]
_FIGURES: Final[Mapping[str, Callable[[Figures], Any]]] = {
    "orders": lambda told: Orders(
        placed=told.orders_placed,
        committed=told.orders_committed,
        confirmed=told.orders_confirmed,
        cancelled=told.orders_cancelled,
        per_second=told.orders_per_second,
        success=told.order_success,
    ),
    "revenue": lambda told: [
        Money(**each.model_dump(), revenue=each.revenue, average_order=each.average_order) for each in told.takings
    ],
    "payments": lambda told: Payments(
        captured=told.payments_captured,
        declined=told.payments_declined,
        refunded=told.payments_refunded,
        success=told.payment_success,
    ),
    "conversion": lambda told: Conversion(shoppers=told.shoppers, buyers=told.buyers, rate=told.conversion),
    "holds": lambda told: Holds(granted=told.holds_granted, refused=told.holds_refused, refusals=told.refusals),
    "carts": lambda told: Carts(abandoned=told.carts_expired),
}


@router.get("/v1/analytics/{figure}", response_model=WindowList, dependencies=SECURED)
async def list_windows(  # noqa: PLR0913, PLR0917 - the filters of the contract
    edge: Here,
    _: Staff,
    request: Request,
    figure: Figure,
    by: By = "hour",
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Annotated[Moment | None, Query(alias="to")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    after: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """Figures of the windows that begin in `from` (included) to `to` (not); without them, of the latest ones.

    A window belongs to the times of its events: one that comes late changes the window of its own time.
    """
    end = until or clock.now()
    begin = since or end - SPANS[by]
    if begin > end:
        raise Problem("invalid", errors=[{"pointer": "/from", "detail": "`from` is later than `to`"}])
    try:
        found = await edge.insights.figures(by, begin, end, limit=limit + 1, after=_opened(after))
    except AWAY:
        raise Problem("unavailable", "the figures are away", retry_after=RETRY_AFTER) from None
    shown = found[:limit]
    more = cursors.sealed(cursors.instant(shown[-1].start)) if len(found) > limit else None
    return cursors.page([_window(told, figure) for told in shown], more, request)


@router.get("/analytics", include_in_schema=False)
async def analytics() -> Response:
    """The page; it asks for a token, and shows nothing without one."""
    return FileResponse(_PAGE, headers={"Cache-Control": "no-cache"})


def _window(told: Figures, figure: Figure) -> dict[str, Any]:
    wanted = _FIGURES if figure == "all" else {figure: _FIGURES[figure]}
    return {
        "start": rfc3339(told.start),
        "end": rfc3339(told.start + LENGTHS[told.by]),
        **{name: _plain(shown(told)) for name, shown in wanted.items()},
    }


def _plain(shown: BaseModel | list[BaseModel]) -> Any:
    return [each.model_dump() for each in shown] if isinstance(shown, list) else shown.model_dump()


def _opened(after: str | None) -> datetime | None:
    match [] if after is None else cursors.opened(after):
        case []:
            return None
        case [int(at)]:
            return cursors.at_instant(at)
    raise Problem("bad-cursor")
