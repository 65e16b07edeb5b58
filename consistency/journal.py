"""A stage's bounded log of the activations it sent, by position: what a replacement is rebuilt from.

Knows rows of equal size and a byte budget. When the budget is passed the oldest whole entries go; whoever asks for
them is told that the journal is short, and the owner falls to the next repair tier (invariant 7).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from paceline.consistency.invariants import require
from paceline.wire.codec import Buffer


@dataclass(frozen=True, slots=True)
class Entry:
    """Positions ``[start, start + n)``; ``len(data) == n * row_bytes``."""

    start: int
    n: int
    data: memoryview

    @property
    def end(self) -> int:
        return self.start + self.n


class Journal:
    """Contiguous positions ``[first, end)`` of one session. `budget` in bytes; 0 keeps nothing."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._end = 0

    @property
    def first(self) -> int:
        """The oldest position still held; equal to `end` where nothing is."""
        return self._entries[0].start if self._entries else self._end

    @property
    def end(self) -> int:
        return self._end

    @property
    def nbytes(self) -> int:
        return self._bytes

    def append(self, start: int, n: int, data: Buffer) -> None:
        """Log positions that directly follow the last ones."""
        require(2, start == self._end, f"journal at {self._end} is given {start}")
        view = memoryview(data)
        self._entries.append(Entry(start, n, view))
        self._bytes += len(view)
        self._end = start + n
        while self._bytes > self._budget and self._entries:
            self._bytes -= len(self._entries.popleft().data)

    def crop(self, length: int) -> None:
        """Forget positions from `length` on."""
        while self._entries and self._entries[-1].start >= length:
            self._bytes -= len(self._entries.pop().data)
        if self._entries and self._entries[-1].end > length:
            last = self._entries.pop()
            kept = length - last.start
            row = len(last.data) // last.n
            self._entries.append(Entry(last.start, kept, last.data[: kept * row]))
            self._bytes -= (last.n - kept) * row
        self._end = min(self._end, length)

    def clear(self) -> None:
        """Hold nothing."""
        self._entries.clear()
        self._bytes = self._end = 0

    def read(self, start: int, most: int) -> tuple[int, memoryview]:
        """``(n, rows)`` for positions ``[start, start + n)``, n ≤ `most`. Neighbouring entries are joined, so that a
        replacement prefills instead of decoding. Raises KeyError where `start` is not held.
        """
        if not self.first <= start < self._end:
            raise KeyError(start)
        parts: list[memoryview] = []
        n = 0
        for entry in self._entries:
            if entry.end <= start:
                continue
            if n == most:
                break
            row = len(entry.data) // entry.n
            skip = max(0, start - entry.start)
            take = min(entry.n - skip, most - n)
            parts.append(entry.data[skip * row : (skip + take) * row])
            n += take
        return n, parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
