"""Who was lately slower than his offer said: a price that fades, which every new ring of this client pays.

Knows peers, seconds and a clock. Refuses to ban: a straggler rides again where he is still the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from paceline.wire.ids import PeerId

HALF_LIFE_S = 60.0
"""The price halves in this time: nobody who is left alone can show that he has become quick again."""

LEAST_S = 0.001
"""Less is forgotten."""


class Stragglers:
    """One client's. `now` in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._noted: dict[PeerId, tuple[float, float]] = {}

    def note(self, slow: Mapping[PeerId, float]) -> None:
        """Excess over the offer, seconds per token, as measured now."""
        for peer, excess_s in slow.items():
            self._noted[peer] = excess_s, self._now()

    def excess_s(self) -> dict[str, float]:
        """The price of each peer now, for `routing.cost.CostTerms`."""
        now = self._now()
        prices = {peer: excess * 0.5 ** ((now - at) / HALF_LIFE_S) for peer, (excess, at) in self._noted.items()}
        self._noted = {peer: it for peer, it in self._noted.items() if prices[peer] >= LEAST_S}
        return {str(peer): prices[peer] for peer in self._noted}
