"""Exact rings among ten thousand candidates: bounds that throw away, proven, almost everybody.

Knows the ring problem and its geometry. Refuses to approximate: whatever is dropped cannot be in a cheaper ring than
the one in hand, and what is left goes to the exact programme of problem.py.

Write a hop's latency as ``|x_i - x_j| + g_i + g_j``, or more (see :func:`_lowered`). Around a closed ring every stage is
entered once and left once, so without the distances the cost falls apart into stages, and a sweep over the cuts gives
in O(spans) the cheapest such ring *through each candidate* i, ``thr_i`` (forward and backward programme, joined). And a
closed tour through head c and candidate j is at least ``2 |x_c - x_j|`` long. Hence for a ring in hand that costs U

    candidate j rides with head c in a cheaper ring  only if  max(thr_c, thr_j) + 2 |x_c - x_j| < U.        (disc)

So each head sees only a small disc of candidates. Inside each disc the sweep is repeated: with the far-away fast
machines gone it is much sharper, kills most heads, and shrinks the remaining discs by the same rule. The exact
programme then runs over what is left, nearby heads together. The ring in hand comes from the discs that look best when
every hop is charged the way over the head (an upper bound on the distance, by the triangle inequality).

Sources: bounding by a relaxed dynamic programme run from both ends, as in Held & Karp's and Christofides, Mingozzi &
Toth's state-space relaxation ("State-space relaxation procedures for the computation of bounds to routing problems",
Networks 11, 1981); the disc is this project's own. Regret 0 against brute force and against the plain programme is a
property test. Worst case (no geometry, all machines alike) nothing is dropped and the plain programme runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.routing.latency import Floats, Ints
from paceline.routing.problem import Problem, Solution, solve
from paceline.routing.view import Bools

PLAIN = 40
"""Up to so many candidates the plain programme is quicker than the bounds."""

HINT_HEADS, HINT_POOL, HINT_SIZE = 24, 1_500, 40
"""For the first ring in hand: heads tried, candidates considered, candidates per disc."""

BATCH = 96
"""Candidates in one exact programme, so that heads of one neighbourhood share it."""

SLACK = 1e-12
"""Seconds, against rounding: bounds must not drop an equal by a bit."""


def solve_at_scale(problem: Problem, cutoff: float = np.inf) -> Solution | None:
    """As :func:`paceline.routing.problem.solve`, and equal to it; quick where latencies have geometry."""
    if len(problem) <= PLAIN or not problem.covered():
        return solve(problem, cutoff)
    bounds = _bounds(problem, _safe_heights(problem))
    best = _better(_alone(problem, cutoff), None)
    best = _first_ring(problem, bounds, best, cutoff)
    limit = cutoff if best is None else best.cost
    near = np.flatnonzero(bounds <= limit + SLACK)
    narrow = problem.take(near)
    found = _around_heads(narrow, _lowered(narrow, bounds[near], limit), limit)
    return _better(best, None if found is None else _renamed(found, near))


# --- bounds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rows:
    """Candidates side by side in groups (ascending), each group a small ring problem of its own."""

    layers: int
    start: Ints
    end: Ints
    group: Ints
    groups: int
    enter: Floats
    leave: Floats
    finish: Floats
    per_layer: Floats

    def take(self, rows: Bools) -> _Rows:
        columns = (self.start, self.end, self.group, self.enter, self.leave, self.finish, self.per_layer)
        start, end, group, enter, leave, finish, per_layer = (column[rows] for column in columns)
        return _Rows(self.layers, start, end, group, self.groups, enter, leave, finish, per_layer)


def _through(rows: _Rows) -> Floats:
    """Per row: the cheapest closed chain of its group that uses the row for at least one layer; no distances."""
    schedule = [_active(rows, layer) for layer in range(rows.layers)]
    onward = np.full((rows.layers + 1, rows.groups), np.inf)
    value = np.full(len(rows.start), np.inf)
    for layer in range(rows.layers - 1, -1, -1):
        at, firsts, group = schedule[layer]
        leave = rows.finish[at] if layer == rows.layers - 1 else onward[layer + 1, rows.group[at]] + rows.leave[at]
        value[at] = np.minimum(value[at], leave) + rows.per_layer[at]
        if len(at):
            onward[layer, group] = np.minimum.reduceat(value[at] + rows.enter[at], firsts)
    best = np.full(len(rows.start), np.inf)
    value.fill(np.inf)
    done = np.zeros(rows.groups)
    for layer in range(rows.layers):
        at, firsts, group = schedule[layer]
        of = rows.group[at]
        reached = np.minimum(value[at], done[of] + rows.enter[at]) + rows.per_layer[at]
        value[at] = reached
        last = layer == rows.layers - 1
        left = reached + (rows.finish[at] if last else rows.leave[at])
        best[at] = np.minimum(best[at], left if last else left + onward[layer + 1, of])
        done = np.full(rows.groups, np.inf)
        if len(at):
            done[group] = np.minimum.reduceat(left, firsts)
    return best


def _active(rows: _Rows, layer: int) -> tuple[Ints, Ints, Ints]:
    """Rows that hold `layer`, where each group begins among them, and which groups those are."""
    at = np.flatnonzero((rows.start <= layer) & (rows.end > layer))
    group = rows.group[at]
    firsts = np.flatnonzero(np.diff(group, prepend=-1))
    return at, firsts, group[firsts]


def _bounds(problem: Problem, height: Floats) -> Floats:
    """``thr``: a lower bound on every ring of two or more stages through each candidate."""
    everyone = np.arange(len(problem))
    return _through(_rows(problem, height, everyone, np.zeros(len(problem), dtype=np.int64), 1, problem.start))


def _rows(problem: Problem, height: Floats, at: Ints, group: Ints, groups: int, start: Ints) -> _Rows:
    """Candidates `at` with a hop's share `height` on either side of a stage."""
    side = height[at]
    upload = np.where(_several(problem), 0.0, problem.upload)[at]
    return _Rows(
        problem.layers,
        start,
        problem.end[at],
        group,
        groups,
        side + problem.entry[at],
        side + upload,
        side + problem.tail[at],
        problem.per_layer[at],
    )


