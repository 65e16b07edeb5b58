"""A stage's bounded log of the activations it sent, by position: what a replacement is rebuilt from.

Knows rows of equal size, a byte budget and, where it is given one, a place to spill to (a disk; it knows no files).
When the budget is passed the oldest whole entries are spilled, or go; whoever asks for what went is told that the
journal is short, and the owner falls to the next repair tier (invariant 7).
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import NamedTuple, Protocol

from paceline.consistency.invariants import require
from paceline.wire.codec import Buffer


class Spill(Protocol):
    """Room outside of memory for one journal."""

    def write(self, data: Buffer) -> int | None:
        """Where `data` lies from now on; None where there is no room."""

    def read(self, at: int, n: int) -> Buffer | None:
        """`n` bytes from `at`; None where they cannot be read any more."""

    def clear(self) -> None:
        """Nothing that was written is needed any more."""


class Entry(NamedTuple):
    """Positions ``[start, start + n)`` in `size` = ``n * row_bytes`` bytes: `data`, or in the spill from `at` on."""

    start: int
    n: int
    size: int
    data: memoryview | None
    at: int = 0

    @property
    def end(self) -> int:
        return self.start + self.n

    @property
    def row(self) -> int:
        """Bytes of one position."""
        return self.size // self.n


class Journal:
    """Contiguous positions ``[first, end)`` of one session. `budget`: bytes of memory; 0 keeps nothing there."""

    def __init__(self, budget: int, spill: Spill | None = None) -> None:
        self._budget = budget
        self._spill = spill
        self._spilled: deque[Entry] = deque()
        self._entries: deque[Entry] = deque()
        """In memory; they follow the spilled ones."""
        self._bytes = 0
        self._end = 0

    @property
    def first(self) -> int:
        """The oldest position still held; equal to `end` where nothing is."""
        oldest = self._spilled or self._entries
        return oldest[0].start if oldest else self._end

    @property
    def end(self) -> int:
        return self._end

    @property
    def nbytes(self) -> int:
        """In memory."""
        return self._bytes

    def append(self, start: int, n: int, data: Buffer) -> None:
        """Log positions that directly follow the last ones."""
        require(2, start == self._end, f"journal at {self._end} is given {start}")
        view = memoryview(data)
        self._entries.append(Entry(start, n, len(view), view))
        self._bytes += len(view)
        self._end = start + n
        while self._bytes > self._budget and self._entries:
            oldest = self._entries.popleft()
            self._bytes -= oldest.size
            self._move(oldest)

    def _move(self, oldest: Entry) -> None:
        """Spill an entry. Where that fails everything older goes too: a journal has no holes."""
        assert oldest.data is not None
        at = self._spill.write(oldest.data) if self._spill else None
        if at is not None:
            self._spilled.append(oldest._replace(data=None, at=at))
        else:
            self._forget_spilled()

    def _forget_spilled(self) -> None:
        self._spilled.clear()
        if self._spill is not None:
            self._spill.clear()

    def crop(self, length: int) -> None:
        """Forget positions from `length` on."""
        for entries in (self._entries, self._spilled):
            while entries and entries[-1].end > length:
                last = entries.pop()
                self._bytes -= last.size if last.data is not None else 0
                kept = max(0, length - last.start)
                if kept:
                    size = kept * last.row
                    data = None if last.data is None else last.data[:size]
                    entries.append(last._replace(n=kept, size=size, data=data))
                    self._bytes += size if data is not None else 0
        self._end = min(self._end, length)

    def clear(self) -> None:
        """Hold nothing."""
        self._forget_spilled()
        self._entries.clear()
        self._bytes = self._end = 0

    def read(self, start: int, most: int) -> tuple[int, memoryview]:
        """``(n, rows)`` for positions ``[start, start + n)``, n ≤ `most`. Neighbouring entries are joined, so that a
        replacement prefills instead of decoding. Raises KeyError where `start` is not held, or not readable any more.
        """
        if not self.first <= start < self._end:
            raise KeyError(start)
        parts: list[memoryview] = []
        n = 0
        for entry in chain(self._spilled, self._entries):
            if entry.end <= start:
                continue
            if n == most:
                break
            skip = max(0, start - entry.start)
            take = min(entry.n - skip, most - n)
            rows = self._rows(entry, skip * entry.row, take * entry.row)
            if rows is None:
                self._forget_spilled()
                raise KeyError(start)
            parts.append(rows)
            n += take
        return n, parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _rows(self, entry: Entry, begin: int, size: int) -> memoryview | None:
        if entry.data is not None:
            return entry.data[begin : begin + size]
        read = self._spill.read(entry.at + begin, size) if self._spill else None
        return None if read is None or len(read) != size else memoryview(read)
