"""A node's settings, every "auto" already resolved by whoever built it (cli)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Bounds and rhythms of one node. Times in seconds, sizes in bytes.

    `most_positions`: positions in one engine step (a prefill chunk and the decodes beside it).
    `orphan_s`: how long a session outlives its owner's link. `drain_s`: how long a leaving node lets sessions finish
    before it asks their owners to reroute, and once more the same until it goes anyway.
    `shared_prefixes`: what one owner's prompt left behind serves others too; they could then tell by its speed.
    """

    most_positions: int = 512
    journal_bytes: int = 64 * 1024 * 1024
    """In memory, of each session."""
    journal_disk_bytes: int = 0
    """On disk, of all sessions together; 0: none, and what memory does not hold is recomputed after a failure."""
    orphan_s: float = 10.0
    announce_s: float = 4.0
    offer_s: float = 12.0
    drain_s: float = 5.0
    near_peers: int = 16
    region: str = ""
    """Where its owner says it stands; told in offers, checked by nobody."""
    shared_prefixes: bool = False
    upload_bytes_per_s: float = 0.0
    """Of weights, to all peers together; 0: no limit."""
    agent: str = "paceline"
