"""Reservations for other services: stock that is held for them until they commit it or let it go.

They are holds like those of a cart, without the cart; what a service calls its reservation is its own, so two services
may use one id, and none can touch what an order holds.
"""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from cart_service import messages as cart
from infrastructure.ids import derived, uuid7
from inventory_service import messages as inventory
from inventory_service.messages import MAX_LINES, HoldState, Item, Line, Printable
from rest_api.changes import perform
from rest_api.edge import SECURED, Edge, Here, Service
from rest_api.gateway import RETRY_AFTER
from rest_api.order_requests import refused
from rest_api.outbound import event
from rest_api.problems import Problem
from rest_api.routes_cart import READ_SECONDS, Key, Prefer
from rest_api.waiting import Answer

router = APIRouter(prefix="/v1/reservations", tags=["reservations"], dependencies=SECURED)

ROUTE: Final = "/v1/reservations"
ReservationId = Annotated[Printable, Path()]


class NewReservation(BaseModel):
    """What shall be held, all or nothing; `reservation_id` is the service's own, if it has one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reservation_id: Printable | None = None
    # A JSON array is a list in Python, so this tuple is not strict.
    items: Annotated[tuple[Item, ...], Field(min_length=1, max_length=MAX_LINES, strict=False)]

    @field_validator("items")
    @classmethod
    def _each_product_once(cls, items: tuple[Item, ...]) -> tuple[Item, ...]:
        if len({item.product for item in items}) < len(items):
            raise ValueError("names a product twice")
        return items


class ReservationBody(BaseModel):
    """PENDING: held; COMMITTED: sold; CANCELLED: given back."""

    reservation_id: Printable
    state: HoldState
    lines: list[Line]


class Accepted(BaseModel):
    """The request is accepted; the reservation is at `Location`."""

    reservation_id: Printable
    request_id: Printable


_ASKED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": ReservationBody, "description": "the reservation (with `Prefer: wait`)"},
    202: {"model": Accepted, "description": "accepted; the reservation is at `Location`"},
}


def held_for(user_id: str, reservation_id: str) -> str:
    """What inventory knows a service's reservation by."""
    return derived(user_id, reservation_id, "reservation")


def _body(reservation_id: str, told: cart.Reservation) -> dict[str, Any]:
    lines = [line.model_dump() for line in told.lines]
    return {"reservation_id": reservation_id, "state": told.state, "lines": lines}


@dataclass(frozen=True, slots=True)
class Reserving:
    """`POST /v1/reservations`."""

    user_id: str
    wanted: NewReservation

    @property
    def fingerprint(self) -> str:
        """The request itself."""
        return f"reserve {self.wanted.model_dump_json()}"

    @property
    def told_to(self) -> str:
        """The service."""
        return self.user_id

    def name(self, key: str) -> str:
        """Of the service's own ids."""
        return derived("POST", ROUTE, key)

    async def check(self, edge: Edge, request_id: str) -> None:
        """Only inventory knows."""

    async def send(self, edge: Edge, request_id: str) -> bool:
        """To inventory, which answers through the carts."""
        commit = inventory.Commit(
            user_id=self.user_id,
            order_id=held_for(self.user_id, self._called(request_id)),
            lines=self.wanted.items,
            purpose="reservation",
        )
        return await edge.hub.send(event(commit, request_id), inventory.REQUESTS)

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """It can be read as soon as it is decided."""
        name = self._called(request_id)
        return {"reservation_id": name, "request_id": request_id}, f"{ROUTE}/{name}"

    async def settled(self, edge: Edge, answer: Answer) -> bytes:  # noqa: ARG002 - orders read on
        """The reservation."""
        told = answer.message
        if isinstance(told, cart.Refused):
            raise refused(told)
        assert isinstance(told, cart.Reservation)
        return orjson.dumps(_body(self._called(told.id), told))

    def _called(self, request_id: str) -> str:
        return self.wanted.reservation_id or request_id


