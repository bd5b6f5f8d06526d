"""Differences between the options and settings of an `up` and those of the shop that already runs."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any, Final

from infrastructure.local.supervision.services import SERVICE_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infrastructure.local.supervision.startup_plan import UpOptions

PREFIX: Final = "HOLDFAST_"
WITHOUT_EFFECT: Final = frozenset({"HOLDFAST_ROOT", "HOLDFAST_HTTP_URL", "HOLDFAST_MAVEN_URL"})
"""Variables that change nothing in a shop: where it is, and where downloads come from."""


def setting_hashes(environ: Mapping[str, str], key: str) -> dict[str, str]:
    """Return a hash of each setting in an environment, by upper-case name.

    `stack.json` keeps the hashes, so that a later `up` can compare its settings. A setting may be a password, and
    `key` is a secret of the root directory.
    """
    return {
        name.upper(): hmac.new(key.encode(), value.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()
        for name, value in environ.items()
        if name.upper().startswith(PREFIX) and name.upper() not in WITHOUT_EFFECT
    }


def differences(
    options: UpOptions, environ: Mapping[str, str], key: str, state: Mapping[str, Any], own: Mapping[str, str]
) -> list[str]:
    """Return what an `up` asks for that the running shop is not, one phrase each.

    `state` is the content of `stack.json`, and `own` the shop's own addresses as `holdfast env` exports them. Options
    that are not given and settings that are not set ask for nothing.
    """
    running = _workers(state)
    found = []
    for name, number in options.workers.items():
        if name in options.named_workers and running.get(name, 0) != number:
            found.append(f"--workers {name}={number} (running: {running.get(name, 0)})")
    if options.only and options.only != frozenset(running):
        found.append(f"--only {','.join(sorted(options.only))} (running: {','.join(sorted(running)) or 'no services'})")
    if options.infra_only and running:
        found.append(f"--infra-only (running: {','.join(sorted(running))})")
    if not options.limits and state.get("limits") == "on":
        found.append("--no-limits (running: with limits)")
    applied: Mapping[str, str] | None = state.get("settings")
    if applied is not None:  # a supervisor of an earlier version has not recorded them
        given = {name: value for name, value in environ.items() if own.get(name.upper()) != value}
        asked = setting_hashes(given, key)
        found += [f"the setting {name}" for name in sorted(asked) if applied.get(name) != asked[name]]
    return found


def _workers(state: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of processes of each service that the shop runs."""
    names = list(state.get("services", {}))
    counts = {
        kind.name: sum(1 for name in names if name == kind.name or name.rpartition("-")[0] == kind.name)
        for kind in SERVICE_TYPES
    }
    return {name: number for name, number in counts.items() if number}
