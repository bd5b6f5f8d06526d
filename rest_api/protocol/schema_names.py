"""Names of the schemas in `/openapi.json` and `/asyncapi.json`, which generated clients use.

Classes with the same name get a prefix, by default the path of their module. The published prefixes are fixed here, so
that a module can move without a change for clients.
"""

import re
from typing import Any, Final

PREFIXES: Final = {
    "contracts__cart": "cart_service__messages",
    "contracts__deliveries": "order_service__delivery__messages",
    "contracts__insights": "order_service__insights__messages",
    "contracts__inventory": "inventory_service__messages",
    "contracts__notifications": "notification_service__messages",
    "contracts__orders": "order_service__messages",
    "contracts__payments": "order_service__payment__messages",
    "rest_api__http__routers__analytics": "rest_api__routes_analytics",
    "rest_api__http__routers__cart": "rest_api__routes_cart",
    "rest_api__http__routers__notifications": "rest_api__routes_notifications",
    "rest_api__http__routers__reservations": "rest_api__routes_reservations",
    "rest_api__http__schemas__orders": "rest_api__order_body",
    "rest_api__protocol__client_frames": "rest_api__messages",
    "rest_api__protocol__server_frames": "rest_api__server_frames",
}
"""Path of a module, as pydantic writes it, and the prefix that is published instead."""
NAMES: Final = {
    "contracts__inventory__Item": "Item",
    "contracts__orders__Address": "Address",
    "contracts__orders__Contact": "Contact",
    "contracts__orders__Payment": "Payment",
}
"""Classes that are published without a prefix, because they were before another class got the same name."""
REFERENCE: Final = "#/components/schemas/"
_NAME: Final = re.compile(rf"(?<![\w])(?:{'|'.join(NAMES)})$")
_PREFIX: Final = re.compile(rf"(?<![\w])(?:{'|'.join(PREFIXES)})(?=__\w+$)")


def published_name(name: str) -> str:
    """Return the published form of a schema's name, or of a reference that ends with it."""
    return _PREFIX.sub(lambda match: PREFIXES[match[0]], _NAME.sub(lambda match: NAMES[match[0]], name))


def publish_names(document: dict[str, Any]) -> dict[str, Any]:
    """Return `document` with the published names of its schemas, which are sorted by them."""
    renamed: dict[str, Any] = _rename(document)
    schemas = renamed["components"]["schemas"]
    renamed["components"]["schemas"] = {
        name: schemas[old] for name, old in sorted((published_name(old), old) for old in schemas)
    }
    return renamed


def _rename(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _rename(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_rename(value) for value in node]
    return published_name(node) if isinstance(node, str) and node.startswith(REFERENCE) else node