@dataclass(frozen=True, slots=True)
class Settling:
    """The end of a reservation: it is sold, or given back. Done once, however often it is asked."""

    user_id: str
    reservation_id: str
    end: Literal["COMMITTED", "CANCELLED"]

    @property
    def fingerprint(self) -> str:
        """The request itself."""
        return f"{self.end} {self.reservation_id}"

    @property
    def told_to(self) -> str:
        """The service."""
        return self.user_id

    def name(self, key: str) -> str:
        """Of the service's own ids."""
        return derived(self.end, ROUTE, key)

    async def check(self, edge: Edge, request_id: str) -> None:
        """Only inventory knows."""

    async def send(self, edge: Edge, request_id: str) -> bool:
        """To inventory, which answers through the carts."""
        order_id = held_for(self.user_id, self.reservation_id)
        message: inventory.Request = (
            inventory.Sell(user_id=self.user_id, order_id=order_id)
            if self.end == "COMMITTED"
            else inventory.ReleaseOrder(user_id=self.user_id, order_id=order_id, to="shelf")
        )
        return await edge.hub.send(event(message, request_id), inventory.REQUESTS)

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """What came of it is seen in the reservation."""
        body = {"reservation_id": self.reservation_id, "request_id": request_id}
        return body, f"{ROUTE}/{self.reservation_id}"

    async def settled(self, edge: Edge, answer: Answer) -> bytes:
        """The reservation as it is now; `Problem` when it had ended in the other way."""
        told = answer.message
        if isinstance(told, cart.Refused):
            raise refused(told)
        assert isinstance(told, cart.Reservation)
        if told.state is None:
            raise Problem("not-found")
        if told.state != self.end:
            raise Problem("reservation-settled", f"it is {told.state}")
        return orjson.dumps(await _read(edge, self.user_id, self.reservation_id))


@router.post("", status_code=202, responses=_ASKED, response_model=None)
async def reserve(
    edge: Here, known: Service, wanted: NewReservation, prefer: Prefer = None, idempotency_key: Key = None
) -> Response:
    """Hold stock; all or nothing. The same `reservation_id` with the same items is the same request."""
    key = idempotency_key
    if key is None and wanted.reservation_id is not None:
        key = f"reservation {wanted.reservation_id}"
    try:
        return await perform(edge, known.user_id, Reserving(known.user_id, wanted), key=key, prefer=prefer)
    except Problem as problem:
        if idempotency_key is None and problem.slug == "idempotency-key-reused":  # its key stands in the body
            problem.errors = [{**fault, "pointer": "/reservation_id"} for fault in problem.errors]
        raise


@router.get("/{reservation_id}", response_model=ReservationBody)
async def show(edge: Here, known: Service, reservation_id: ReservationId) -> Response:
    """A reservation as inventory has it now."""
    body = await _read(edge, known.user_id, reservation_id)
    return Response(orjson.dumps(body), media_type="application/json")


@router.post("/{reservation_id}/commit", status_code=202, responses=_ASKED, response_model=None)
async def commit(
    edge: Here, known: Service, reservation_id: ReservationId, prefer: Prefer = None, idempotency_key: Key = None
) -> Response:
    """Sell what is held."""
    asked = Settling(known.user_id, reservation_id, "COMMITTED")
    return await perform(edge, known.user_id, asked, key=idempotency_key, prefer=prefer)


@router.delete("/{reservation_id}", status_code=202, responses=_ASKED, response_model=None)
async def release(
    edge: Here, known: Service, reservation_id: ReservationId, prefer: Prefer = None, idempotency_key: Key = None
) -> Response:
    """Give back what is held."""
    asked = Settling(known.user_id, reservation_id, "CANCELLED")
    return await perform(edge, known.user_id, asked, key=idempotency_key, prefer=prefer)


async def _read(edge: Edge, user_id: str, reservation_id: str) -> dict[str, Any]:
    """Ask inventory; `Problem` when there is no such reservation, or nobody answers in time."""
    request_id = uuid7()
    asked = inventory.ReadReservation(user_id=user_id, order_id=held_for(user_id, reservation_id), session=request_id)
    with edge.hub.wait(user_id, request_id) as answer:
        try:
            async with asyncio.timeout(READ_SECONDS):
                if not await edge.hub.send(event(asked, request_id), inventory.REQUESTS):
                    raise Problem("unavailable", "inventory is away", retry_after=RETRY_AFTER)
                told = (await answer).message
        except TimeoutError:
            raise Problem("unavailable", "inventory does not answer", retry_after=RETRY_AFTER) from None
    assert isinstance(told, cart.Reservation)
    if told.state is None:
        raise Problem("not-found")
    return _body(reservation_id, told)
