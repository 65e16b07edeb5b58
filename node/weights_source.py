"""The last resort of a node whose peers do not send a block: the folder, file or hub that its owner has named.

Knows how to run the conversion (`engine.refill`) beside the node, in a process of its own, and what it says at its end.
"""

from __future__ import annotations

import json
import subprocess
import sys

import trio

from paceline.engine.hub import HubRefused, HubUnavailable
from paceline.node.blocks import InThread
from paceline.store.errors import DiskFull, QuotaReached, StoreError
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import InternalError, PacelineError, from_code
from paceline.wire.ids import Span

_OWN: dict[str, type[PacelineError]] = {
    kind.code: kind for kind in (HubUnavailable, HubRefused, StoreError, DiskFull, QuotaReached)
}
"""Errors that no peer reports, and that a conversion may end with."""


async def refill(
    store: Store, manifest: Manifest, span: Span, source: str, in_thread: InThread = trio.to_thread.run_sync
) -> None:
    """All that lacks for `span`, each block with the hash that the manifest names.

    Raises CorruptBlock where the source has something else; QuotaReached, DiskFull; else what the source's kind says.
    """
    claim = await in_thread(store.reserve, store.missing(manifest, span))
    try:
        words = [str(store.root), manifest.revision.hex(), str(span), source]
        command = [sys.executable, "-m", "paceline.engine.refill", *words]
        done = await trio.run_process(command, capture_stdout=True, check=False, stdin=subprocess.DEVNULL)
        _raise_for(source, done.returncode, done.stdout)
    finally:
        store.lease.drop(claim)


def _raise_for(source: str, status: int, output: bytes) -> None:
    try:
        said = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        raise InternalError(f"reading {source} ended with status {status}", cure="see what it wrote above") from None
    if said:
        kind = _OWN.get(said["code"]) or type(from_code(said["code"], ""))
        raise kind(said["message"], cure=said["cure"])
