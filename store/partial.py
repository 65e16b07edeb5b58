"""A block that is being fetched: pieces land in a file at their place, and what has landed survives a kill.

::

    partial/<sha256>                 the block's bytes, with holes
    partial/<sha256>.<piece bytes>   one byte for each piece: 1 where it has landed

Nothing here is believed: a block counts once its whole file has the right hash. One process at a time works on a block
(a lock on the file, which ends with the process).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from paceline.store.disk import disk_errors
from paceline.store.manifest import Block
from paceline.store.store import Store
from paceline.wire.errors import CorruptBlock

_CACHED = 256 * 1024
"""What is copied and hashed at once stays in the processor's cache."""


class Partial:
    """One block under way. Open with `Partial.open`; `close` when done with it."""

    def __init__(self, store: Store, block: Block, piece_bytes: int, handle: int) -> None:
        self.block = block
        self.piece_bytes = piece_bytes
        self._store = store
        self._verified = False
        self._file = handle
        self._path = store.root / "partial" / block.hash
        self._map_path = self._path.with_name(f"{block.hash}.{piece_bytes}")
        with disk_errors(store.root):
            os.truncate(handle, block.size)
            self._map = os.open(self._map_path, os.O_RDWR | os.O_CREAT, 0o644)
            os.truncate(self._map, self.pieces)

    @classmethod
    def open(cls, store: Store, block: Block, piece_bytes: int) -> Partial | None:
        """None where another process is fetching this block, or has just completed it. Raises DiskFull, StoreError."""
        folder = store.root / "partial"
        with disk_errors(store.root):
            folder.mkdir(exist_ok=True)
            handle = os.open(folder / block.hash, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if not _is_at(handle, folder / block.hash):
            os.close(handle)  # the other process completed it in between: this is the store's own file by now
            return None
        return cls(store, block, piece_bytes, handle)

    @property
    def pieces(self) -> int:
        """How many pieces the block has; an empty block has one, which is empty."""
        return max(1, -(-self.block.size // self.piece_bytes))

    def landed(self) -> set[int]:
        """Pieces that are here, from this process or one before."""
        return {at for at, flag in enumerate(os.pread(self._map, self.pieces, 0)) if flag}

    def write(self, piece: int, data: memoryview) -> None:
        """A piece's bytes. The mark follows the bytes, so that a kill in between costs the piece and no more.

        Raises DiskFull, StoreError; what landed before stays.
        """
        self._verified = False
        at = piece * self.piece_bytes
        with disk_errors(self._store.root):
            while data:  # a disk that runs full takes a part first, and refuses the rest
                put = os.pwrite(self._file, data, at)
                data, at = data[put:], at + put
            os.pwrite(self._map, b"\x01", piece)

    def digests(self, pieces: Iterable[int]) -> dict[int, bytes]:
        """The hash of each of these pieces as they lie here."""
        return {at: sha256(os.pread(self._file, self.piece_bytes, at * self.piece_bytes)).digest() for at in pieces}

    def verify(self) -> None:
        """Raises CorruptBlock where the file is not the block."""
        hasher, at, room = sha256(), 0, memoryview(bytearray(_CACHED))
        while got := os.preadv(self._file, [room], at):
            hasher.update(room[:got])
            at += got
        self._verified = at == self.block.size and hasher.digest() == self.block.digest
        if not self._verified:
            raise CorruptBlock(f"what was fetched as block {self.block.hash[:12]} is another one")

    def complete(self) -> None:
        """The block, verified and not written to since, enters the store, and is on the disk. Raises DiskFull."""
        assert self._verified, "nothing enters the store by its name alone"
        self._store.adopt(self._path, self._file, self.block)
        self._map_path.unlink(missing_ok=True)

    def reset(self) -> None:
        """Forget everything that has landed."""
        os.truncate(self._map, 0)
        os.truncate(self._map, self.pieces)

    def close(self) -> None:
        """Let go of the block; what has landed stays."""
        os.close(self._file)
        os.close(self._map)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def compare(known: Mapping[int, bytes], good: Mapping[int, bytes]) -> set[int]:
    """Pieces whose digests differ."""
    return {at for at, digest in known.items() if good.get(at) != digest}
