"""The only door through which chance enters the simulation: one generator for each run, seeded.

Nothing else in this folder draws numbers, so a seed names a run completely.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """Draws of one run."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.unit = self._random.random
        """A number in [0, 1)."""

    def yes(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self.unit() * n)

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[int(self.unit() * len(options))]
