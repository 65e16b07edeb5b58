"""The ring problem in bare numbers, its exact dynamic programme, and the rule that a peer rides once.

Knows columns of candidates and latencies. Refuses to know offers, requests or explanations.

A *candidate* is a run of layers that one peer may serve. A *path* is a list of legs ``(candidate, from, to)`` that
covers ``[0, layers)``; a leg may start and stop at any cut inside its candidate (early exit, late entry).

The programme. For a fixed head candidate h let ``V_b[i]`` be the cheapest way to have layers ``[0, b)`` done, the last
by candidate i. With ``W[i, j]`` the hop from i to j (0 inside a peer)::

    V_{b+1}[j] = per_layer[j] + min( V_b[j],  min_i V_b[i] + W[i, j] + entry[j] )     for j holding layer b

and the ring costs ``min_i V_L[i] + tail[i] + C[i, h]``. The min over h closes the loop exactly, which a single
shortest path cannot. It is Bellman's recursion on (cut, candidate) once for each head, all heads side by side as a
numpy axis. With a stage limit, "stages so far" joins the label.

Why once per peer: frames name a session, not a stage, so a peer has one part in a session. The programme alone might
use a peer twice (slow peer, fast neighbour, slow peer again). :func:`ride_once` is branch and bound over that rule.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.routing.latency import Floats, Ints, LatencyMap

Leg = tuple[int, int, int]
"""Row of the original table, first layer, end layer."""

COLUMNS = ("row", "peer", "start", "end", "per_layer", "entry", "tail", "upload")

BLOCK = 1 << 21
"""Numbers in one temporary of the programme: 16 MB."""


@dataclass(frozen=True, eq=False)
class Problem:
    """n candidates in columns. `row`: where each came from. Seconds; `peer` indexes `latency`.

    A leg of m layers costs ``entry + m · per_layer``; leaving over the network costs `upload` more; the last leg of
    the ring costs `tail` more.
    """

    layers: int
    row: Ints
    peer: Ints
    start: Ints
    end: Ints
    per_layer: Floats
    entry: Floats
    tail: Floats
    upload: Floats
    latency: LatencyMap
    max_stages: int

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Problem:
        """The same problem with only these candidates."""
        return self._with({name: getattr(self, name)[rows] for name in COLUMNS})

    def joined(self, more: Mapping[str, Ints | Floats]) -> Problem:
        """The same problem with more candidates, given by column, before its own."""
        return self._with({name: np.concatenate([more[name], getattr(self, name)]) for name in COLUMNS})

    def covered(self) -> bool:
        """True where every layer has a candidate."""
        steps = np.zeros(self.layers + 1, dtype=np.int64)
        np.add.at(steps, self.start, 1)
        np.add.at(steps, self.end, -1)
        return bool((np.cumsum(steps)[: self.layers] > 0).all())

    def _with(self, columns: Mapping[str, Any]) -> Problem:
        return replace(self, **columns)

    def hops(self) -> tuple[Floats, Floats]:
        """Forward hops W and closing hops C, n × n."""
        closing = self.latency.between(self.peer, self.peer)
        forward = closing + self.upload[:, None]
        forward[self.peer[:, None] == self.peer[None, :]] = 0.0
        return forward, closing


@dataclass(frozen=True, slots=True)
class Solution:
    """A ring: its cost in seconds, its legs as rows of the problem that was solved."""

    cost: float
    legs: tuple[Leg, ...]


def solve(problem: Problem, cutoff: float = np.inf, heads: Ints | None = None) -> Solution | None:
    """Cheapest ring that costs less than `cutoff`, peers possibly riding twice; None where there is none.

    `heads`: the candidates that may be the head, None for all that hold layer 0.
    """
    if not len(problem) or not problem.covered():
        return None
    heads = np.flatnonzero(problem.start == 0) if heads is None else heads
    best = _programme(problem, heads, 0)
    if best is not None and len(stages_of(problem, best.legs)) > problem.max_stages:
        best = _programme(problem, heads, problem.max_stages)
    return best if best is not None and best.cost < cutoff else None


def stages_of(problem: Problem, legs: tuple[Leg, ...]) -> list[int]:
    """Peers in riding order, consecutive legs of one peer counted once."""
    peers = [int(problem.peer[leg[0]]) for leg in legs]
    return [peer for at, peer in enumerate(peers) if at == 0 or peers[at - 1] != peer]


def path_cost(problem: Problem, legs: tuple[Leg, ...]) -> float:
    """Cost of a ring leg by leg: the definition that the programme is tested against."""
    total = 0.0
    for at, (i, start, end) in enumerate(legs):
        total += float(problem.entry[i] + (end - start) * problem.per_layer[i])
        after = legs[at + 1][0] if at + 1 < len(legs) else None
        if after is None:
            total += float(problem.tail[i]) + problem.latency.one_way(
                int(problem.peer[i]), int(problem.peer[legs[0][0]])
            )
        elif problem.peer[i] != problem.peer[after]:
            total += float(problem.upload[i]) + problem.latency.one_way(int(problem.peer[i]), int(problem.peer[after]))
    return total


# --- the programme --------------------------------------------------------------------------------------------------


def _programme(problem: Problem, heads: Ints, limit: int) -> Solution | None:
    """The recursion for all `heads` at once. `limit` 0: any number of stages; else at most that many."""
    forward, closing = problem.hops()
    same = problem.peer[:, None] == problem.peer[None, :]
    labels, depth = len(heads), max(limit, 1)
    value = np.full((labels, depth, len(problem)), np.inf)
    value[np.arange(labels), 0, heads] = problem.entry[heads] + problem.per_layer[heads]
    came: list[tuple[Ints, NDArray[np.int32], NDArray[np.int16]]] = []
    for cut in range(1, problem.layers):
        old = np.flatnonzero((problem.start < cut) & (problem.end >= cut))
        new = np.flatnonzero((problem.start <= cut) & (problem.end > cut))
        reached = value[:, :, old]
        entered, source = _enter(reached, forward[np.ix_(old, new)], same[np.ix_(old, new)], limit > 0)
        entered += problem.entry[new]
        stayed = value[:, :, new]
        # Candidates that do not hold layer cut - 1 cannot have stayed: their value is still infinite, or stale.
        stayed[:, :, problem.start[new] >= cut] = np.inf
        better = entered < stayed
        value[:, :, new] = np.where(better, entered, stayed) + problem.per_layer[new]
        level = np.broadcast_to(np.arange(depth, dtype=np.int16)[None, :, None], source.shape)
        from_same = (
            np.take_along_axis(same[np.ix_(old, new)], source.reshape(-1, len(new)), axis=0).reshape(source.shape)
            if limit > 0
            else np.ones(source.shape, dtype=bool)
        )
        previous = np.where(better, old[source], new[None, None, :]).astype(np.int32)
        came.append((new, previous, np.where(better & ~from_same, level - 1, level).astype(np.int16)))
    return _close(problem, heads, value, closing, came)


def _enter(reached: Floats, hop: Floats, same: NDArray[np.bool_], limited: bool) -> tuple[Floats, Ints]:
    """min and argmin over exits i of ``reached[·, ·, i] + hop[i, j]``; a hop between peers climbs one stage level."""
    labels, depth, exits = reached.shape
    best = np.empty((labels, depth, hop.shape[1]))
    source = np.empty(best.shape, dtype=np.int64)
    if limited:
        climbing = np.full_like(reached, np.inf)
        climbing[:, 1:, :] = reached[:, :-1, :]
    rows = max(1, BLOCK // max(1, depth * exits * hop.shape[1]))
    for at in range(0, labels, rows):
        part = slice(at, at + rows)
        total = (climbing if limited else reached)[part, :, :, None] + hop
        if limited:
            total = np.where(same, reached[part, :, :, None] + hop, total)
        source[part] = total.argmin(axis=2)
        best[part] = np.take_along_axis(total, source[part][:, :, None, :], axis=2)[:, :, 0, :]
    return best, source


def _close(
    problem: Problem,
    heads: Ints,
    value: Floats,
    closing: Floats,
    came: list[tuple[Ints, NDArray[np.int32], NDArray[np.int16]]],
) -> Solution | None:
    tails = np.flatnonzero(problem.end == problem.layers)
    total = value[:, :, tails] + problem.tail[tails] + closing[np.ix_(tails, heads)].T[:, None, :]
    if not total.size or not np.isfinite(total.min()):
        return None
    label, level, at = (int(k) for k in np.unravel_index(int(total.argmin()), total.shape))
    chain = [int(tails[at])]
    for new, previous, levels in reversed(came):
        column = int(np.searchsorted(new, chain[-1]))
        chain.append(int(previous[label, level, column]))
        level = int(levels[label, level, column])
    chain.reverse()
    return Solution(float(total.min()), legs_of(chain))


def legs_of(chain: list[int]) -> tuple[Leg, ...]:
    """Candidate per layer → legs."""
    legs: list[Leg] = []
    for layer, i in enumerate(chain):
        if legs and legs[-1][0] == i:
            legs[-1] = (i, legs[-1][1], layer + 1)
        else:
            legs.append((i, layer, layer + 1))
    return tuple(legs)


# --- a peer rides once ----------------------------------------------------------------------------------------------


def ride_once(
    problem: Problem, relaxed: Callable[[Problem, float], Solution | None], cutoff: float = np.inf
) -> Solution | None:
    """Cheapest ring under `cutoff` in which no peer has two separate parts; legs name rows of the original table.

    Best-first branch and bound. Where the relaxed optimum lets peer p run layers x < y but not some z between, every
    lawful ring either keeps p off x, or keeps p off y, or gives p all of ``[x, y]``: three smaller problems, none of
    which admits the unlawful ring again. The first lawful ring to be taken from the queue is the optimum, since the
    queue is ordered by lower bounds. Each branch removes at least one (peer, layer) pair, so it ends.
    """
    tie = count()
    first = relaxed(problem, cutoff)
    queue = [] if first is None else [(first.cost, next(tie), problem, first)]
    while queue:
        cost, _, current, found = heapq.heappop(queue)
        clash = _clash(current, found.legs)
        if clash is None:
            return Solution(cost, tuple((int(current.row[i]), a, b) for i, a, b in found.legs))
        peer, x, y = clash
        for child in (_without(current, peer, x), _without(current, peer, y), _only(current, peer, x, y)):
            solution = relaxed(child, cutoff)
            if solution is not None:
                heapq.heappush(queue, (solution.cost, next(tie), child, solution))
    return None


def _clash(problem: Problem, legs: tuple[Leg, ...]) -> tuple[int, int, int] | None:
    """A peer with two separate parts: ``(peer, last layer of the first part, first layer of the second)``."""
    last_layer: dict[int, int] = {}
    previous = -1
    for i, start, end in legs:
        peer = int(problem.peer[i])
        if peer != previous and peer in last_layer:
            return peer, last_layer[peer], start
        last_layer[peer] = end - 1
        previous = peer
    return None


def _without(problem: Problem, peer: int, layer: int) -> Problem:
    """The problem in which `peer` does not run `layer`."""
    return cut_out(problem, (problem.peer == peer), layer, layer + 1)


def _only(problem: Problem, peer: int, first: int, last: int) -> Problem:
    """The problem in which nobody but `peer` runs ``[first, last]``."""
    return cut_out(problem, problem.peer != peer, first, last + 1)


def cut_out(problem: Problem, touched: NDArray[np.bool_], start: int, end: int) -> Problem:
    """Take layers ``[start, end)`` from the `touched` candidates; what is left on either side stays."""
    hit = touched & (problem.start < end) & (problem.end > start)
    left, right = hit & (problem.start < start), hit & (problem.end > end)
    rows = np.concatenate([np.flatnonzero(~hit), np.flatnonzero(left), np.flatnonzero(right)])
    whole, lefts = int((~hit).sum()), int(left.sum())
    child = problem.take(rows)
    new_start, new_end = child.start.copy(), child.end.copy()
    new_end[whole : whole + lefts] = start
    new_start[whole + lefts :] = end
    return replace(child, start=new_start, end=new_end)
