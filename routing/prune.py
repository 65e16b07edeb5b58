"""Exact rings among ten thousand candidates: bounds that throw away, proven, almost everybody.

Knows the ring problem and its geometry. Refuses to approximate: whatever is dropped cannot be in a cheaper ring than
the one in hand, and what is left goes to the exact programme of problem.py.

A hop's latency is at least ``r |x_i - x_j| + g_i + g_j`` (see :func:`_geometry`). Around a closed ring every stage is
entered once and left once, so without the distances the cost falls apart into stages, and a sweep over the cuts gives
in O(spans) the cheapest such ring *through each candidate* i, ``thr_i`` (forward and backward programme, joined). And a
closed tour through head c and candidate j is at least ``2 r |x_c - x_j|`` long. Hence for a ring in hand that costs U

    candidate j rides with head c in a cheaper ring  only if  max(thr_c, thr_j) + 2 r |x_c - x_j| < U.        (disc)

A peer that holds all layers may lead a ring and end it too, with others between: then the token's way home is free, and
what the bounds charge for it at both ends is given back (:func:`finish_s`).

So each head sees only a small disc of candidates. Inside each disc the sweep is repeated (sweep.py): with the far-away
fast machines gone it is much sharper, it now knows the distance from the head (in bands, which cost what lies between
them), and it tells what a candidate costs as the ring's head from what it costs as a rider; that kills most heads and
shrinks the other discs. Heads of one neighbourhood are treated as one head first, then in smaller neighbourhoods, then
each for itself. The exact programme runs over what is left, nearby heads together. The ring in hand comes from the disc
that looks best when every hop is charged the way over the head (an upper bound on the distance, by the triangle
inequality); where a sweep leaves many, a small exact programme around the best head looks for a better one.

Sources: bounding by a relaxed dynamic programme run from both ends, as in Held & Karp's and Christofides, Mingozzi &
Toth's state-space relaxation ("State-space relaxation procedures for the computation of bounds to routing problems",
Networks 11, 1981); the disc is this project's own. Regret 0 against brute force and against the plain programme is a
property test. Worst case (no geometry, all machines alike) nothing is dropped and the plain programme runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.routing.bounds import SLACK, finish_s, holds_all, ring_bounds, safe_heights, several
from paceline.routing.latency import Floats, Ints, shortened
from paceline.routing.problem import Problem, Solution, solve
from paceline.routing.sweep import Rows, through
from paceline.routing.view import Bools

PLAIN = 40
"""Up to so many candidates the plain programme is quicker than the bounds."""

HINT_HEADS, HINT_POOL, HINT_SIZE = 24, 1_500, 40
"""For the first ring in hand: heads tried, candidates considered, candidates per disc."""

FEW = 60
"""So many candidates left after a sweep, and the exact programme over all of them is quicker than another sweep."""

BATCH = 96
"""Candidates in one exact programme, so that heads of one neighbourhood share it."""

CELLS = 6
"""Cells of the grid of neighbourhoods across the width of a disc."""

FINER = 3
"""Cells of the finer grid across one of the coarser."""

MANY = 600
"""So many pairs left after a sweep, and a better ring in hand is worth a small exact programme."""

BANDS = 8
"""Ranges of distance from the head that a sweep tells apart."""

FAR_S, MIN_STRETCH = 5e-3, 0.3
"""Pairs from which the stretch r is read, seconds apart; and its least value."""


def solve_at_scale(problem: Problem, cutoff: float = np.inf) -> Solution | None:
    """As :func:`paceline.routing.problem.solve`, and equal to it; quick where latencies have geometry."""
    if len(problem) <= PLAIN or not problem.covered():
        return solve(problem, cutoff)
    bounds = ring_bounds(problem, safe_heights(problem))
    best = _better(_alone(problem, cutoff), None)
    size = HINT_SIZE
    while best is None and size < 4 * len(problem):
        best, size = _first_ring(problem, bounds, size, cutoff), 4 * size
    limit = cutoff if best is None else best.cost
    near = np.flatnonzero(bounds <= limit + SLACK)
    narrow = problem.take(near)
    found = _around_heads(narrow, bounds[near], limit)
    return _better(best, None if found is None else _renamed(found, near))


# --- geometry -------------------------------------------------------------------------------------------------------


def _geometry(problem: Problem, bounds: Floats, limit: float) -> tuple[float, Floats]:
    """r and g with ``latency(i, j) >= r |x_i - x_j| + g_i + g_j`` for every hop that a ring under `limit` can use.

    Estimated hops satisfy it with r = 1 and the heights. Measured ones may be shorter: r gives way to what is relative
    (noise grows with distance), and what still misses comes off the heights of both ends. Pairs so long that no ring
    under the limit can use them are ignored: a wrong ocean crossing must not soften the bounds inside a city.
    """
    latency = problem.latency
    source, target, seconds = latency.measured_among(np.unique(problem.peer))
    safe = latency.safe_height
    peer_bound = np.full(latency.peers, np.inf)
    np.minimum.at(peer_bound, problem.peer, bounds)
    excess = seconds - safe[source] - safe[target]
    usable = np.maximum(peer_bound[source], peer_bound[target]) + excess <= limit + SLACK
    source, target, seconds = source[usable], target[usable], seconds[usable]
    gap = np.linalg.norm(latency.place[source] - latency.place[target], axis=1)
    far = gap > FAR_S
    ratio = (seconds - latency.height[source] - latency.height[target])[far] / gap[far]
    stretch = float(np.clip(np.quantile(ratio, 0.01), MIN_STRETCH, 1.0)) if len(ratio) else 1.0
    height = shortened(latency.height, source, target, seconds - stretch * gap)[problem.peer]
    if height.min() < 0.0:
        # The sweeps forget who has ridden: who is paid for being entered would be entered again and again.
        least = float((seconds / np.maximum(gap, SLACK)).min())
        stretch = min(stretch, max(least, MIN_STRETCH))
        height = shortened(latency.height, source, target, seconds - stretch * gap)[problem.peer]
    return stretch, np.where(several(problem), np.minimum(height, 0.0), height)


# --- a ring in hand -------------------------------------------------------------------------------------------------


def _alone(problem: Problem, cutoff: float) -> Solution | None:
    """The best ring of one candidate, which has no hops at all: the bounds do not speak of it."""
    whole = np.flatnonzero((problem.start == 0) & (problem.end == problem.layers))
    if not len(whole):
        return None
    cost = problem.entry[whole] + problem.layers * problem.per_layer[whole] + problem.tail[whole]
    at = int(cost.argmin())
    return Solution(float(cost[at]), ((int(whole[at]), 0, problem.layers),)) if cost[at] < cutoff else None


def _first_ring(problem: Problem, bounds: Floats, size: int, cutoff: float) -> Solution | None:
    """A good ring, quickly: the exact ring of the disc that looks best with every hop charged over the head."""
    place = problem.latency.place[problem.peer]
    heads = np.flatnonzero(problem.start == 0)
    heads = heads[np.argsort(bounds[heads], kind="stable")[:HINT_HEADS]]
    pool = np.argsort(bounds, kind="stable")[:HINT_POOL]
    step = place[heads][:, None, :] - place[pool][None, :, :]
    gap = np.sqrt(np.einsum("ijk,ijk->ij", step, step))
    size = min(size, len(pool))
    picks = np.argpartition(bounds[pool][None, :] + 2.0 * gap, size - 1, axis=1)[:, :size]
    at, group = pool[picks].ravel(), np.repeat(np.arange(len(heads)), size)
    side = problem.latency.height[problem.peer[at]] + np.take_along_axis(gap, picks, axis=1).ravel()
    star = Rows(
        problem.layers, problem.start[at], problem.end[at],
        group, np.zeros_like(group), len(heads), 1, np.zeros(len(heads)),
        side + problem.entry[at], side + problem.upload[at], side + problem.tail[at], problem.per_layer[at],
    )  # fmt: skip
    promise = through(star).reshape(len(heads), size).min(axis=1)
    disc = int(promise.argmin())
    chosen = np.unique(np.append(pool[picks[disc]], heads[disc]))
    found = solve(problem.take(chosen), cutoff)
    return None if found is None else _renamed(found, chosen)


def _better(a: Solution | None, b: Solution | None) -> Solution | None:
    if a is None or b is None:
        return a or b
    return b if b.cost < a.cost else a


def _renamed(solution: Solution, rows: Ints) -> Solution:
    """Legs of a sub-problem as rows of the problem that it was taken from."""
    return Solution(solution.cost, tuple((int(rows[i]), start, end) for i, start, end in solution.legs))


# --- discs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Centres:
    """Heads, or neighbourhoods of heads. `of`: per candidate the centre whose head it is, -1 for the others.

    `place` is stretched; all heads of a centre lie within `radius` of it, and `bound` is the least of their ``thr``.
    The distance to a centre is counted from its rim, which keeps the triangle inequality.
    """

    place: Floats
    radius: Floats
    bound: Floats
    of: Ints


def _around_heads(problem: Problem, bounds: Floats, limit: float) -> Solution | None:
    """The cheapest ring of two or more candidates below `limit`, or None.

    Neighbourhoods of heads first, then parts of those that are left, then single heads.
    """
    stretch, height = _geometry(problem, bounds, limit)
    bounds = ring_bounds(problem, height)
    kept = np.flatnonzero(bounds <= limit + SLACK)
    problem, height, bounds = problem.take(kept), height[kept], bounds[kept]
    if not len(problem) or not problem.covered():
        return None
    place = stretch * problem.latency.place[problem.peer]
    heads = np.flatnonzero(problem.start == 0)
    side = max(limit - float(bounds[heads].min()), SLACK) / CELLS
    centres = _neighbourhoods(place, heads, bounds, side, np.zeros(len(heads), dtype=np.int64))
    pairs = _discs(place, centres, bounds, limit)
    best: Solution | None = None
    for finer in (side / FINER, 0.0):
        bound, as_head = _inside_discs(problem, height, centres, pairs, BANDS)
        if best is None and np.count_nonzero(bound <= limit + SLACK) > MANY:
            best = _better(best, _most_promising(problem, centres, pairs, bound, as_head, limit, BATCH))
            limit = limit if best is None else best.cost
        heads = heads[as_head[heads] <= limit + SLACK]
        if not len(heads):
            break
        alive = (bound <= limit + SLACK) | (_leads(centres, pairs) & (as_head[pairs.member] <= limit + SLACK))
        rows = np.union1d(pairs.member[alive], heads)
        if len(rows) <= FEW:
            found = solve(problem.take(rows), limit, np.searchsorted(rows, heads))
            best, heads = _better(best, None if found is None else _renamed(found, rows)), heads[:0]
            break
        parent = centres.of[heads]
        centres = _neighbourhoods(place, heads, bounds, finer, parent)
        pairs = _inherited(place, centres, bounds, limit, (parent, pairs.centre[alive], pairs.member[alive]))
    if len(heads):
        bound, as_head = _inside_discs(problem, height, centres, pairs, 2 * BANDS)
        alive, size = bound <= limit + SLACK, 2 * BATCH
        while size < np.count_nonzero(alive) and np.count_nonzero(alive) > MANY:
            nearer = _most_promising(problem, centres, pairs, bound, as_head, limit, size)
            best, size = nearer or best, 2 * size
            limit = limit if nearer is None else nearer.cost
            alive = bound <= limit + SLACK
        best = _better(best, _exact(problem, heads, pairs.centre[alive], pairs.member[alive], as_head[heads], limit))
    return None if best is None else _renamed(best, kept)


def _neighbourhoods(place: Floats, heads: Ints, bounds: Floats, side: float, parent: Ints) -> _Centres:
    """Heads of one `parent` that share a cell of a grid, `side` seconds wide; each for itself where that is 0."""
    if side > 0.0:
        cells = np.column_stack([parent, np.floor(place[heads] / side).astype(np.int64)])
        group = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
    else:
        group = np.arange(len(heads))
    count = np.bincount(group).astype(np.float64)
    middle = np.stack([np.bincount(group, weights=axis) / count for axis in place[heads].T], axis=1)
    radius, bound = np.zeros(len(count)), np.full(len(count), np.inf)
    np.maximum.at(radius, group, np.linalg.norm(place[heads] - middle[group], axis=1))
    np.minimum.at(bound, group, bounds[heads])
    of = np.full(len(place), -1, dtype=np.int64)
    of[heads] = group
    return _Centres(middle, radius + SLACK, bound, of)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Centres with candidates that may ride with one of their heads, and how far they are from the centre's rim."""

    centre: Ints
    member: Ints
    gap: Floats


