"""Order one product as a guest over a WebSocket: an add, a checkout, and every step of the order until it is shipped.

Run it while the shop is up: .venv/bin/python examples/first_order.py [product] [token]

The shop is the one at HOLDFAST_HTTP_URL, else the one that runs here: of the nearest `.holdfast` above.

The token `tok_decline` makes the payment fail: the order is cancelled, and its units are back in the cart.
"""

import asyncio
import json
import sys
import urllib.request

from websockets.asyncio.client import connect

from infrastructure.local.state import find_http_url

SHOP = find_http_url()
ADDRESS = {"name": "Ann", "line1": "1 High Street", "city": "York", "postal_code": "YO1 7HH", "country": "GB"}
END = {"shipped", "delivered", "cancelled"}


async def main(product: str = "85123A", token: str = "tok_approve") -> None:  # noqa: S107 - a test card, not a password
    """Print one frame per line."""
    request = urllib.request.Request(f"{SHOP}/v1/guests", method="POST")  # noqa: S310 - the shop's own address
    with urllib.request.urlopen(request) as response:  # noqa: S310, ASYNC210 - nothing else runs yet
        bearer = {"Authorization": f"Bearer {json.load(response)['token']}"}
    stream = SHOP.replace("http", "ws", 1) + "/v1/stream"
    checkout = {"address": ADDRESS, "contact": {"email": "ann@example.org"}, "payment": {"token": token}}
    async with connect(stream, subprotocols=["holdfast.v1"], additional_headers=bearer) as socket:
        add = {"id": "an add", "type": "add", "product": product, "quantity": 1}
        await socket.send(json.dumps(add))
        async for text in socket:
            print(text)  # noqa: T201 - the purpose of the example
            frame = json.loads(text)
            if frame["type"] == "held":
                # Order the cart at the version that was shown; a cart that has changed since is refused.
                order = {"id": "an order", "type": "checkout", "version": frame["version"], **checkout}
                await socket.send(json.dumps(order))
            if frame["type"] in {"refused", "error"} or frame.get("status") in END:
                return


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
