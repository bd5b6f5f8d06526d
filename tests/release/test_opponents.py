"""The opponents of the bench do what the shop does: they hold durably, never oversell, and repeat their answers.

`make opponents` installs them; `make release-check` runs it first.
"""

import asyncio
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import psutil
import pytest

from load.bench.machine import process_tree
from load.bench.opponents import (
    DBOS,
    FOLDER,
    RESTATE,
    environment,
    missing_reason,
    python_of,
    restate_server,
    temporary_postgres,
)
from load.bench.processes import baseline_process

pytestmark = pytest.mark.timeout(300)

UNITS = 25
BUYERS = 200


@asynccontextmanager
async def opponent(name: str) -> AsyncIterator[str]:
    """The address of its carts."""
    assert missing_reason(name, FOLDER) is None
    python = str(python_of(FOLDER))
    async with AsyncExitStack() as stack:
        if name == DBOS:
            url, _ = await stack.enter_async_context(temporary_postgres())
            stack.enter_context(environment(HOLDFAST_POSTGRES_URL=url))
            process = baseline_process("load.baselines.dbos_shop", python=python)
        else:
            server = str(restate_server(FOLDER))
            process = baseline_process("load.baselines.restate_shop", "--server", server, python=python)
        cart, pid = await stack.enter_async_context(process)
        family = process_tree([pid])
        yield cart
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)


async def change(http: aiohttp.ClientSession, cart: str, shopper: str, kind: str, id_: str) -> Mapping[str, Any]:
    body = {"id": id_, "type": kind, "product": "SCARCE", "quantity": 1}
    async with http.post(f"{cart}/{shopper}/{kind}", json=body, headers={"Idempotency-Key": id_}) as answer:
        assert answer.status == 200, await answer.text()
        found: Mapping[str, Any] = await answer.json()
        return found


@pytest.mark.parametrize("name", [DBOS, RESTATE])
async def test_a_rush_gets_exactly_the_units_that_there_are(name: str) -> None:
    async with opponent(name) as cart, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        rush = [change(http, cart, f"buyer-{n}", "add", f"rush-{n}") for n in range(BUYERS)]
        outcomes = [answer["type"] for answer in await asyncio.gather(*rush)]
        assert Counter(outcomes) == {"held": UNITS, "refused": BUYERS - UNITS}

        # A repeated request gets the answer of the first one, and holds nothing more.
        again = [change(http, cart, f"buyer-{n}", "add", f"rush-{n}") for n in range(BUYERS)]
        assert [answer["type"] for answer in await asyncio.gather(*again)] == outcomes

        # A unit that a cart gives back can be held again, once.
        holder = outcomes.index("held")
        assert (await change(http, cart, f"buyer-{holder}", "remove", "back"))["type"] == "removed"
        late = [change(http, cart, f"late-{n}", "add", f"late-{n}") for n in range(3)]
        assert Counter(answer["type"] for answer in await asyncio.gather(*late)) == {"held": 1, "refused": 2}
        await change(http, cart, f"buyer-{outcomes.index('held', holder + 1)}", "clear", "empty")
        assert (await change(http, cart, "last", "add", "last"))["type"] == "held"


def test_an_opponent_that_is_not_installed_is_named_in_one_sentence(tmp_path: Any) -> None:
    for name in (DBOS, RESTATE):
        reason = missing_reason(name, tmp_path)
        assert reason is not None
        assert reason.startswith(f"{name} was skipped")
        assert reason.endswith(".")
    assert subprocess.run([python_of(FOLDER), "-c", "import dbos, restate"], check=False).returncode == 0
