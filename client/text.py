"""Tokens to text, as they come: whole characters only, and stop strings that may span tokens. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class StopMatcher:
    """Holds back the longest suffix that may still become a stop string.

    `feed` returns the text that is certain, and whether a stop string was completed (nothing of it, or behind it, is
    ever returned). `flush` returns what was held back when the tokens ended without one.
    """

    stops: Sequence[str] = ()
    _held: str = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Next text → ``(certain text, stopped)``."""
        self._held += text
        found = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            certain, self._held = self._held[: min(found)], ""
            return certain, True
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain, False

    def flush(self) -> str:
        """All that is left."""
        left, self._held = self._held, ""
        return left

    def _overlap(self, stop: str) -> int:
        """Length of the longest proper prefix of `stop` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
