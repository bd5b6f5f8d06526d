"""Routes of reservations: stock held for another service until the service commits or releases it.

A reservation is a set of holds without a cart. Its id is scoped to the service. Two services may therefore use the same
id, and no service can touch the holds of an order.
"""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from contracts import cart, inventory
from contracts.ids import derive_id, uuid7
from contracts.inventory import MAX_LINES, HoldState, Identifier, Line
from contracts.url_paths import DOT_SEGMENTS, encode_segment
from rest_api.http.commands.orders import refusal_problem
from rest_api.http.dependencies import SECURITY_DEPENDENCIES, AppState, AppStateDep, ServiceUser
from rest_api.http.idempotency import execute, registered_read
from rest_api.http.routers.cart import READ_TIMEOUT_SECONDS, IdempotencyKey, PreferHeader
from rest_api.kafka.gateway import RETRY_AFTER, request_envelope
from rest_api.protocol.client_frames import Item
from rest_api.protocol.problems import Problem
from rest_api.websocket.in_flight import Reply

router = APIRouter(prefix="/v1/reservations", tags=["reservations"], dependencies=SECURITY_DEPENDENCIES)

ROUTE: Final = "/v1/reservations"
ReservationId = Annotated[Identifier, Path()]


def _is_addressable(reservation_id: str) -> str:
    if reservation_id in DOT_SEGMENTS:
        raise ValueError(
            "must not be `.` or `..`, which browsers and proxies remove from the address; choose another id"
        )
    return reservation_id


class NewReservation(BaseModel):
    """The items to hold, all or nothing. `reservation_id` is optional and chosen by the service."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reservation_id: Annotated[Identifier, AfterValidator(_is_addressable)] | None = None
    # A JSON array is a list in Python, so this tuple is not strict.
    items: Annotated[tuple[Item, ...], Field(min_length=1, max_length=MAX_LINES, strict=False)]

    @field_validator("items")
    @classmethod
    def _each_product_once(cls, items: tuple[Item, ...]) -> tuple[Item, ...]:
        if len({item.product for item in items}) < len(items):
            raise ValueError("names a product twice")
        return items


class ReservationBody(BaseModel):
    """A reservation. State PENDING: held; COMMITTED: sold; CANCELLED: released."""

    reservation_id: Identifier
    state: HoldState
    lines: list[Line]


class Accepted(BaseModel):
    """The request is accepted; the reservation can be read at `Location`."""

    reservation_id: Identifier
    request_id: Identifier


_COMMAND_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": ReservationBody, "description": "the reservation (with `Prefer: wait`)"},
    202: {"model": Accepted, "description": "accepted; the reservation can be read at `Location`"},
}


def reservation_order_id(user_id: str, reservation_id: str) -> str:
    """Return the order id under which inventory keeps a service's reservation."""
    return derive_id(user_id, reservation_id, "reservation")


def _body(reservation_id: str, reservation: cart.Reservation) -> dict[str, Any]:
    lines = [line.model_dump() for line in reservation.lines]
    return {"reservation_id": reservation_id, "state": reservation.state, "lines": lines}


@dataclass(frozen=True, slots=True)
class CreateReservation:
    """The command of `POST /v1/reservations`: hold stock."""

    user_id: str
    body: NewReservation

    @property
    def fingerprint(self) -> str:
        """The command and its content as text."""
        return f"reserve {self.body.model_dump_json()}"

    @property
    def reply_to_user(self) -> str:
        """The service that sends the command."""
        return self.user_id

    def request_id(self, key: str) -> str:
        """Derive the request id from the key. Request ids are scoped to the service."""
        return derive_id("POST", ROUTE, key)

    async def check(self, edge: AppState, request_id: str) -> None:
        """Accept every command: only inventory can decide it."""

    async def send(self, edge: AppState, request_id: str) -> bool:
        """Send the request to inventory. The response arrives through the cart service."""
        commit = inventory.Commit(
            user_id=self.user_id,
            order_id=reservation_order_id(self.user_id, self._reservation_id(request_id)),
            lines=self.body.items,
            purpose="reservation",
        )
        return await edge.connections.send(request_envelope(commit, request_id), inventory.REQUESTS)

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """Return the ids, and where the reservation can be read once it is decided."""
        reservation_id = self._reservation_id(request_id)
        return {"reservation_id": reservation_id, "request_id": request_id}, f"{ROUTE}/{encode_segment(reservation_id)}"

    async def response_body(self, edge: AppState, answer: Reply) -> bytes:  # noqa: ARG002 - the protocol of commands
        """Return the reservation; raise `Problem` if it was refused."""
        reservation = answer.message
        if isinstance(reservation, cart.Refused):
            raise refusal_problem(reservation)
        assert isinstance(reservation, cart.Reservation)
        return orjson.dumps(_body(self._reservation_id(reservation.id), reservation))

    def _reservation_id(self, request_id: str) -> str:
        return self.body.reservation_id or request_id


