"""The names of schemas in the published documents do not follow when a module moves."""

from rest_api.app import create_app
from rest_api.protocol import asyncapi
from rest_api.protocol.schema_names import PREFIXES, published_name
from tests.testkit.edge_session import make_app_state


async def test_no_schema_is_named_after_a_module_of_today() -> None:
    names = {
        name
        for document in (create_app(make_app_state()).openapi(), asyncapi.document("here"))
        for name in document["components"]["schemas"]
    }
    prefixes = {name.rpartition("__")[0] for name in names if "__" in name}
    assert prefixes == set(PREFIXES.values()) - {"order_service__insights__messages"}


async def test_references_lead_to_schemas() -> None:
    for document in (create_app(make_app_state()).openapi(), asyncapi.document("here")):
        schemas = document["components"]["schemas"]
        text = str(document)
        for part in text.split("#/components/schemas/")[1:]:
            assert part.partition("'")[0] in schemas


def test_only_a_whole_prefix_is_replaced() -> None:
    assert published_name("contracts__cart__Add") == "cart_service__messages__Add"
    assert (
        published_name("#/components/schemas/contracts__cart__Add")
        == "#/components/schemas/cart_service__messages__Add"
    )
    assert published_name("my_contracts__cart__Add") == "my_contracts__cart__Add"
    assert published_name("Add") == "Add"
