"""Add one product to a guest's cart over a WebSocket, and print every frame until the outcome.

Run it while the shop is up: .venv/bin/python examples/first_add.py [product] [quantity]

The shop is the one at HOLDFAST_HTTP_URL, else the one that runs here: of the nearest `.holdfast` above.
"""

import asyncio
import json
import sys
import urllib.request

from websockets.asyncio.client import connect

from infrastructure.local.state import find_http_url

SHOP = find_http_url()


async def main(product: str = "85123A", quantity: str = "2") -> None:
    """Print one frame per line."""
    request = urllib.request.Request(f"{SHOP}/v1/guests", method="POST")  # noqa: S310 - the shop's own address
    with urllib.request.urlopen(request) as response:  # noqa: S310, ASYNC210 - nothing else runs yet
        token = json.load(response)["token"]
    stream = SHOP.replace("http", "ws", 1) + "/v1/stream"
    async with connect(
        stream, subprotocols=["holdfast.v1"], additional_headers={"Authorization": f"Bearer {token}"}
    ) as socket:
        frame = {"id": "first", "type": "add", "product": product, "quantity": int(quantity)}
        async for text in socket:
            print(text)  # noqa: T201 - the purpose of the example
            frame_type = json.loads(text)["type"]
            if frame_type == "cart":
                await socket.send(json.dumps(frame))
            if frame_type in {"held", "refused", "error"}:
                return


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