def _several(problem: Problem) -> Bools:
    """Candidates whose peer has others: a hop between them is free, so a bound may charge neither."""
    counts = np.bincount(problem.peer, minlength=problem.latency.peers)
    several: Bools = counts[problem.peer] > 1
    return several


def _safe_heights(problem: Problem) -> Floats:
    """Largest simple g with ``latency(i, j) >= g_i + g_j``: the height, or half the shortest measured hop."""
    latency = problem.latency
    height = np.where(_several(problem), 0.0, latency.nearest_half[problem.peer])
    return np.minimum(height, latency.height[problem.peer])


def _lowered(problem: Problem, bounds: Floats, limit: float) -> Floats:
    """g with ``latency(i, j) >= |x_i - x_j| + g_i + g_j`` for every hop that a ring cheaper than `limit` can use.

    A pair measured shorter than estimated takes half of the difference off both ends. Pairs so long that no ring below
    the limit can use them are ignored: noise on an ocean crossing must not soften the bounds inside a city.
    """
    latency = problem.latency
    peers = np.unique(problem.peer)
    source, target, seconds = latency.measured_among(peers)
    safe = np.minimum(latency.height, latency.nearest_half)
    peer_bound = np.full(latency.peers, np.inf)
    np.minimum.at(peer_bound, problem.peer, bounds)
    usable = np.maximum(peer_bound[source], peer_bound[target]) + seconds - safe[source] - safe[target] <= limit + SLACK
    source, target, seconds = source[usable], target[usable], seconds[usable]
    gap = latency.place[source] - latency.place[target]
    estimate = np.sqrt(np.einsum("ij,ij->i", gap, gap)) + latency.height[source] + latency.height[target]
    saving = np.zeros(latency.peers)
    np.maximum.at(saving, source, estimate - seconds)
    height = (latency.height - saving / 2.0)[problem.peer]
    return np.where(_several(problem), np.minimum(height, 0.0), height)


# --- a ring in hand -------------------------------------------------------------------------------------------------


def _alone(problem: Problem, cutoff: float) -> Solution | None:
    """The best ring of one candidate, which has no hops at all: the bounds do not speak of it."""
    whole = np.flatnonzero((problem.start == 0) & (problem.end == problem.layers))
    if not len(whole):
        return None
    cost = problem.entry[whole] + problem.layers * problem.per_layer[whole] + problem.tail[whole]
    at = int(cost.argmin())
    return Solution(float(cost[at]), ((int(whole[at]), 0, problem.layers),)) if cost[at] < cutoff else None


