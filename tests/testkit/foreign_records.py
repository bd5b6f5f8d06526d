"""Events as engineers write them by hand, with Kafka's console producer or a script."""

from datetime import UTC, datetime
from typing import Any

from contracts.ids import uuid7

USER = "01a1fc22-7d1e-7c3e-9b1d-2f6c1a90e4d7"


def event(type_: str = "cart.add", **fields: Any) -> dict[str, Any]:
    request_id = uuid7()
    data = {"user_id": USER, "product": "85123A", "quantity": 1, **fields.pop("data", {})}
    return {
        "specversion": "1.0",
        "id": f"{USER}/{request_id}/add",
        "source": "/edge",
        "type": f"holdfast.{type_}",
        "subject": USER,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "requestid": request_id,
        "data": data,
        **fields,
    }
