"""Serves pieces of verified blocks and manifests to whoever asks: a pure client fetches its tokenizer this way."""

from __future__ import annotations

from typing import Protocol

from paceline.store.store import Store
from paceline.wire.errors import CorruptBlock
from paceline.wire.ids import Revision
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


class StoreBlocks:
    """Blocks of a model store. Only text blocks and manifests are small enough to be served piece by piece."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def piece(self, digest: bytes, offset: int, length: int) -> tuple[int, bytes]:
        try:
            path = self._store.manifest_path(Revision(digest))
            if not path.exists():
                if not self._store.has(digest):
                    return 0, b""
                path = self._store.path(digest)
            with path.open("rb") as file:
                total = file.seek(0, 2)
                file.seek(min(offset, total))
                return total, file.read(length)
        except (OSError, CorruptBlock):
            return 0, b""
