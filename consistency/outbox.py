"""What a stage has sent downstream, to whom, and how far: the journal, and one cursor for each target.

A target is the next stage, or one of its standbys. Knows positions and rows. Refuses to know messages: stage.py writes
the frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from paceline.consistency.journal import Journal, Spill
from paceline.wire.codec import Buffer


class Piece(NamedTuple):
    """Rows of positions ``[start, start + n)``."""

    start: int
    n: int
    rows: Buffer


class Outbox:
    """See the module's docstring. `budget`: bytes of journal in memory."""

    def __init__(self, budget: int, spill: Spill | None = None) -> None:
        self.journal = Journal(budget, spill)
        self._cursors: dict[str, int] = {}

    def begin(self, targets: Iterable[str], at: int) -> None:
        """A new route: each target holds everything below `at`."""
        self._cursors = dict.fromkeys(targets, at)

    def crop(self, length: int) -> None:
        """Positions from `length` on were rolled back."""
        self.journal.crop(length)
        self._cursors = {peer: min(cursor, length) for peer, cursor in self._cursors.items()}

    def rewind(self, peer: str, have: int) -> None:
        """`peer` holds everything below `have`, and nothing else."""
        self._cursors[peer] = have

    def forget(self, peer: str) -> None:
        """Send `peer` nothing more until it asks."""
        self._cursors.pop(peer, None)

    def due(self, peer: str, length: int, most: int, fresh: Piece | None) -> tuple[list[Piece], int]:
        """``(pieces, reached)``: what `peer` lacks below `length`, and how far these pieces bring it.

        ``reached < length`` where the journal is short. `fresh`: rows just computed, which need not be in the journal.
        """
        cursor = self._cursors.get(peer)
        if cursor is None:
            return [], length
        pieces = []
        while cursor < length:
            piece = self._piece(cursor, most, fresh)
            if piece is None:
                break
            pieces.append(piece)
            cursor += piece.n
        self._cursors[peer] = cursor
        return pieces, cursor

    def _piece(self, start: int, most: int, fresh: Piece | None) -> Piece | None:
        if fresh is not None and fresh.start <= start < fresh.start + fresh.n:
            skip = start - fresh.start
            row = len(fresh.rows) // fresh.n
            rows = memoryview(fresh.rows)[skip * row :] if skip else fresh.rows
            return Piece(start, fresh.n - skip, rows)
        try:
            return Piece(start, *self.journal.read(start, most))
        except KeyError:
            return None
