"""A node process that breaks one rule of weights on purpose; everything else of it is a real node.

``python evil_node.py corrupt|manifest|forge|replay <arguments of paceline …>``
"""

from __future__ import annotations

import sys

from paceline.node import weights
from paceline.node.blocks import StoreBlocks
from paceline.wire.codec import decode_header, encode_header
from paceline.wire.releases import Release, SignedRelease


def corrupt(blocks: bool) -> None:
    """Serve blocks (or manifests) with one bit flipped."""
    honest = StoreBlocks.piece

    def piece(self: StoreBlocks, digest: bytes, offset: int, length: int) -> tuple[int, bytes]:
        total, data = honest(self, digest, offset, length)
        if data and self._store.has(digest) is blocks:
            data = data[:-1] + bytes([data[-1] ^ 1])
        return total, data

    StoreBlocks.piece = piece  # type: ignore[method-assign]
    StoreBlocks.quick = lambda self, digest, offset, room: None  # type: ignore[method-assign]


def forge() -> None:
    """Gossip a release that the trusted publisher never signed."""

    def frontier(self: weights.Weights, names: object) -> tuple[SignedRelease, ...]:
        true = self.releases.history("team/arcee")[-1]
        release: Release = decode_header(true.body, Release)
        forged = Release(release.name, bytes(32), 99, release.publisher)
        return (SignedRelease(encode_header(forged), true.signature),)

    weights.Weights.frontier = frontier  # type: ignore[method-assign,assignment]


def replay() -> None:
    """Gossip the oldest release that is known, rightly signed."""

    def frontier(self: weights.Weights, names: object) -> tuple[SignedRelease, ...]:
        return (self.releases.history("team/arcee")[0],)

    weights.Weights.frontier = frontier  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    how = sys.argv.pop(1)
    {
        "corrupt": lambda: corrupt(True),
        "manifest": lambda: corrupt(False),
        "forge": forge,
        "replay": replay,
    }[how]()
    from paceline.cli.main import run

    run()
