"""Sessions of a socket without a server: to send frames to, and to read the sent frames from."""

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import TypeAdapter

from rest_api.__main__ import build_state
from rest_api.http.dependencies import AppState
from rest_api.protocol.effects import Effect
from rest_api.protocol.server_frames import Server
from rest_api.settings import EdgeSettings
from rest_api.websocket.session import Session
from rest_api.websocket.user_state import UserLimits, UserState

NOW = 1_795_000_000.0
SERVER = TypeAdapter[Any](Server)
USER = "u1"


def make_user(**rules: Any) -> UserState:
    return UserState(USER, UserLimits(**rules), NOW)


def make_session(shopper: UserState | None = None, name: str = "s1", *, opened: bool = True) -> Session:
    session = Session(name, shopper or make_user(), expires_at=NOW + 3600)
    if opened:
        session.open(NOW)
        session.on_read_answered(f"{name}/cart", [])
    return session


def send(session: Session, now: float = NOW, **frame: Any) -> list[Effect]:
    return session.receive(orjson.dumps(frame).decode(), now)


def frames_of(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """Return the frames among some effects, each validated against its model."""
    found = [orjson.loads(effect) for effect in effects if isinstance(effect, bytes)]
    for frame in found:
        SERVER.validate_json(orjson.dumps(frame), strict=True)
    return found


def error(effects: Sequence[Effect]) -> dict[str, Any]:
    (frame,) = frames_of(effects)
    assert frame["type"] == "error"
    return frame


def make_app_state() -> AppState:
    """Return the state of an edge whose components have not started."""
    return build_state(EdgeSettings(), 8080)[0]
