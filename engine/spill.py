"""KV in files: what left memory, and how it comes back. Knows tensors, positions and files; no sessions.

A file is nameless from its first byte (unlinked while open), so that nothing of anybody's prompt outlives the process,
however it ends. It is read, never mapped: its pages are the system's cache, not this process's memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Positions ``[start, start + n)`` at `offset` of the file; per tensor its heads, head size and dtype."""

    start: int
    n: int
    offset: int
    kinds: tuple[tuple[int, int, torch.dtype], ...]


class SpillFile:
    """Tensors ``[heads, n, size]`` of runs of positions, appended in order. Raises OSError where the disk is full."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._fd, path = tempfile.mkstemp(prefix="kv-", dir=folder)
        os.unlink(path)
        self._runs: list[Run] = []
        self._size = 0

    @property
    def length(self) -> int:
        """Positions held."""
        return self._runs[-1].start + self._runs[-1].n if self._runs else 0

    @property
    def nbytes(self) -> int:
        return self._size

    def append(self, tensors: Sequence[Tensor]) -> int:
        """Positions that follow the last ones. Returns the bytes written."""
        offset = self._size
        for tensor in tensors:
            data = tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data
            at = offset
            while len(data):
                written = os.pwrite(self._fd, data, at)
                data, at = data[written:], at + written
            offset = at
        kinds = tuple((tensor.shape[0], tensor.shape[2], tensor.dtype) for tensor in tensors)
        self._runs.append(Run(self.length, tensors[0].shape[1], self._size, kinds))
        written, self._size = offset - self._size, offset
        return written

    def crop(self, length: int) -> None:
        """Forget the runs that reach past `length`: what of them is still wanted must be in memory."""
        while self._runs and self._runs[-1].start + self._runs[-1].n > length:
            self._size = self._runs.pop().offset

    def read(self) -> Iterator[tuple[int, int, Tensor]]:
        """``(number of the tensor, start, tensor)`` of everything, one at a time."""
        for run in self._runs:
            offset = run.offset
            for number, (heads, size, dtype) in enumerate(run.kinds):
                tensor = torch.empty(heads, run.n, size, dtype=dtype)
                data = tensor.view(torch.uint8).numpy().reshape(-1).data
                while len(data):
                    got = os.preadv(self._fd, [data], offset)
                    if not got:
                        raise OSError(f"a spilled run ends {len(data)} bytes early")
                    data, offset = data[got:], offset + got
                yield number, run.start, tensor

    def parts(self, start: int, end: int) -> Iterator[Tensor]:
        """Positions ``[start, end)`` of each tensor, in order."""
        found: list[list[Tensor]] = []
        for number, first, tensor in self.read():
            if number == len(found):
                found.append([])
            found[number].append(tensor[:, max(0, start - first) : max(0, end - first)])
        yield from (torch.cat(parts, dim=1) for parts in found)

    def close(self) -> None:
        """Give the space back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()
