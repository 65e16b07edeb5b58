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
    twice: frozenset[int] = frozenset()
    """Peers that may ride twice: at the beginning of the ring and at its end."""

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
    """The recursion for all `heads`. `limit` 0: any number of stages; else at most that many."""
    forward, closing = problem.hops()
    same = problem.peer[:, None] == problem.peer[None, :]
    several = limit > 0
    # into[j, i]: hop from i to j. Two of them where stages are counted: to another peer, and inside a peer.
    into = [np.where(same.T, np.inf, forward.T), np.where(same.T, forward.T, np.inf)] if several else [forward.T]
    best: Solution | None = None
    at_once = max(1, BLOCK // (max(limit, 1) * len(problem) * problem.layers))
    for first in range(0, len(heads), at_once):
        some = heads[first : first + at_once]
        levels = _levels(problem, some, max(limit, 1), into)
        found = _close(problem, some, levels, closing, into)
        if found is not None and (best is None or found.cost < best.cost):
            best = found
    return best


@dataclass(frozen=True, eq=False)
class _Level:
    """After one layer: the candidates that hold it, and ``value[head, stages - 1, candidate]``."""

    held: Ints
    value: Floats


def _levels(problem: Problem, heads: Ints, depth: int, into: list[Floats]) -> list[_Level]:
    """The recursion layer by layer. Between two layers at which nobody begins or ends it is the same step again."""
    held = np.flatnonzero(problem.start == 0)
    value = np.full((len(heads), depth, len(held)), np.inf)
    value[np.arange(len(heads)), 0, np.searchsorted(held, heads)] = problem.entry[heads] + problem.per_layer[heads]
    levels = [_Level(held, value)]
    changes = {*problem.start.tolist(), *problem.end.tolist()}
    entry, per_layer = problem.entry[held], problem.per_layer[held]
    hops: list[Floats] = []
    settled = False
    for layer in range(1, problem.layers):
        before = levels[-1]
        if layer in changes:
            held = np.flatnonzero((problem.start <= layer) & (problem.end > layer))
            hops = [whole[np.ix_(held, before.held)] for whole in into]
            entry, per_layer = problem.entry[held], problem.per_layer[held]
            settled = False
        elif not settled:
            hops, settled = [whole[np.ix_(held, held)] for whole in into], True
        value = _entered(before.value, hops)
        value += entry
        if settled:
            np.minimum(value, before.value, out=value)
        else:
            stays = np.flatnonzero(problem.start[held] < layer)
            stayed = before.value[:, :, np.searchsorted(before.held, held[stays])]
            value[:, :, stays] = np.minimum(value[:, :, stays], stayed)
        value += per_layer
        levels.append(_Level(held, value))
    return levels


def _entered(value: Floats, hops: list[Floats]) -> Floats:
    """Least cost of arriving; a hop to another peer climbs one stage where stages are counted. `hops`: to, from."""
    if len(hops) == 1:
        return _least(value, hops[0])
    entered = _least(value, hops[1])
    climbed = _least(value[:, :-1, :], hops[0])
    entered[:, 1:, :] = np.minimum(entered[:, 1:, :], climbed)
    return entered


def _least(value: Floats, hop: Floats) -> Floats:
    """Min-plus product: ``min_i value[h, k, i] + hop[j, i]``, in pieces of bounded size."""
    labels, depth, exits = value.shape
    rows = max(1, BLOCK // max(1, depth * exits * len(hop)))
    if labels <= rows:
        return np.minimum.reduce(value[:, :, None, :] + hop, axis=3)  # type: ignore[no-any-return]
    out = np.empty((labels, depth, len(hop)))
    for at in range(0, labels, rows):
        out[at : at + rows] = (value[at : at + rows, :, None, :] + hop).min(axis=3)
    return out


def _close(problem: Problem, heads: Ints, levels: list[_Level], closing: Floats, into: list[Floats]) -> Solution | None:
    """Close the loop, then walk the recursion back, finding each step's origin anew rather than storing them all."""
    tails = levels[-1].held
    total = levels[-1].value + problem.tail[tails] + closing[np.ix_(tails, heads)].T[:, None, :]
    if not total.size or not np.isfinite(total.min()):
        return None
    head, depth, at = (int(k) for k in np.unravel_index(int(total.argmin()), total.shape))
    chain = [int(tails[at])]
    for layer in range(problem.layers - 1, 0, -1):
        before, j = levels[layer - 1], chain[-1]
        options = [(float((row := before.value[head, depth] + into[-1][j, before.held]).min()), depth, row)]
        if len(into) == 2 and depth > 0:
            row = before.value[head, depth - 1] + into[0][j, before.held]
            options.append((float(row.min()), depth - 1, row))
        entered, came_from, row = min(options, key=lambda option: option[0])
        if problem.start[j] < layer:
            stayed = float(before.value[head, depth, np.searchsorted(before.held, j)])
            if stayed <= entered + problem.entry[j]:
                chain.append(j)
                continue
        chain.append(int(before.held[row.argmin()]))
        depth = came_from
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
    which admits the unlawful ring again. One that may ride at both ends has a fourth way: all layers up to x, and all
    from y on. The first lawful ring to be taken from the queue is the optimum, since the
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
        children = [_without(current, peer, x), _without(current, peer, y), _only(current, peer, x, y)]
        if peer in problem.twice:
            children.append(_only(_only(current, peer, 0, x), peer, y, problem.layers - 1))
        for child in children:
            solution = relaxed(child, cutoff)
            if solution is not None:
                heapq.heappush(queue, (solution.cost, next(tie), child, solution))
    return None


def _clash(problem: Problem, legs: tuple[Leg, ...]) -> tuple[int, int, int] | None:
    """A peer with two separate parts: ``(peer, last layer of the first part, first layer of the second)``."""
    parts: dict[int, list[list[int]]] = {}
    previous = -1
    for i, start, end in legs:
        peer = int(problem.peer[i])
        if peer == previous:
            parts[peer][-1][1] = end
        else:
            parts.setdefault(peer, []).append([start, end])
        previous = peer
    for peer, its in parts.items():
        both_ends = len(its) == 2 and its[0][0] == 0 and its[1][1] == problem.layers
        if len(its) > 1 and not (both_ends and peer in problem.twice):
            return peer, its[0][1] - 1, its[1][0]
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
