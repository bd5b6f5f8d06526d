"""The AsyncAPI 3.0 document of the WebSocket's frames and the shop's topics, generated from the models."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from contracts import accounts, cart, deliveries, insights, inventory, orders, payments
from contracts import notifications as notices
from contracts.envelope import Envelope, MessageRegistry
from contracts.topics import PARTITIONS, Topic
from rest_api.protocol import client_frames, server_frames
from rest_api.protocol.schema_names import publish_names

_TOPICS: Final[tuple[tuple[Topic, MessageRegistry[Any], str], ...]] = (
    (cart.REQUESTS, cart.REQUEST_REGISTRY, "send"),
    (cart.RESPONSES, cart.RESPONSE_REGISTRY, "receive"),
    (inventory.REQUESTS, inventory.REQUEST_REGISTRY, "send"),
    (inventory.RESPONSES, inventory.RESPONSE_REGISTRY, "other"),
    (inventory.STOCK, inventory.STOCK_REGISTRY, "receive"),
    (inventory.PRODUCTS, inventory.PRODUCT_REGISTRY, "receive"),
    (orders.REQUESTS, orders.REQUEST_REGISTRY, "send"),
    (orders.EVENTS, orders.EVENT_REGISTRY, "receive"),
    (payments.REQUESTS, payments.REQUEST_REGISTRY, "send"),
    (payments.EVENTS, payments.EVENT_REGISTRY, "receive"),
    (payments.STATE, payments.STATE_REGISTRY, "receive"),
    (deliveries.REQUESTS, deliveries.REQUEST_REGISTRY, "other"),
    (deliveries.EVENTS, deliveries.EVENT_REGISTRY, "receive"),
    (insights.RELATED, insights.RELATED_REGISTRY, "receive"),
    (insights.FIGURES, insights.FIGURES_REGISTRY, "receive"),
    (notices.REQUESTS, notices.REQUEST_REGISTRY, "send"),
    (notices.EVENTS, notices.EVENT_REGISTRY, "receive"),
    (accounts.EVENTS, accounts.EVENT_REGISTRY, "receive"),
)
_REF: Final = "#/components/schemas/{model}"


def document(host: str) -> dict[str, Any]:
    """Return the document as served by `host`."""
    return {**_build(), "servers": {"edge": {"host": host, "protocol": "ws"}, "kafka": _KAFKA}}


_KAFKA: Final = {"host": "localhost:9092", "protocol": "kafka", "description": "the address is configurable"}


@cache
def _build() -> dict[str, Any]:
    frames = {"client": get_args(client_frames.Client), "server": get_args(server_frames.Server)}
    models = {model for _, vocabulary, _ in _TOPICS for model in vocabulary.types.values()}
    models |= {model for side in frames.values() for model in side} | {Envelope}
    names, schemas = _schemas(models)
    components: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}

    channel = channels["stream"] = {
        "address": "/v1/stream",
        "description": f"WebSocket, subprotocol {client_frames.SUBPROTOCOL}",
        "servers": [{"$ref": "#/servers/edge"}],
        "messages": {},
    }
    for side, action in (("client", "receive"), ("server", "send")):
        references = []
        for model in frames[side]:
            name = f"{side}.{_type_of(model)}"
            components[name] = _message(_type_of(model), model, {"$ref": _REF.format(model=names[model])})
            channel["messages"][name] = {"$ref": f"#/components/messages/{name}"}
            references.append({"$ref": f"#/channels/stream/messages/{name}"})
        operations[f"{side}Frames"] = {
            "action": action,
            "channel": {"$ref": "#/channels/stream"},
            "messages": references,
        }

    for topic, vocabulary, action in _TOPICS:
        topic_channel = channels[topic.name] = {
            "address": topic.name,
            "description": (
                f"Kafka topic keyed by {topic.keyed_by}, {topic.partitions or PARTITIONS} partitions, {topic.cleanup}"
            ),
            "servers": [{"$ref": "#/servers/kafka"}],
            "messages": {},
        }
        references = []
        for kind, model in vocabulary.types.items():
            components[kind] = _message(kind, model, _event_schema(kind, names[model], names[Envelope]))
            topic_channel["messages"][kind] = {"$ref": f"#/components/messages/{kind}"}
            references.append({"$ref": f"#/channels/{topic.name}/messages/{kind}"})
        if action != "other":
            operations[topic.name] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{topic.name}"},
                "messages": references,
            }

    described = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Holdfast",
            "version": "1.0.0",
            "description": "Frames of the stream and messages on the topics. Operations are those of the edge.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": components, "schemas": schemas},
    }
    return publish_names(described)


def _schemas(models: Iterable[type[BaseModel]]) -> tuple[dict[type[BaseModel], str], dict[str, Any]]:
    """Return each model's schema name and the schemas. Models that share a name get qualified names."""
    ordered = sorted(models, key=lambda model: (model.__module__, model.__qualname__))
    references_by_model, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=_REF
    )
    names = {model: reference["$ref"].rpartition("/")[2] for (model, _), reference in references_by_model.items()}
    schemas = definitions["$defs"]
    for schema in schemas.values():
        _remove_discriminators(schema)
    return names, schemas  # type: ignore[return-value]  # pydantic's keys are classes of models or dataclasses


def _remove_discriminators(node: Any) -> None:
    """Remove discriminators, which are objects in OpenAPI but strings in AsyncAPI.

    The constants of the field `type` carry the same information.
    """
    if isinstance(node, dict):
        if isinstance(node.get("discriminator"), dict):
            del node["discriminator"]
        for value in node.values():
            _remove_discriminators(value)
    elif isinstance(node, list):
        for value in node:
            _remove_discriminators(value)


def _type_of(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["type"].annotation)[0])


def _message(name: str, model: type[BaseModel], payload: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "title": name, "summary": (model.__doc__ or "").strip(), "payload": payload}


def _event_schema(kind: str, model: str, envelope: str) -> dict[str, Any]:
    """Return the schema of a CloudEvent whose `data` is a message."""
    return {
        "allOf": [
            {"$ref": _REF.format(model=envelope)},
            {"type": "object", "properties": {"type": {"const": kind}, "data": {"$ref": _REF.format(model=model)}}},
        ]
    }
