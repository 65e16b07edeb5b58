"""How much of a swarm's traffic each candidate ought to carry, so that all rings together reach the max-flow.

Knows spans, speeds and sessions. Refuses to know latency, and which ring a request takes (choice.py).

Capacity. A service that batches runs b sessions in ``fixed + decode + (b - 1) · extra``. The batch is called full where
the sessions cost as much as the weights, ``b = 1 + decode / extra``, which is also where a node stops waiting for more;
what it then does in layers per second is its capacity c. (`MIN_EXTRA_SHARE` stands in for an `extra` that nobody
measured.)

Shares. Let ``x[i, l]`` be the tokens per second for which candidate i runs layer l. Rings of T tokens a second need
``Σ_i x[i, l] = T`` at each layer and ``Σ_l x[i, l] ≤ c_i`` of each candidate; the greatest such T is the max-flow
(flow.py). Of all x that make (nearly) this T, we want one near to "everybody spreads what he has evenly over his span".
The nearest in the sense of Kullback and Leibler has the form ``x[i, l] = a_i · b_l`` inside the spans, and is found by
scaling in turn, as in Sinkhorn & Knopp ("Concerning nonnegative matrices and doubly stochastic matrices", 1967): each
layer to T, then whoever does more than c_i down to it. Spans are intervals, so a round costs one pass over candidates
and layers.

Hence one number per candidate, its *weight* a_i, says everything: of the tokens that pass layer l, i should run the
share ``a_i / Σ_j a_j`` over the holders j of that layer.

Spare. Sessions that ride there now say who carries more than his share: i expects at least the share of its best layer
of them. Who has more, keeps the share ``((expected + full) / (there + full))²`` of his capacity: squared, since he is
to become emptier, not just no fuller. The number of sessions alone would not do: a long span has a part, perhaps a
small one, in most rings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paceline.routing.cost import MIN_EXTRA_SHARE, CostTerms, penalties
from paceline.routing.flow import Held, tokens_per_s
from paceline.routing.latency import Floats, Ints
from paceline.routing.view import ServiceTable
from paceline.wire.ids import Span

NEARLY = 0.99
"""Of the max-flow: at the flow itself some shares would have to be nothing, which scaling reaches only in the limit."""

ROUNDS, CLOSE, FORWARD = 400, 1.01, 1.5
"""Rounds of scaling at most, the overload at which they end, and the power of each step: over 1 it takes fewer."""

LEAST_S = 1e-7
"""A token's time at a service that claims to need none."""


@dataclass(frozen=True, eq=False)
class Capacity:
    """Columns of length n. `layers_per_s`: at a full batch, which has `full` sessions; `sessions`: those there now."""

    layers_per_s: Floats
    full: Floats
    sessions: Floats

    def take(self, rows: Ints) -> Capacity:
        return Capacity(self.layers_per_s[rows], self.full[rows], self.sessions[rows])


def capacities(table: ServiceTable, terms: CostTerms) -> Capacity:
    """What each service can do. A straggler's penalty counts as time that its every step takes longer."""
    decode, _, fixed, extra, *_ = table.measured.T
    decode = np.maximum(decode, LEAST_S)
    extra = np.maximum(extra, MIN_EXTRA_SHARE * decode)
    full = 1.0 + decode / extra
    step_s = fixed + decode + (full - 1.0) * extra + penalties(table, terms)
    return Capacity((table.end - table.start) * full / step_s, full, table.sessions.astype(np.float64))


def spare(layers: int, start: Ints, end: Ints, given: Capacity) -> Floats:
    """Layers per second that the sessions leave of each capacity."""
    weight, most = flow_weights(layers, start, end, given.layers_per_s)
    if most <= 0.0 or not given.sessions.any():
        return given.layers_per_s
    share = weight / _least_over_spans(held_weight(layers, start, end, weight), start, end)
    expected = share * (given.sessions.sum() / share.sum())
    kept = np.minimum(1.0, (expected + given.full) / (given.sessions + given.full))
    left: Floats = given.layers_per_s * kept**2
    return left


def flow_weights(layers: int, start: Ints, end: Ints, capacity: Floats) -> tuple[Floats, float]:
    """The weight of each candidate, and the max-flow in tokens per second (0: a layer is held by nobody).

    Candidates hold ``[start, end)`` and can do `capacity` layers a second each. Those of one span share in proportion.
    """
    spans, of = np.unique(start * (layers + 1) + end, return_inverse=True)
    of = of.ravel()
    starts, ends = spans // (layers + 1), spans % (layers + 1)
    able = np.bincount(of, weights=capacity, minlength=len(spans)).astype(np.float64)
    most = tokens_per_s(
        layers, [Held(Span(int(a), int(b)), float(c)) for a, b, c in zip(starts, ends, able, strict=True)]
    )
    if most <= 0.0:
        return np.zeros(len(start)), 0.0
    weight = _scaled(layers, starts, ends, able, NEARLY * most)
    return (weight / able)[of] * capacity, most


def expected_load(layers: int, start: Ints, end: Ints, weight: Floats) -> Floats:
    """Layers that each candidate runs per token of the swarm, where shares follow the weights."""
    return weight * _over_spans(1.0 / held_weight(layers, start, end, weight), start, end)


def held_weight(layers: int, start: Ints, end: Ints, weight: Floats) -> Floats:
    """Per layer, the weights of all who hold it together."""
    steps = np.zeros(layers + 1)
    np.add.at(steps, start, weight)
    np.add.at(steps, end, -weight)
    # What the differences leave behind by rounding must not make a layer's weight nothing or less.
    return np.maximum(np.cumsum(steps)[:layers], 1e-300)


def _scaled(layers: int, start: Ints, end: Ints, able: Floats, rate: float) -> Floats:
    """Alternating projections from the even spread; weights with loads at most `able` (nearly) at `rate`."""
    weight = able / (end - start)
    for _ in range(ROUNDS):
        over = rate * expected_load(layers, start, end, weight) / able
        if float(over.max()) <= CLOSE:
            break
        weight = weight / np.maximum(over, 1.0) ** FORWARD
    return weight


def _least_over_spans(column: Floats, start: Ints, end: Ints) -> Floats:
    """The least value of a per-layer column in each span."""
    least = np.full((len(column), len(column) + 1), np.inf)
    for first in range(len(column)):
        least[first, first + 1 :] = np.minimum.accumulate(column[first:])
    found: Floats = least[start, end]
    return found


def _over_spans(column: Floats, start: Ints, end: Ints) -> Floats:
    """Sums of a per-layer column over spans."""
    sums = np.concatenate([np.zeros(1), np.cumsum(column)])
    over: Floats = sums[end] - sums[start]
    return over
