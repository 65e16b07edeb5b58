"""Which of the possible rings a request takes: the cheapest, or one drawn so that many requests share the load.

Knows ring problems, capacities and a seed. Refuses to know offers and chance: one seed draws one ring from one view.

- ``latency``: the cheapest ring, exactly.
- ``throughput``: a ring drawn by the shares of the max-flow (capacity.py), whatever it costs in latency: requests with
  different seeds together put on each candidate what it can carry.
- ``fair``: the same draw among the rings that are at most `FAIR_SLACK` slower than the cheapest, by offered capacity,
  not by what is spare: of equals, none works while the other idles.

The draw. Every peer draws ``E``, exponential with mean 1, from the seed and its own id; candidate i's *lot* is
``E / a_i`` with its weight a_i, and each layer goes to the holder with the least lot. Of independent exponential
clocks, i's with rate a_i is the first with probability ``a_i / Σ a_j``: the share that the flow wants, at each layer.
Since a peer has one clock for all its layers, neighbouring layers mostly have the same winner, and rings stay short
(weighted consistent sampling, as in rendezvous hashing). "Least lot at each layer" is the ring of least total lot, so
the exact programme finds it with lots for seconds and hops for nothing, and every constraint of a ring (a peer rides
once, stage limits, ends of one's own, holes of a repair) is that programme's. Where such a constraint forbids the
winner, shares differ from the flow's; tests/routing/test_objectives.py states by how much.

Among rings within a limit, the least total lot is sought by a multiplier: lots are added to the seconds with the
largest weight that keeps the ring within the limit. Of candidates that cost the same, the lots alone decide then, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from paceline.routing.bounds import within
from paceline.routing.capacity import Capacity, flow_weights, held_weight, spare
from paceline.routing.latency import Floats, LatencyMap
from paceline.routing.plan import Drawn, Objective
from paceline.routing.problem import Leg, Problem, Solution, path_cost, ride_once
from paceline.routing.prune import solve_at_scale

FAIR_SLACK = 0.1
"""Rings up to so much slower than the cheapest are its equals."""

HALVINGS, WIDEST = 8, 1e3
"""Of the search for the multiplier: steps, and the range around one ring's time on either side."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """A ring problem, what each of its candidates can do, and the ids of the peers it indexes. `capacity` None: not for
    a draw."""

    problem: Problem
    capacity: Capacity | None = None
    peers: Sequence[str] = ()


def choose(
    classes: Sequence[Candidates], objective: Objective, seed: int
) -> tuple[tuple[Leg, ...], Drawn | None] | None:
    """The legs of the ring to take, and how it was drawn (None: it was not); None where there is no ring.

    `classes`: sets of candidates that may form a ring together; the ring is of one of them.
    """
    best: Solution | None = None
    if objective != "throughput":
        for each in classes:
            found = ride_once(each.problem, solve_at_scale, np.inf if best is None else best.cost)
            best = found or best
        if best is None or objective == "latency":
            return None if best is None else (best.legs, None)
    limit = np.inf if best is None else (1.0 + FAIR_SLACK) * best.cost
    made = [_lots(each, seed, limit) for each in classes]
    # The class that is drawn comes first: its chance is its share of the max-flow of all.
    for lots in sorted((each for each in made if each is not None), key=lambda lots: lots.turn):
        legs = _least_lots(lots, limit)
        if legs is not None:
            return legs, Drawn(lots.total(legs), lots.tokens_per_s)
    return None


@dataclass(frozen=True, eq=False)
class _Lots:
    """A problem with the lot of each candidate, per layer, scaled so that a ring's total is about 1; `tokens_per_s`:
    the max-flow of these candidates; `turn`: the class with the least comes first.
    """

    problem: Problem
    lot: Floats
    tokens_per_s: float
    turn: float

    def total(self, legs: tuple[Leg, ...]) -> float:
        return float(sum((b - a) * self.lot[i] for i, a, b in self.rows(legs)))

    def seconds(self, legs: tuple[Leg, ...]) -> float:
        return path_cost(self.problem, self.rows(legs))

    def rows(self, legs: tuple[Leg, ...]) -> tuple[Leg, ...]:
        """Legs by rows of the original table → by candidates of this problem."""
        own = self.problem
        return tuple(
            (int(np.flatnonzero((own.row == row) & (own.start <= a) & (own.end >= b))[0]), a, b) for row, a, b in legs
        )

    def alone(self) -> Problem:
        """Lots for seconds, and nothing else."""
        own, nothing = self.problem, np.zeros(len(self.problem))
        return replace(
            own, per_layer=self.lot, entry=nothing, tail=nothing, upload=nothing, latency=_nowhere(own.latency.peers)
        )

    def beside(self, weight: float) -> Problem:
        """Lots in addition to seconds."""
        return replace(self.problem, per_layer=self.problem.per_layer + weight * self.lot)


def _lots(given: Candidates, seed: int, limit: float) -> _Lots | None:
    """`limit` infinite: all candidates by what they have to spare; else those within it by what they offer."""
    everybody = math.isinf(limit)
    near = np.arange(len(given.problem)) if everybody else np.flatnonzero(within(given.problem, limit))
    problem = given.problem.take(near)
    if given.capacity is None or not len(problem) or not problem.covered():
        return None
    spans, able = (problem.layers, problem.start, problem.end), given.capacity.take(near)
    weight, tokens_per_s = flow_weights(*spans, spare(*spans, able) if everybody else able.layers_per_s)
    drawn, of = np.unique(problem.peer, return_inverse=True)
    clocks = np.array([exponential(seed, given.peers[int(peer)]) for peer in drawn])[of.ravel()]
    usual = float(np.median(held_weight(*spans, weight)))
    lot = clocks * usual / (problem.layers * np.maximum(weight, 1e-12 * usual))
    first = given.peers[int(problem.peer[0])]
    return _Lots(problem, lot, tokens_per_s, exponential(seed, f"class of {first}") / tokens_per_s)


def _least_lots(lots: _Lots, limit: float) -> tuple[Leg, ...] | None:
    """The ring of least total lot within `limit` seconds a token, as far as a multiplier can tell."""
    found = ride_once(lots.alone(), solve_at_scale)
    if found is None or lots.seconds(found.legs) <= limit:
        return None if found is None else found.legs
    best: tuple[Leg, ...] | None = None
    low, high = -math.log(WIDEST), math.log(WIDEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        found = ride_once(lots.beside(limit * math.exp(middle)), solve_at_scale)
        if found is not None and lots.seconds(found.legs) <= limit:
            best, low = found.legs, middle
        else:
            high = middle
    if best is None:
        cheapest = ride_once(lots.problem, solve_at_scale)
        best = None if cheapest is None or cheapest.cost > limit else cheapest.legs
    return best


def exponential(seed: int, name: str) -> float:
    """Exponential with mean 1, from a seed and a name."""
    digest = blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return -math.log((int.from_bytes(digest, "big") + 0.5) / 2.0**64)


def _nowhere(peers: int) -> LatencyMap:
    """Everybody in one place."""
    return LatencyMap(
        np.zeros((peers, 1)),
        np.zeros(peers),
        np.zeros(peers + 1, dtype=np.int64),
        np.zeros(0, dtype=np.int64),
        np.zeros(0),
    )
