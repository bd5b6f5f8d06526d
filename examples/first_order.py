"""One guest, one socket, one order: an add, its checkout, and every step of the order until it is on its way.

Run it with the shop up: .venv/bin/python examples/first_order.py [product] [token]

With another token it goes otherwise: `tok_decline` is declined, and what was held is in the cart again.
"""

import asyncio
import json
import os
import sys
import urllib.request

from websockets.asyncio.client import connect

SHOP = os.environ.get("HOLDFAST_HTTP_URL", "http://127.0.0.1:8080")
ADDRESS = {"name": "Ann", "line1": "1 High Street", "city": "York", "postal_code": "YO1 7HH", "country": "GB"}
END = {"shipped", "delivered", "cancelled"}


async def main(product: str = "85123A", token: str = "tok_approve") -> None:  # noqa: S107 - it stands for a test card
    """Print each frame on a line."""
    request = urllib.request.Request(f"{SHOP}/v1/guests", method="POST")  # noqa: S310 - the shop's own address
    with urllib.request.urlopen(request) as answer:  # noqa: S310, ASYNC210 - nothing else runs yet
        bearer = {"Authorization": f"Bearer {json.load(answer)['token']}"}
    stream = SHOP.replace("http", "ws", 1) + "/v1/stream"
    checkout = {"address": ADDRESS, "contact": {"email": "ann@example.org"}, "payment": {"token": token}}
    async with connect(stream, subprotocols=["holdfast.v1"], additional_headers=bearer) as socket:
        add = {"id": "an add", "type": "add", "product": product, "quantity": 1}
        await socket.send(json.dumps(add))
        async for text in socket:
            print(text)  # noqa: T201 - this is what it is for
            frame = json.loads(text)
            if frame["type"] == "held":
                # The version that was shown is the one that is ordered; a cart that moved on is refused.
                order = {"id": "an order", "type": "checkout", "version": frame["version"], **checkout}
                await socket.send(json.dumps(order))
            if frame["type"] in {"refused", "error"} or frame.get("status") in END:
                return


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
