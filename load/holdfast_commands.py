"""Run the `holdfast` commands that proofs and load runs need, each as a subprocess."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from load.http_client import ShopUnavailableError

WITHDRAWN_AT_ONCE: Final = 2000
"""Products on one command line, which a system limits to some hundred kilobytes."""
CSV_HEADER = "product_code,name,price,currency,quantity"


async def seed_product(product: str, quantity: int) -> None:
    """Add a new product with `quantity` units to the shop, by `holdfast seed`."""
    await seed_products({product: quantity}, "Proof of no oversell")


async def seed_products(units: Mapping[str, int], name: str = "A product for load") -> None:
    """Add products, given as units by code, all with the same name. Products that exist are left unchanged."""
    with tempfile.NamedTemporaryFile("w", suffix=".csv", encoding="utf-8") as file:
        file.write("\n".join([CSV_HEADER, *(f"{code},{name},1.00,GBP,{number}" for code, number in units.items()), ""]))
        file.flush()
        status, _, stderr = await _holdfast("seed", file.name)
    if status:
        raise ShopUnavailableError(f"`holdfast seed` failed with exit status {status}: {stderr.strip()}")


async def withdraw_products(codes: Iterable[str]) -> None:
    """Take products out of the catalogue again, so that no shopper finds what a test has added."""
    every = [*codes]
    for first in range(0, len(every), WITHDRAWN_AT_ONCE):
        status, _, stderr = await _holdfast("withdraw", *every[first : first + WITHDRAWN_AT_ONCE])
        if status:
            raise ShopUnavailableError(f"`holdfast withdraw` failed with exit status {status}: {stderr.strip()}")


async def run_audit() -> Sequence[str]:
    """Return the violations that `holdfast audit` finds, one sentence each."""
    status, stdout, stderr = await _holdfast("audit", "--json")
    try:
        report: dict[str, Any] = json.loads(stdout)
    except ValueError:
        raise ShopUnavailableError(f"`holdfast audit` failed with exit status {status}: {stderr.strip()}") from None
    violations = [
        violation if isinstance(violation, str) else json.dumps(violation) for violation in report["violations"]
    ]
    return violations or ([] if report["ok"] and status == 0 else [f"the audit failed with exit status {status}"])


async def _holdfast(*arguments: str) -> tuple[int, str, str]:
    """Run a command and return its exit status, standard output and standard error."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "infrastructure.local",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await child.communicate()
    return child.returncode or 0, stdout.decode(), stderr.decode()
