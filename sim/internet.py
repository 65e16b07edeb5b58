"""A made-up Internet for simulations: where nodes are, and the true round trip of any two.

Knows geometry and a seed. Refuses to know coordinates (routing/coordinates.py has to find them out).

The generator: 30 cities on a map of 120 × 60 ms of round trip; nodes choose one by a Zipf law and scatter 1 ms around
it; access links are log-normal (median 4 ms of round trip for a pair, i.e. 2 ms an end); each pair has a detour of its
own, log-normal with 8 %, which no coordinate can express, and one pair in twenty a bad one (half as long again), which
breaks the triangle inequality. The order of these figures is that of published matrices (King, PlanetLab); it was
chosen, not fitted.
"""

from __future__ import annotations

import math

from paceline.sim.chance import Chance

CITIES = 30
MAP_S = (0.120, 0.060)
SCATTER_S = 0.001
ACCESS_S, ACCESS_SPREAD = 0.002, 0.6
DETOUR, BAD_SHARE, BAD_FACTOR = 0.08, 0.05, 1.5

_MASK = (1 << 64) - 1


class Internet:
    """`nodes` of them. Round trips in seconds, without jitter; `sample` adds that."""

    def __init__(self, nodes: int, seed: int) -> None:
        chance = Chance(seed)
        cities = [(chance.between(0.0, MAP_S[0]), chance.between(0.0, MAP_S[1])) for _ in range(CITIES)]
        weights = [1.0 / (rank + 1) for rank in range(CITIES)]
        self.nodes = nodes
        self._seed = seed
        self._chance = chance
        self._place: list[tuple[float, float]] = []
        self._access: list[float] = []
        for _ in range(nodes):
            x, y = cities[_weighted(chance, weights)]
            self._place.append((x + SCATTER_S * normal(chance), y + SCATTER_S * normal(chance)))
            self._access.append(ACCESS_S * math.exp(ACCESS_SPREAD * normal(chance)))

    def rtt_s(self, a: int, b: int) -> float:
        """The round trip of two nodes: the same both ways, and every time."""
        if a == b:
            return 0.0
        return (math.dist(self._place[a], self._place[b]) + self._access[a] + self._access[b]) * self._detour(a, b)

    def sample_s(self, a: int, b: int) -> float:
        """One ping: queues on the way only ever add, a tenth on average."""
        return self.rtt_s(a, b) * (1.0 - 0.1 * math.log(1.0 - self._chance.unit()))

    def _detour(self, a: int, b: int) -> float:
        """Drawn from the pair itself, so that no matrix has to be kept."""
        one = _mixed(self._seed, min(a, b), max(a, b))
        two, three = _mixed(one, 1, 2), _mixed(one, 3, 4)
        u, v, w = ((bits + 1) / (_MASK + 2) for bits in (one, two, three))
        detour = math.exp(DETOUR * math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v))
        return detour * (BAD_FACTOR if w < BAD_SHARE else 1.0)


def normal(chance: Chance) -> float:
    """Box and Muller's transform."""
    return math.sqrt(-2.0 * math.log(1.0 - chance.unit())) * math.cos(2.0 * math.pi * chance.unit())


def _weighted(chance: Chance, weights: list[float]) -> int:
    left = chance.unit() * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0.0:
            return index
    return len(weights) - 1


def _mixed(*numbers: int) -> int:
    """64 bits that look random (the finaliser of SplitMix64, once for each number)."""
    z = 0x9E3779B97F4A7C15
    for number in numbers:
        z = (z ^ number) + 0x9E3779B97F4A7C15 & _MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
        z ^= z >> 31
    return z
