"""Prefixes that need not be computed again: runs of blocks by the digest of what they were made from.

A block's digest names all input up to its end (engine.chain), so a block that is found stands for everything before
it, too. Blocks lie in the sessions that computed them and, once those are closed, in extents: runs of blocks that
nobody else holds, in memory or in a file, the least recently used going first. A reuse copies. Knows tensors and
digests; refuses to know sessions' names, links and models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from paceline.engine.chain import BLOCK
from paceline.engine.spill import SpillFile


class Holder(Protocol):
    """Something that holds positions: tensors ``[heads, n, size]`` in a fixed order."""

    def parts(self, start: int, end: int) -> Iterator[Tensor]:
        """Of positions ``[start, end)``."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """Positions ``[start, end)`` lie in `holder`."""

    holder: Holder
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PrefixLimits:
    """Bytes that kept prefixes may take in memory and in files; both 0: nothing is reused."""

    memory_bytes: int = 0
    disk_bytes: int = 0
    extents: int = 256
    """Each in a file of its own."""


@dataclass(slots=True)
class PrefixStatistics:
    """Positions looked up and reused since the start; bytes kept now."""

    asked: int = 0
    reused: int = 0
    extents: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


class Extent:
    """Blocks of one closed session, from position `start` on."""

    def __init__(self, start: int, digests: Sequence[bytes], nbytes: int) -> None:
        self.start, self.digests, self.nbytes = start, tuple(digests), nbytes
        self._tensors: list[Tensor] = []
        self._file: SpillFile | None = None

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Copy into memory."""
        self._tensors = [tensor.clone() for tensor in tensors]

    def write(self, folder: Path, tensors: Sequence[Tensor] = ()) -> None:
        """Move to a file. Raises OSError."""
        file = SpillFile(folder)
        file.append(tensors or self._tensors)
        self._file, self._tensors = file, []

    def parts(self, start: int, end: int) -> Iterator[Tensor]:
        inside = slice(start - self.start, end - self.start)
        if self._file is None:
            yield from (tensor[:, inside] for tensor in self._tensors)
        else:
            yield from (tensor[:, inside] for _, _, tensor in self._file.read())

    def free(self) -> None:
        """Hold nothing."""
        self._tensors = []
        if self._file is not None:
            self._file.close()


class Prefixes:
    """See the module's docstring. `folder` None: no files."""

    def __init__(self, limits: PrefixLimits, folder: Path | None) -> None:
        self.limits, self._folder = limits, folder
        self.statistics = PrefixStatistics()
        self._index: dict[bytes, Holder] = {}
        self._extents: OrderedDict[int, Extent] = OrderedDict()

    @property
    def enabled(self) -> bool:
        disk = self.limits.disk_bytes if self._folder is not None else 0
        return self.limits.memory_bytes > 0 or disk > 0

    def find(self, digests: Sequence[bytes], first: int) -> list[Found]:
        """The longest run of blocks `first`, `first` + 1, …, named by `digests`, that is held: in order, joined."""
        found: list[Found] = []
        for block, digest in enumerate(digests, first):
            holder = self._index.get(digest)
            if holder is None:
                break
            if found and found[-1].holder is holder:
                found[-1] = Found(holder, found[-1].start, (block + 1) * BLOCK)
            else:
                found.append(Found(holder, block * BLOCK, (block + 1) * BLOCK))
        for piece in reversed(found):  # the beginning is worth most: without it the rest is of no use
            if isinstance(piece.holder, Extent):
                self._extents.move_to_end(id(piece.holder))
        self.statistics.asked += len(digests) * BLOCK
        self.statistics.reused += found[-1].end - first * BLOCK if found else 0
        return found

    def note(self, holder: Holder, digests: Sequence[bytes]) -> None:
        """A session holds these blocks, as long as it is open."""
        for digest in digests:
            self._index.setdefault(digest, holder)

    def forget(self, holder: Holder, digests: Sequence[bytes]) -> None:
        """It holds them no more."""
        for digest in digests:
            if self._index.get(digest) is holder:
                del self._index[digest]

    def keep(self, holder: Holder, digests: Sequence[bytes]) -> None:
        """A session is about to close, with these blocks: what only it holds is kept."""
        mine = [block for block, digest in enumerate(digests) if self._index.get(digest) is holder]
        for first, last in _runs(mine):
            self._keep(first * BLOCK, digests[first : last + 1], list(holder.parts(first * BLOCK, (last + 1) * BLOCK)))
        self.forget(holder, digests)
        self._shrink()

    def clear(self) -> None:
        """Keep nothing."""
        while self._extents:
            self._drop()

    def _keep(self, start: int, digests: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        extent = Extent(start, digests, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        if extent.nbytes <= self.limits.memory_bytes:
            extent.hold(tensors)
            self.statistics.memory_bytes += extent.nbytes
        elif not self._to_disk(extent, tensors):
            return
        self._extents[id(extent)] = extent
        self._index |= dict.fromkeys(digests, extent)
        self.statistics.extents = len(self._extents)

    def _to_disk(self, extent: Extent, tensors: Sequence[Tensor] = ()) -> bool:
        if self._folder is None or extent.nbytes > self.limits.disk_bytes:
            return False
        try:
            extent.write(self._folder, tensors)
        except OSError:  # the disk is full: a prefix is only worth its room
            return False
        self.statistics.disk_bytes += extent.nbytes
        return True

    def _shrink(self) -> None:
        for extent in [extent for extent in self._extents.values() if not extent.on_disk]:
            if self.statistics.memory_bytes <= self.limits.memory_bytes:
                break
            if self._to_disk(extent):
                self.statistics.memory_bytes -= extent.nbytes
            else:
                self._drop(extent)
        while self.statistics.disk_bytes > self.limits.disk_bytes or len(self._extents) > self.limits.extents:
            self._drop()

    def _drop(self, extent: Extent | None = None) -> None:
        """One extent, the least recently used where none is named."""
        if extent is None:
            extent = next(iter(self._extents.values()))
        del self._extents[id(extent)]
        self.forget(extent, extent.digests)
        if extent.on_disk:
            self.statistics.disk_bytes -= extent.nbytes
        else:
            self.statistics.memory_bytes -= extent.nbytes
        extent.free()
        self.statistics.extents = len(self._extents)


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    first = 0
    for at, block in enumerate(blocks):
        if at + 1 == len(blocks) or blocks[at + 1] != block + 1:
            yield blocks[first], block
            first = at + 1
