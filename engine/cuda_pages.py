"""Pages of KV and who holds them: slots, block tables and lengths. Pure accounting; the tensors are cuda_span's.

A session gets all its pages when it opens, so admission is the only place that can refuse, a step never runs out, and
the device hears of a table once. Every session has a slot: its row in the device's block table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline.engine.shard import Key
from paceline.wire.errors import ContextOverflow, Overloaded
from paceline.wire.ids import Span

PAGE = 16
"""Positions of a page: 32 KB of an 8B Llama's layer. Kernels read whole tiles of pages, so larger ones win nothing."""


@dataclass(slots=True)
class Seat:
    """One session's place. `pages` in the order of positions; `length`: positions that its KV holds."""

    slot: int
    pages: tuple[int, ...]
    limit: int
    span: Span
    length: int = 0


class Pages:
    """A fixed number of pages and slots. `seated` is told each new seat, before it is used."""

    def __init__(
        self,
        positions: int,
        slots: int,
        max_context: int,
        page: int = PAGE,
        seated: Callable[[Seat], None] = lambda seat: None,
    ) -> None:
        self.page = page
        self.count = positions // page
        self._max_context, self._seated = max_context, seated
        self._free = list(reversed(range(self.count)))
        self._slots = list(reversed(range(slots)))
        self._seats: dict[Key, Seat] = {}

    @property
    def free(self) -> int:
        """Positions in pages that nobody holds."""
        return len(self._free) * self.page if self._slots else 0

    @property
    def row(self) -> int:
        """Pages of the longest session: the width of a block table."""
        return -(-self._max_context // self.page)

    def open(self, key: Key, positions: int, span: Span) -> Seat:
        """Raises Overloaded, ContextOverflow, or ValueError for a key that is open or a size below 1."""
        if key in self._seats or positions < 1:
            raise ValueError(f"session {key!r} is already open, or asks for {positions} positions")
        if positions > self._max_context:
            raise ContextOverflow(
                f"{positions} positions asked for, the model holds {self._max_context}",
                cure="shorten the prompt or ask for fewer tokens",
            )
        need = -(-positions // self.page)
        if need > len(self._free) or not self._slots:
            raise Overloaded(f"no KV room: {positions} positions asked for, {self.free} free")
        pages = tuple(self._free.pop() for _ in range(need))
        seat = self._seats[key] = Seat(self._slots.pop(), pages, positions, span)
        self._seated(seat)
        return seat

    def close(self, key: Key) -> None:
        """Unknown keys are fine."""
        seat = self._seats.pop(key, None)
        if seat is not None:
            self._free += reversed(seat.pages)
            self._slots.append(seat.slot)

    def __getitem__(self, key: Key) -> Seat:
        """Raises KeyError for a session that is not open."""
        return self._seats[key]

    def crop(self, key: Key, length: int) -> None:
        """Raises ValueError where `length` is over the KV's length."""
        seat = self._seats[key]
        if not 0 <= length <= seat.length:
            raise ValueError(f"crop to {length} of a KV of {seat.length} positions")
        seat.length = length


BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Sizes of a decode batch that have a captured graph; between them a batch is filled up with rows that do nothing."""


def bucket(rows: int) -> int | None:
    """The graph for a batch of so many decode steps; None where it is too large for any."""
    return next((size for size in BUCKETS if size >= rows), None)


def splits(rows: int, kv_heads: int) -> int:
    """Into how many parts a decode step's past is cut, so that few sessions still fill the machine (132 processors)."""
    parts = 1
    while parts < 32 and 2 * parts * rows * kv_heads <= 256:
        parts *= 2
    return parts


def tiles(segments: list[tuple[int, int, int, int]], rows: int) -> list[tuple[int, int, int, int]]:
    """Segments of a packed batch ``(first row, rows, first position, slot)`` cut to at most `rows` rows each. Those
    with the longest past come first: they take longest, and what is left at the end should be short."""
    cut = [
        (row + at, min(rows, n - at), start + at, slot) for row, n, start, slot in segments for at in range(0, n, rows)
    ]
    return sorted(cut, key=lambda tile: -(tile[2] + tile[1]))
