"""Who may ask how often: a token bucket for each asker. Knows names and times; refuses to know what is asked."""

from __future__ import annotations

from collections import OrderedDict

from paceline.wire.errors import Overloaded

_MAX_METERED = 4096


class Meter:
    """`rate` plain requests a second for each asker, `burst` at once. Remembers the last few thousand askers."""

    def __init__(self, rate: float, burst: float, what: str) -> None:
        """`what`: the complaint, such as "asks for offers too often"."""
        self._rate = rate
        self._burst = burst
        self._what = what
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, now: float, cost: float = 1.0) -> None:
        """Raises Overloaded where `who` asks too much. `cost`: in plain requests."""
        tokens, then = self._level.pop(who, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - then) * self._rate)
        self._level[who] = (max(0.0, tokens - cost), now)
        if len(self._level) > _MAX_METERED:
            self._level.popitem(last=False)
        if tokens < cost:
            raise Overloaded(self._what, peer=who)
