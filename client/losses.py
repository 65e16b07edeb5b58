"""Who fell out of this client's rings lately: a rate for each peer, from which routing expects what repairs will cost.

Knows peers and a clock. Refuses to know why a peer was lost, and to ban him.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from paceline.wire.ids import PeerId

HALF_LIFE_S = 600.0
"""What happened counts half after this time."""

LEAST = 0.02
"""Losses that count for less are forgotten."""


class Losses:
    """One client's. `now` in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._noted: dict[PeerId, tuple[float, float]] = {}
        """Losses as they counted at a time, and that time."""

    def note(self, peers: Iterable[PeerId]) -> None:
        """Each of them was lost once, now."""
        for peer in peers:
            self._noted[peer] = 1.0 + self._count(peer), self._now()

    def per_s(self) -> dict[str, float]:
        """Losses a second, for `routing.cost.CostTerms`: what counts now, over the time that it counts for."""
        self._noted = {peer: it for peer, it in self._noted.items() if self._count(peer) >= LEAST}
        return {str(peer): self._count(peer) * math.log(2.0) / HALF_LIFE_S for peer in self._noted}

    def _count(self, peer: PeerId) -> float:
        count, at = self._noted.get(peer, (0.0, 0.0))
        return count * math.exp2(-max(0.0, self._now() - at) / HALF_LIFE_S)