def _discs(place: Floats, centres: _Centres, bounds: Floats, limit: float) -> _Pairs:
    """All pairs that the disc rule allows. A window along the first axis comes first, so that not every pair is looked
    at.
    """
    order = np.argsort(place[:, 0], kind="stable")
    line = place[order, 0]
    reach = np.maximum(limit - centres.bound, 0.0) / 2.0 + centres.radius + SLACK
    low = np.searchsorted(line, centres.place[:, 0] - reach)
    counts = np.searchsorted(line, centres.place[:, 0] + reach, side="right") - low
    centre, at = _ranges(low, counts)
    return _allowed(place, centres, bounds, limit, centre, order[at])


def _allowed(place: Floats, centres: _Centres, bounds: Floats, limit: float, centre: Ints, member: Ints) -> _Pairs:
    """Those of the pairs that the disc rule allows."""
    step = place[member] - centres.place[centre]
    gap = np.maximum(np.sqrt(np.einsum("ij,ij->i", step, step)) - centres.radius[centre], 0.0)
    inside = np.maximum(centres.bound[centre], bounds[member]) + 2.0 * gap <= limit + SLACK
    return _Pairs(centre[inside], member[inside], gap[inside])


def _inherited(place: Floats, centres: _Centres, bounds: Floats, limit: float, left: tuple[Ints, Ints, Ints]) -> _Pairs:
    """Pairs of finer centres. `left`: each head's former centre, and the pairs (former centre, candidate) left."""
    parent, centre, member = left
    heads = np.flatnonzero(centres.of >= 0)
    former = np.empty(len(centres.radius), dtype=np.int64)
    former[centres.of[heads]] = parent
    order = np.argsort(former, kind="stable")
    first = np.searchsorted(former[order], centre)
    counts = np.searchsorted(former[order], centre, side="right") - first
    pair, at = _ranges(first, counts)
    return _allowed(place, centres, bounds, limit, order[at], member[pair])


