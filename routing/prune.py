"""Exact rings among ten thousand candidates: bounds that throw away, proven, almost everybody.

Knows the ring problem and its geometry. Refuses to approximate: whatever is dropped cannot be in a cheaper ring than
the one in hand, and what is left goes to the exact programme of problem.py.

A hop's latency is at least ``r |x_i - x_j| + g_i + g_j`` (see :func:`_geometry`). Around a closed ring every stage is
entered once and left once, so without the distances the cost falls apart into stages, and a sweep over the cuts gives
in O(spans) the cheapest such ring *through each candidate* i, ``thr_i`` (forward and backward programme, joined). And a
closed tour through head c and candidate j is at least ``2 r |x_c - x_j|`` long. Hence for a ring in hand that costs U

    candidate j rides with head c in a cheaper ring  only if  max(thr_c, thr_j) + 2 r |x_c - x_j| < U.        (disc)

So each head sees only a small disc of candidates. Inside each disc the sweep is repeated: with the far-away fast
machines gone it is much sharper, and it now knows the distance from the head (in bands, which cost what lies between
them); that kills most heads and shrinks the other discs. Heads of one neighbourhood are treated as one head first. The
exact programme then runs over what is left, nearby heads together. The ring in hand comes from the disc that looks
best when every hop is charged the way over the head (an upper bound on the distance, by the triangle inequality).

Sources: bounding by a relaxed dynamic programme run from both ends, as in Held & Karp's and Christofides, Mingozzi &
Toth's state-space relaxation ("State-space relaxation procedures for the computation of bounds to routing problems",
Networks 11, 1981); the disc is this project's own. Regret 0 against brute force and against the plain programme is a
property test. Worst case (no geometry, all machines alike) nothing is dropped and the plain programme runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.routing.latency import Floats, Ints, shortened
from paceline.routing.problem import Problem, Solution, solve
from paceline.routing.view import Bools

PLAIN = 40
"""Up to so many candidates the plain programme is quicker than the bounds."""

HINT_HEADS, HINT_POOL, HINT_SIZE = 24, 1_500, 40
"""For the first ring in hand: heads tried, candidates considered, candidates per disc."""

BATCH = 96
"""Candidates in one exact programme, so that heads of one neighbourhood share it."""

CELLS = 6
"""Cells of the grid of neighbourhoods across the width of a disc."""

BANDS = 8
"""Ranges of distance from the head that a sweep tells apart."""

FAR_S, MIN_STRETCH = 5e-3, 0.3
"""Pairs from which the stretch r is read, seconds apart; and its least value."""

SLACK = 1e-12
"""Seconds, against rounding: bounds must not drop an equal by a bit."""


def solve_at_scale(problem: Problem, cutoff: float = np.inf) -> Solution | None:
    """As :func:`paceline.routing.problem.solve`, and equal to it; quick where latencies have geometry."""
    if len(problem) <= PLAIN or not problem.covered():
        return solve(problem, cutoff)
    bounds = _bounds(problem, _safe_heights(problem))
    best = _better(_alone(problem, cutoff), None)
    size = HINT_SIZE
    while best is None and size < 4 * len(problem):
        best, size = _first_ring(problem, bounds, size, cutoff), 4 * size
    limit = cutoff if best is None else best.cost
    near = np.flatnonzero(bounds <= limit + SLACK)
    narrow = problem.take(near)
    found = _around_heads(narrow, bounds[near], limit)
    return _better(best, None if found is None else _renamed(found, near))


# --- bounds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rows:
    """Candidates side by side in cells (ascending): ``cell = group · bands + band``.

    Each group is a small ring problem of its own, around its head; a band is a range of distances from that head,
    `width` seconds wide. One band: no geometry.
    """

    layers: int
    start: Ints
    end: Ints
    cell: Ints
    groups: int
    bands: int
    width: float
    enter: Floats
    leave: Floats
    finish: Floats
    per_layer: Floats

    def between_bands(self) -> Floats:
        """bands × bands: the least distance between two candidates of these bands, by the triangle inequality."""
        step = np.arange(self.bands)
        apart: Floats = self.width * np.maximum(np.abs(step[:, None] - step[None, :]) - 1.0, 0.0)
        return apart


def _through(rows: _Rows) -> Floats:
    """Per row: a lower bound on the closed chains of its group that use the row for at least one layer."""
    schedule = [_active(rows, layer) for layer in range(rows.layers)]
    ahead, value = _backward(rows, schedule), np.full(len(rows.start), np.inf)
    best, shape, apart = value.copy(), (rows.groups, rows.bands), rows.between_bands()
    done = np.repeat(np.where(np.arange(rows.bands) == 0, 0.0, np.inf)[None, :], rows.groups, axis=0).ravel()
    for layer in range(rows.layers):
        at, firsts, cells = schedule[layer]
        of = rows.cell[at]
        reached = np.minimum(value[at], done[of] + rows.enter[at]) + rows.per_layer[at]
        value[at] = reached
        if layer == rows.layers - 1:
            best[at] = np.minimum(best[at], reached + rows.finish[at] + apart[0][of % rows.bands])
            break
        left = reached + rows.leave[at]
        best[at] = np.minimum(best[at], left + ahead[layer + 1][of])
        done = _spread(left, firsts, cells, shape, apart)
    return best


def _backward(rows: _Rows, schedule: list[tuple[Ints, Ints, Ints]]) -> list[Floats]:
    """Per cut and cell: the cheapest way home for whoever left a stage of that cell there."""
    shape, apart = (rows.groups, rows.bands), rows.between_bands()
    ahead = [np.zeros(0)] * rows.layers
    value = np.full(len(rows.start), np.inf)
    for layer in range(rows.layers - 1, 0, -1):
        at, firsts, cells = schedule[layer]
        of = rows.cell[at]
        home = rows.finish[at] + apart[0][of % rows.bands]
        onward = home if layer == rows.layers - 1 else ahead[layer + 1][of] + rows.leave[at]
        value[at] = np.minimum(value[at], onward) + rows.per_layer[at]
        ahead[layer] = _spread(value[at] + rows.enter[at], firsts, cells, shape, apart)
    return ahead


def _spread(value: Floats, firsts: Ints, cells: Ints, shape: tuple[int, int], apart: Floats) -> Floats:
    """Least value per cell, then least over all bands of the group with the way between the bands added."""
    least = np.full(shape[0] * shape[1], np.inf)
    if len(value):
        least[cells] = np.minimum.reduceat(value, firsts)
    if shape[1] == 1:
        return least
    moved: Floats = (least.reshape(shape)[:, :, None] + apart).min(axis=1)
    return moved.ravel()


def _active(rows: _Rows, layer: int) -> tuple[Ints, Ints, Ints]:
    """Rows that hold `layer`, where each cell begins among them, and which cells those are."""
    at = np.flatnonzero((rows.start <= layer) & (rows.end > layer))
    cell = rows.cell[at]
    firsts = np.flatnonzero(np.diff(cell, prepend=-1))
    return at, firsts, cell[firsts]


def _bounds(problem: Problem, height: Floats) -> Floats:
    """``thr``: a lower bound on every ring of two or more stages through each candidate, without distances."""
    leave = height + np.where(_several(problem), 0.0, problem.upload)
    cell = np.zeros(len(problem), dtype=np.int64)
    return _through(
        _Rows(
            problem.layers, problem.start, problem.end, cell, 1, 1, 0.0,
            height + problem.entry, leave, height + problem.tail, problem.per_layer,
        )
    )  # fmt: skip


def _several(problem: Problem) -> Bools:
    """Candidates whose peer has others: a hop between them is free, so a bound may charge neither."""
    counts = np.bincount(problem.peer, minlength=problem.latency.peers)
    several: Bools = counts[problem.peer] > 1
    return several


def _safe_heights(problem: Problem) -> Floats:
    """g with ``latency(i, j) >= g_i + g_j``."""
    return np.where(_several(problem), 0.0, problem.latency.safe_height[problem.peer])


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
    return stretch, np.where(_several(problem), np.minimum(height, 0.0), height)


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
    star = _Rows(
        problem.layers, problem.start[at], problem.end[at], group, len(heads), 1, 0.0,
        side + problem.entry[at], side + problem.upload[at], side + problem.tail[at], problem.per_layer[at],
    )  # fmt: skip
    promise = _through(star).reshape(len(heads), size).min(axis=1)
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
    """The cheapest ring of two or more candidates below `limit`, or None: neighbourhoods first, then single heads."""
    stretch, height = _geometry(problem, bounds, limit)
    bounds = _bounds(problem, height)
    kept = np.flatnonzero(bounds <= limit + SLACK)
    problem, height, bounds = problem.take(kept), height[kept], bounds[kept]
    if not len(problem) or not problem.covered():
        return None
    place = stretch * problem.latency.place[problem.peer]
    heads = np.flatnonzero(problem.start == 0)
    near = _neighbourhoods(place, heads, bounds, limit)
    centre, member, gap = _discs(place, near, bounds, limit)
    alive = _inside_discs(problem, height, near, centre, member, gap) <= limit + SLACK
    heads = heads[np.isin(near.of[heads], centre[alive])]
    if not len(heads):
        return None
    head, member = _by_head(near.of[heads], centre[alive], member[alive])
    single = _singles(place, heads, bounds)
    gap = np.linalg.norm(place[member] - place[heads[head]], axis=1)
    inside = np.maximum(bounds[heads[head]], bounds[member]) + 2.0 * gap <= limit + SLACK
    head, member, gap = head[inside], member[inside], gap[inside]
    bound = _inside_discs(problem, height, single, head, member, gap)
    alive = bound <= limit + SLACK
    found = _exact(problem, heads, head[alive], member[alive], bound[alive], limit)
    return None if found is None else _renamed(found, kept)


def _singles(place: Floats, heads: Ints, bounds: Floats) -> _Centres:
    of = np.full(len(place), -1, dtype=np.int64)
    of[heads] = np.arange(len(heads))
    return _Centres(place[heads], np.zeros(len(heads)), bounds[heads], of)


def _neighbourhoods(place: Floats, heads: Ints, bounds: Floats, limit: float) -> _Centres:
    """Heads that share a cell of a grid, whose cells are small against what a disc can be wide."""
    side = max(limit - float(bounds[heads].min()), SLACK) / CELLS
    cells = np.floor(place[heads] / side).astype(np.int64)
    _, group = np.unique(cells, axis=0, return_inverse=True)
    group = group.ravel()
    count = np.bincount(group).astype(np.float64)
    middle = np.stack([np.bincount(group, weights=axis) / count for axis in place[heads].T], axis=1)
    radius, bound = np.zeros(len(count)), np.full(len(count), np.inf)
    np.maximum.at(radius, group, np.linalg.norm(place[heads] - middle[group], axis=1))
    np.minimum.at(bound, group, bounds[heads])
    of = np.full(len(place), -1, dtype=np.int64)
    of[heads] = group
    return _Centres(middle, radius + SLACK, bound, of)


def _discs(place: Floats, centres: _Centres, bounds: Floats, limit: float) -> tuple[Ints, Ints, Floats]:
    """All pairs (centre, candidate) that the disc rule allows, by centre, and their distances.

    A window along the first axis comes first, so that not every pair is looked at.
    """
    order = np.argsort(place[:, 0], kind="stable")
    line = place[order, 0]
    reach = np.maximum(limit - centres.bound, 0.0) / 2.0 + centres.radius + SLACK
    low = np.searchsorted(line, centres.place[:, 0] - reach)
    counts = np.searchsorted(line, centres.place[:, 0] + reach, side="right") - low
    centre, at = _ranges(low, counts)
    member = order[at]
    gap = np.linalg.norm(place[member] - centres.place[centre], axis=1)
    gap = np.maximum(gap - centres.radius[centre], 0.0)
    inside = np.maximum(centres.bound[centre], bounds[member]) + 2.0 * gap <= limit + SLACK
    return centre[inside], member[inside], gap[inside]


def _ranges(low: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Ranges ``low[k] … low[k] + counts[k]`` laid end to end: which range, and the number."""
    which = np.repeat(np.arange(len(low)), counts)
    return which, np.arange(len(which)) + np.repeat(low - (np.cumsum(counts) - counts), counts)