def _first_ring(problem: Problem, bounds: Floats, best: Solution | None, cutoff: float) -> Solution | None:
    """A good ring, quickly: the exact ring of the two discs that look best with every hop charged over the head."""
    place = problem.latency.place[problem.peer]
    heads = np.flatnonzero(problem.start == 0)
    heads = heads[np.argsort(bounds[heads], kind="stable")[:HINT_HEADS]]
    pool = np.sort(np.argsort(bounds, kind="stable")[:HINT_POOL])
    gap = np.sqrt(((place[heads][:, None, :] - place[pool][None, :, :]) ** 2).sum(axis=2))
    score = bounds[pool][None, :] + 2.0 * gap
    size = min(HINT_SIZE, len(pool))
    picks = (
        np.argpartition(score, size - 1, axis=1)[:, :size]
        if size < len(pool)
        else np.tile(np.arange(size), (len(heads), 1))
    )
    at, group = pool[picks].ravel(), np.repeat(np.arange(len(heads)), size)
    rows = _rows(problem, problem.latency.height[problem.peer], at, group, len(heads), problem.start[at])
    detour = np.take_along_axis(gap, picks, axis=1).ravel()
    star = _Rows(
        rows.layers, rows.start, rows.end, group, len(heads), rows.enter + detour, rows.leave + detour, rows.finish + detour,
        rows.per_layer,
    )  # fmt: skip
    promise = np.full(len(heads), np.inf)
    np.minimum.at(promise, group, _through(star))
    for disc in np.argsort(promise, kind="stable")[:2]:
        chosen = np.sort(np.unique(np.append(pool[picks[disc]], heads[disc])))
        found = solve(problem.take(chosen), cutoff if best is None else best.cost)
        best = _better(best, None if found is None else _renamed(found, chosen))
    return best


def _better(a: Solution | None, b: Solution | None) -> Solution | None:
    if a is None or b is None:
        return a or b
    return b if b.cost < a.cost else a


def _renamed(solution: Solution, rows: Ints) -> Solution:
    """Legs of a sub-problem as rows of the problem that it was taken from."""
    return Solution(solution.cost, tuple((int(rows[i]), start, end) for i, start, end in solution.legs))


# --- discs ----------------------------------------------------------------------------------------------------------


def _around_heads(problem: Problem, height: Floats, limit: float) -> Solution | None:
    """The cheapest ring of two or more candidates below `limit`, or None."""
    bounds = _bounds(problem, height)
    kept = np.flatnonzero(bounds <= limit + SLACK)
    problem, height, bounds = problem.take(kept), height[kept], bounds[kept]
    if not len(problem) or not problem.covered():
        return None
    heads = np.flatnonzero(problem.start == 0)
    head, member, gap = _discs(problem, heads, bounds, limit)
    start = np.where(member == heads[head], problem.start[member], np.maximum(problem.start[member], 1))
    useful = start < problem.end[member]
    head, member, gap, start = head[useful], member[useful], gap[useful], start[useful]
    sharper = _through(_rows(problem, height, member, head, len(heads), start))
    alive = sharper + 2.0 * gap <= limit + SLACK
    found = _exact(problem, heads, head[alive], member[alive], (sharper + 2.0 * gap)[alive], limit)
    return None if found is None else _renamed(found, kept)


def _discs(problem: Problem, heads: Ints, bounds: Floats, limit: float) -> tuple[Ints, Ints, Floats]:
    """All pairs (index of head, candidate) that the disc rule allows, by head, and their distance.

    A window along the first axis comes first, so that not every pair is looked at.
    """
    place = problem.latency.place[problem.peer]
    order = np.argsort(place[:, 0], kind="stable")
    line = place[order, 0]
    reach = np.maximum(limit - bounds[heads], 0.0) / 2.0 + SLACK
    low = np.searchsorted(line, place[heads, 0] - reach)
    high = np.searchsorted(line, place[heads, 0] + reach, side="right")
    counts = high - low
    head = np.repeat(np.arange(len(heads)), counts)
    at = np.arange(len(head)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low, counts)
    member = order[at]
    step = place[member] - place[heads[head]]
    gap = np.sqrt(np.einsum("ij,ij->i", step, step))
    inside = np.maximum(bounds[heads[head]], bounds[member]) + 2.0 * gap <= limit + SLACK
    return head[inside], member[inside], gap[inside]


def _exact(problem: Problem, heads: Ints, head: Ints, member: Ints, bound: Floats, limit: float) -> Solution | None:
    """The exact programme over the discs that are left: the most promising head first, the others by neighbourhood."""
    best: Solution | None = None
    alive = np.unique(head)
    promise = np.full(len(heads), np.inf)
    np.minimum.at(promise, head, bound)
    place = problem.latency.place[problem.peer[heads]][:, 0]
    queue = sorted(alive.tolist(), key=lambda h: float(place[h]))
    if queue:
        first = min(queue, key=lambda h: float(promise[h]))
        queue.remove(first)
        queue.insert(0, first)
    batch: set[int] = set()
    batch_heads: list[int] = []
    for at, one in enumerate(queue):
        if promise[one] <= limit + SLACK:
            batch |= set(member[(head == one) & (bound <= limit + SLACK)].tolist())
            batch_heads.append(int(heads[one]))
        if batch_heads and (len(batch) >= BATCH or at in (0, len(queue) - 1)):
            rows = np.array(sorted(batch), dtype=np.int64)
            found = solve(problem.take(rows), limit, np.searchsorted(rows, batch_heads))
            if found is not None:
                best, limit = _renamed(found, rows), found.cost
            batch, batch_heads = set(), []
    return best
