"""A disk for the journals of simulated nodes: small, so that it fills up, and now and then unreadable."""

from __future__ import annotations

from paceline.wire.codec import Buffer

SPILLING = 64
"""Nodes whose journals have this budget spill; others do not."""

_ROOM = 320
_READS_UNTIL_BROKEN = 7


class SmallSpill:
    """Of one journal: `_ROOM` bytes, and every seventh read fails."""

    def __init__(self) -> None:
        self._data = b""
        self._reads = 0

    def write(self, data: Buffer) -> int | None:
        """See `consistency.journal.Spill`."""
        at = len(self._data)
        if at + len(data) > _ROOM:
            return None
        self._data += bytes(data)
        return at

    def read(self, at: int, n: int) -> Buffer | None:
        """See `consistency.journal.Spill`."""
        self._reads += 1
        return None if self._reads % _READS_UNTIL_BROKEN == 0 else self._data[at : at + n]

    def clear(self) -> None:
        """See `consistency.journal.Spill`."""
        self._data = b""