def _by_head(group: Ints, centre: Ints, member: Ints) -> tuple[Ints, Ints]:
    """Pairs (neighbourhood, candidate) → pairs (index of head, candidate), `group` naming each head's neighbourhood."""
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], centre)
    counts = np.searchsorted(group[order], centre, side="right") - first
    pair, at = _ranges(first, counts)
    return order[at], member[pair]


def _inside_discs(
    problem: Problem, height: Floats, centres: _Centres, centre: Ints, member: Ints, gap: Floats
) -> Floats:
    """The sweep for each pair (centre, candidate), with the distance from the centre in `BANDS` bands."""
    width = float(gap.max(initial=0.0)) / BANDS + SLACK
    band = np.minimum((gap / width).astype(np.int64), BANDS - 1)
    cell = centre * BANDS + band
    order = np.argsort(cell, kind="stable")
    at, side = member[order], height[member[order]]
    # Only a centre's own heads may take layer 0; another candidate that begins there can join from layer 1 on.
    start = np.where(centres.of[at] == centre[order], problem.start[at], np.maximum(problem.start[at], 1))
    leave = side + np.where(_several(problem), 0.0, problem.upload)[at]
    rows = _Rows(
        problem.layers, start, problem.end[at], cell[order], len(centres.radius), BANDS, width,
        side + problem.entry[at], leave, side + problem.tail[at], problem.per_layer[at],
    )  # fmt: skip
    bound = np.empty(len(order))
    bound[order] = _through(rows)
    return bound


def _exact(problem: Problem, heads: Ints, head: Ints, member: Ints, bound: Floats, limit: float) -> Solution | None:
    """The exact programme over the discs that are left, the most promising head first, then its neighbours outwards."""
    best: Solution | None = None
    promise = np.full(len(heads), np.inf)
    np.minimum.at(promise, head, bound)
    place = problem.latency.place[problem.peer[heads]]
    from_best = np.linalg.norm(place - place[promise.argmin()], axis=1)
    if not len(head):
        return None
    queue = [int(h) for h in np.lexsort((promise, from_best)) if promise[h] <= limit + SLACK]
    while queue:
        rows, batch = np.zeros(0, dtype=np.int64), 0
        for one in queue:
            disc = np.union1d(rows, member[(head == one) & (bound <= limit + SLACK)])
            if batch and len(disc) > BATCH:
                break
            rows, batch = disc, batch + 1
        chosen = np.searchsorted(rows, heads[queue[:batch]])
        found = solve(problem.take(rows), limit, chosen)
        if found is not None:
            best, limit = _renamed(found, rows), found.cost
        queue = [h for h in queue[batch:] if promise[h] <= limit + SLACK]
    return best
