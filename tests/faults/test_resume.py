"""Resume over the real wire: a connection that ends after byte N, for a sweep of N, on a whole shop."""

import asyncio
import json
import secrets
from collections import defaultdict
from pathlib import Path

import pytest

from load.client import Shopper
from load.http_client import ShopClient as Edge
from load.protocol import Frame
from tests.testkit.shop import Shop
from tests.testkit.tcp_cutter import Cutter, Direction

AT_ONCE = 6
SWEEP: dict[Direction, list[int]] = {
    "up": [*range(0, 540, 135), *range(540, 1000, 20)],
    "down": [*range(0, 1750, 50)],
}
"""The handshake is some 560 bytes up and 200 down; each frame some 90 up, and 40 to 300 down."""


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_client_that_was_cut_after_any_byte_shows_what_an_uncut_one_shows(
    shop: Shop, tmp_path: Path, direction: Direction
) -> None:
    teapot, mug = (f"CUT-{secrets.token_hex(4).upper()}" for _ in range(2))
    shop.seed([(teapot, "Teapot", 1000, 100_000), (mug, "Mug", 100, 100_000)], tmp_path)
    door, url = asyncio.Semaphore(AT_ONCE), shop.http_url
    cuts = 0

    async def one(after: int) -> None:
        nonlocal cuts
        outcomes: defaultdict[str, set[str]] = defaultdict(set)

        def note(frame: Frame) -> None:
            if frame["type"] in {"held", "refused", "removed"}:
                told = {name: value for name, value in frame.items() if name != "replayed"}
                outcomes[frame["id"]].add(json.dumps(told, sort_keys=True))

        async with door, Edge(url) as edge, Cutter(int(url.rpartition(":")[2])).serve() as line:
            guest = await edge.create_guest()
            async with Edge(f"http://127.0.0.1:{line.port}") as bad_line, Shopper(edge, guest, listener=note) as kept:
                line.plan(direction, after)
                async with Shopper(bad_line, guest, listener=note, chance=lambda: 0.1) as cut:
                    answers = [
                        await cut.send({"id": "c1", "type": "add", "product": teapot, "quantity": 2}),
                        await cut.send({"id": "c2", "type": "set", "product": mug, "quantity": 3}),
                        await cut.send({"id": "c3", "type": "add", "product": teapot, "quantity": 1}),
                        await cut.send({"id": "c4", "type": "remove", "product": mug}),
                        await cut.send({"id": "c5", "type": "add", "product": mug, "quantity": 4}),
                    ]
                    async with asyncio.timeout(40):
                        settled = await asyncio.gather(*answers)
                        assert [frame["type"] for frame in settled] == ["held", "held", "held", "removed", "held"]
                        while kept.state.version < 5 or cut.state.unresolved:
                            await asyncio.sleep(0.01)
                    shown = await cut.request("cart")
                    views = [(each.state.version, each.state.lines) for each in (cut, kept)]
                    assert views == [(5, {teapot: 3, mug: 4})] * 2, after
                    assert {row["product"]: row["quantity"] for row in shown["lines"]} == {teapot: 3, mug: 4}
                    assert shown["pending"] == []
                    assert cut.state.unresolved == {}
            assert {name for name, told in outcomes.items() if len(told) > 1} == set(), after
            cuts += line.cut

    await asyncio.gather(*(one(after) for after in SWEEP[direction]))
    assert cuts > len(SWEEP[direction]) * 0.7, "or the sweep goes past the conversation"
    with shop.client() as client:
        shop.until(
            lambda: client.get(f"/v1/products/{teapot}").json()["available"] == 100_000 - 3 * len(SWEEP[direction])
        )
    audit = json.loads(shop.holdfast("audit", "--json", check=False).stdout)
    assert audit["violations"] == []
