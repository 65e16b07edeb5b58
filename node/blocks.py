"""Serves pieces of verified blocks and manifests to whoever asks: a pure client fetches its tokenizer this way."""

from __future__ import annotations

from typing import Protocol

from paceline.wire.messages import BlockPiece, BlockRequest


class BlockSource(Protocol):
    """Where blocks lie: `store.Store` in life."""

    def piece(self, digest: bytes, offset: int, length: int) -> tuple[int, bytes]:
        """``(size of the block, bytes)``; ``(0, b"")`` where it is not held."""
        ...


class NoBlocks:
    """A node that serves no blocks."""

    def piece(self, digest: bytes, offset: int, length: int) -> tuple[int, bytes]:
        return 0, b""


def answer(source: BlockSource, request: BlockRequest) -> tuple[BlockPiece, bytes]:
    """The piece asked for, as message and payload."""
    total, data = source.piece(request.hash, request.offset, request.length)
    return BlockPiece(request.request, total), data
