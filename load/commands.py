"""The `holdfast` commands that proofs and loads need, run as anyone would run them."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from load.shop import ShopAwayError

HEADER = "product_code,name,price,currency,quantity"


async def seed(product: str, quantity: int) -> None:
    """Bring `quantity` units of a new product into the shop by `holdfast seed`."""
    await seed_all({product: quantity}, "Proof of no oversell")


async def seed_all(units: Mapping[str, int], name: str = "A product for load") -> None:
    """Bring in products by code, with their units, all under one name; those that are there stay as they are."""
    with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8") as file:
        file.write("\n".join([HEADER, *(f"{code},{name},1.00,GBP,{number}" for code, number in units.items()), ""]))
        file.flush()
        status, _, complaint = await _holdfast("seed", file.name)
    if status:
        raise ShopAwayError(f"`holdfast seed` failed with {status}: {complaint.strip()}")


async def audit() -> Sequence[str]:
    """The violations that `holdfast audit` finds, each in words."""
    status, answer, complaint = await _holdfast("audit", "--json")
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError:
        raise ShopAwayError(f"`holdfast audit` failed with {status}: {complaint.strip()}") from None
    violations = [
        violation if isinstance(violation, str) else json.dumps(violation) for violation in found["violations"]
    ]
    return violations or ([] if found["ok"] and status == 0 else [f"the audit ended with {status}"])


async def _holdfast(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "infrastructure.local",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, complaint = await child.communicate()
    return child.returncode or 0, answer.decode(), complaint.decode()
