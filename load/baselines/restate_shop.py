"""Opponent: the same change of a cart on Restate, a server that journals each call and keeps the state of its objects.

A product and a cart are virtual objects, which handle one call at a time. A cart calls its product and changes its
lines with the outcome. The key of the HTTP request makes a repeated one get the first outcome. The server is the
program of the npm package `@restatedev/restate-server`, with two partitions, the fastest number that was tried, and its
own defaults for durability (it waits for the disk). The handlers run in one process, over HTTP/2. It needs the
packages of `requirements/opponents.txt` and runs with their interpreter.

    .opponents/bin/python -m load.baselines.restate_shop --server …/bin/restate-server
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import restate
import uvloop
from hypercorn.asyncio import serve as serve_http
from hypercorn.config import Config
from restate import ObjectContext, VirtualObject

PARTITIONS: Final = 2
UNITS_PER_PRODUCT: Final = 1_000_000_000
SCARCE_UNITS: Final = 25
"""Stock of the product `SCARCE`, for a rush of buyers."""
READY_SECONDS: Final = 60.0

product = VirtualObject("Product")
cart = VirtualObject("Cart")


@product.handler()
async def hold(context: ObjectContext, quantity: int) -> bool:
    """Take units if they are available, and return whether they were."""
    held = (await context.get("held", type_hint=int) or 0) + quantity
    if held > (SCARCE_UNITS if context.key() == "SCARCE" else UNITS_PER_PRODUCT):
        return False
    context.set("held", held)
    return True


@product.handler()
async def release(context: ObjectContext, quantity: int) -> int:
    """Give units back, and return how many are still held."""
    held = (await context.get("held", type_hint=int) or 0) - quantity
    context.set("held", held)
    return held


@cart.handler()
async def add(context: ObjectContext, change: dict[str, Any]) -> dict[str, Any]:
    """Hold units for this cart, and return `held` or `refused`."""
    code, quantity = change["product"], change["quantity"]
    if not await context.object_call(hold, key=code, arg=quantity):
        return {"type": "refused", "reason": "out_of_stock", "product": code, "quantity": quantity}
    lines = await context.get("lines", type_hint=dict) or {}
    context.set("lines", {**lines, code: lines.get(code, 0) + quantity})
    return {"type": "held", "product": code, "quantity": quantity}


@cart.handler()
async def remove(context: ObjectContext, change: dict[str, Any]) -> dict[str, Any]:
    """Remove a line of this cart and give its units back."""
    lines = await context.get("lines", type_hint=dict) or {}
    code = change["product"]
    if quantity := lines.pop(code, 0):
        await context.object_call(release, key=code, arg=quantity)
        context.set("lines", lines)
    return {"type": "removed", "product": code, "quantity": quantity}


@cart.handler()
async def clear(context: ObjectContext, change: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - it has only an id
    """Remove all lines of this cart and give their units back."""
    for code, quantity in (await context.get("lines", type_hint=dict) or {}).items():
        await context.object_call(release, key=code, arg=quantity)
    context.set("lines", {})
    return {"type": "removed"}


def free_ports(number: int) -> list[int]:
    """Return ports that are free now."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def register(admin: int, handlers: int) -> None:
    """Register the address of the handlers; raise `OSError` if it does not answer yet or refuses."""
    body = json.dumps({"uri": f"http://127.0.0.1:{handlers}"}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{admin}/deployments", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - an address of this machine
        answer.read()


def wait_until_registered(children: Sequence[subprocess.Popen[bytes]], admin: int, handlers: int) -> None:
    """Register the handlers as soon as the server answers; raise `RuntimeError` if it exits or takes too long."""
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            register(admin, handlers)
        except OSError as error:
            if any(child.poll() is not None for child in children) or time.monotonic() > end:
                raise RuntimeError(f"the Restate server is not ready: {error}") from error
            time.sleep(0.05)
        else:
            return


def serve_handlers(port: int) -> None:
    """Serve the handlers until SIGINT or SIGTERM."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = None
    config.loglevel = "ERROR"
    config.h2_max_concurrent_streams = 2**31 - 1
    config.keep_alive_max_requests = 2**31 - 1
    uvloop.run(serve_http(restate.app([product, cart]), config))


def run(program: str) -> None:
    """Start the server and the handlers, print the address as one line of JSON, and stop them at SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ingress, admin, node, handlers = free_ports(4)
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="holdfast-restate-", ignore_cleanup_errors=True) as folder:
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "RESTATE_BASE_DIR": str(Path(folder) / "data"),
            "RESTATE_DEFAULT_NUM_PARTITIONS": str(PARTITIONS),
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_BIND_IP": "127.0.0.1",
            "RESTATE_BIND_PORT": str(node),
            "RESTATE_INGRESS__BIND_PORT": str(ingress),
            "RESTATE_ADMIN__BIND_PORT": str(admin),
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FILTER": "error,octocrab=off",
        }
        try:
            own = [sys.executable, "-m", "load.baselines.restate_shop", "--handlers", str(handlers)]
            children.append(subprocess.Popen(own, stdout=subprocess.DEVNULL))
            children.append(subprocess.Popen([program], cwd=folder, env=environment, stdout=subprocess.DEVNULL))
            wait_until_registered(children, admin, handlers)
            print(json.dumps({"url": f"http://127.0.0.1:{ingress}/Cart"}), flush=True)
            for child in children:
                child.wait()
        except KeyboardInterrupt:
            pass
        finally:
            for child in children:  # nothing of their data is needed
                child.kill()
            for child in children:
                child.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="path of the program restate-server")
    parser.add_argument("--handlers", type=int, help="only serve the handlers, on this port")
    given = parser.parse_args()
    if given.handlers is not None:
        serve_handlers(given.handlers)
    elif given.server is not None:
        run(str(Path(given.server).resolve()))
    else:
        parser.error("give --server")