def _ranges(low: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Ranges ``low[k] … low[k] + counts[k]`` laid end to end: which range, and the number."""
    which = np.repeat(np.arange(len(low)), counts)
    return which, np.arange(len(which)) + np.repeat(low - (np.cumsum(counts) - counts), counts)


def _inside_discs(
    problem: Problem, height: Floats, centres: _Centres, pairs: _Pairs, bands: int
) -> tuple[Floats, Floats]:
    """The sweep for each pair, with the distance from the centre in bands: what a ring through the candidate
    costs at least if one of the centre's heads leads it; and per candidate, if it leads itself.
    """
    own = np.flatnonzero(_leads(centres, pairs))
    at = np.append(pairs.member, pairs.member[own])
    centre, gap = np.append(pairs.centre, pairs.centre[own]), np.append(pairs.gap, pairs.gap[own])
    leads = np.arange(len(at)) >= len(pairs.member)
    width = np.zeros(len(centres.radius))
    np.maximum.at(width, centre, gap)
    width = width / bands + SLACK
    side = height[at]
    # Only a head of this very centre finds itself at home.
    comes_back = holds_all(problem)[at] & ~leads & (centres.of[at] == centre)
    leave = side + np.where(several(problem), 0.0, problem.upload)[at]
    rows = Rows(
        problem.layers, np.where(leads, 0, np.maximum(problem.start[at], 1)), problem.end[at],
        centre, np.minimum((gap / width[centre]).astype(np.int64), bands - 1), len(width), bands, width,
        side + problem.entry[at], leave, finish_s(problem.tail[at], side, comes_back), problem.per_layer[at], leads,
    )  # fmt: skip
    bound = through(rows)
    as_head = np.full(len(problem), np.inf)
    as_head[pairs.member[own]] = bound[len(pairs.member) :]
    return bound[: len(pairs.member)], as_head


def _leads(centres: _Centres, pairs: _Pairs) -> Bools:
    """Pairs of a centre and one of its own heads."""
    own: Bools = centres.of[pairs.member] == pairs.centre
    return own


def _most_promising(
    problem: Problem,
    centres: _Centres,
    pairs: _Pairs,
    bound: Floats,
    as_head: Floats,
    limit: float,
    size: int,
) -> Solution | None:
    """A ring below `limit`, if the head whose bound is least leads one with its best `size` companions."""
    lead = int(as_head.argmin())
    mine = np.flatnonzero(pairs.centre == centres.of[lead])
    mine = mine[np.argsort(bound[mine], kind="stable")[:size]]
    rows = np.union1d(pairs.member[mine], [lead])
    found = solve(problem.take(rows), limit, np.searchsorted(rows, [lead]))
    return None if found is None else _renamed(found, rows)


def _exact(problem: Problem, heads: Ints, head: Ints, member: Ints, promise: Floats, limit: float) -> Solution | None:
    """The exact programme over the discs that are left, the most promising head first, then its neighbours outwards."""
    best: Solution | None = None
    place = problem.latency.place[problem.peer[heads]]
    from_best = np.linalg.norm(place - place[promise.argmin()], axis=1)
    queue = [int(h) for h in np.lexsort((promise, from_best)) if promise[h] <= limit + SLACK]
    while queue:
        rows, batch = np.zeros(0, dtype=np.int64), 0
        for one in queue:
            disc = np.union1d(rows, np.append(member[head == one], heads[one]))
            if batch and len(disc) > BATCH:
                break
            rows, batch = disc, batch + 1
        chosen = np.searchsorted(rows, heads[queue[:batch]])
        found = solve(problem.take(rows), limit, chosen)
        if found is not None:
            best, limit = _renamed(found, rows), found.cost
        queue = [h for h in queue[batch:] if promise[h] <= limit + SLACK]
    return best