@dataclass(frozen=True, slots=True)
class SettleReservation:
    """A command that commits or releases a reservation. Repeating it has no further effect."""

    user_id: str
    reservation_id: str
    final_state: Literal["COMMITTED", "CANCELLED"]

    @property
    def fingerprint(self) -> str:
        """The command and its content as text."""
        return f"{self.final_state} {self.reservation_id}"

    @property
    def reply_to_user(self) -> str:
        """The service that sends the command."""
        return self.user_id

    def request_id(self, key: str) -> str:
        """Derive the request id from the key. Request ids are scoped to the service."""
        return derive_id(self.final_state, ROUTE, key)

    async def check(self, edge: AppState, request_id: str) -> None:
        """Accept every command: only inventory can decide it."""

    async def send(self, edge: AppState, request_id: str) -> bool:
        """Send the request to inventory. The response arrives through the cart service."""
        order_id = reservation_order_id(self.user_id, self.reservation_id)
        message: inventory.Request = (
            inventory.Sell(user_id=self.user_id, order_id=order_id)
            if self.final_state == "COMMITTED"
            else inventory.ReleaseOrder(user_id=self.user_id, order_id=order_id, to="shelf")
        )
        return await edge.connections.send(request_envelope(message, request_id), inventory.REQUESTS)

    def accepted(self, request_id: str) -> tuple[dict[str, Any], str]:
        """Return the ids, and where the reservation can be read."""
        body = {"reservation_id": self.reservation_id, "request_id": request_id}
        return body, f"{ROUTE}/{encode_segment(self.reservation_id)}"

    async def response_body(self, edge: AppState, answer: Reply) -> bytes:
        """Return the reservation as it is now; raise `Problem` if it is unknown or was settled the other way."""
        reservation = answer.message
        if isinstance(reservation, cart.Refused):
            raise refusal_problem(reservation)
        assert isinstance(reservation, cart.Reservation)
        if reservation.state is None:
            raise Problem("not-found")
        if reservation.state != self.final_state:
            raise Problem("reservation-settled", f"the reservation is {reservation.state}")
        return orjson.dumps(await _read(edge, self.user_id, self.reservation_id))


@router.post("", status_code=202, responses=_COMMAND_RESPONSES, response_model=None)
async def reserve(
    edge: AppStateDep,
    user: ServiceUser,
    body: NewReservation,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Hold stock, all or nothing. Repeating a `reservation_id` with the same items repeats the request."""
    key = idempotency_key
    if key is None and body.reservation_id is not None:
        key = f"reservation {body.reservation_id}"
    try:
        return await execute(edge, user.user_id, CreateReservation(user.user_id, body), key=key, prefer=prefer)
    except Problem as problem:
        if idempotency_key is None and problem.slug == "idempotency-key-reused":  # the key came from the body
            problem.errors = [{**fault, "pointer": "/reservation_id"} for fault in problem.errors]
        raise


@router.get("/{reservation_id:segment}", response_model=ReservationBody)
async def show(edge: AppStateDep, user: ServiceUser, reservation_id: ReservationId) -> Response:
    """Return a reservation in its current state."""
    body = await _read(edge, user.user_id, reservation_id)
    return Response(orjson.dumps(body), media_type="application/json")


@router.post("/{reservation_id:segment}/commit", status_code=202, responses=_COMMAND_RESPONSES, response_model=None)
async def commit(
    edge: AppStateDep,
    user: ServiceUser,
    reservation_id: ReservationId,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Commit a reservation: sell the held stock."""
    command = SettleReservation(user.user_id, reservation_id, "COMMITTED")
    return await execute(edge, user.user_id, command, key=idempotency_key, prefer=prefer)


@router.delete("/{reservation_id:segment}", status_code=202, responses=_COMMAND_RESPONSES, response_model=None)
async def release(
    edge: AppStateDep,
    user: ServiceUser,
    reservation_id: ReservationId,
    prefer: PreferHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Cancel a reservation: release the held stock."""
    command = SettleReservation(user.user_id, reservation_id, "CANCELLED")
    return await execute(edge, user.user_id, command, key=idempotency_key, prefer=prefer)


async def _read(edge: AppState, user_id: str, reservation_id: str) -> dict[str, Any]:
    """Read a reservation from inventory; raise `Problem` if it is unknown or no response arrives in time."""
    request_id = uuid7()
    query = inventory.ReadReservation(
        user_id=user_id, order_id=reservation_order_id(user_id, reservation_id), session=request_id
    )
    with registered_read(edge.connections, user_id, request_id) as answer:
        try:
            async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                if not await edge.connections.send(request_envelope(query, request_id), inventory.REQUESTS):
                    raise Problem("unavailable", "inventory is unavailable", retry_after=RETRY_AFTER)
                reservation = (await answer).message
        except TimeoutError:
            raise Problem("unavailable", "inventory does not respond", retry_after=RETRY_AFTER) from None
    assert isinstance(reservation, cart.Reservation)
    if reservation.state is None:
        raise Problem("not-found")
    return _body(reservation_id, reservation)
