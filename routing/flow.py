"""How many tokens a second a swarm can serve: the max-flow of a placement, and a bound no placement can pass.

Knows spans and speeds. Refuses to know latency, sessions and who is who.

A holder of a span works on one layer at a time and may leave a ring at any cut, so it has ``layers_per_s`` to give to
the layers of its span in any proportion; a token needs every layer once. What all rings together can reach is a
transport problem whose supplies are intervals. For these, serving layer after layer from whoever ends first is exact
(the earliest-deadline argument of scheduling), so whether a rate is feasible costs one pass, and the largest rate is
found by bisection.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paceline.wire.ids import Span

STEPS = 24
"""Of a bisection: the rate is exact to one part in ten million."""

DUST = 1e-12


@dataclass(frozen=True, slots=True)
class Held:
    """A span with what its holder can do: layers a second, for whole visits of the span."""

    span: Span
    layers_per_s: float


def tokens_per_s(layers: int, held: Iterable[Held]) -> float:
    """The most tokens a second that rings through these spans can make together; 0 where a layer is missing."""
    merged: dict[Span, float] = {}
    for one in held:
        merged[one.span] = merged.get(one.span, 0.0) + one.layers_per_s
    begins: list[list[tuple[int, float]]] = [[] for _ in range(layers)]
    for span, rate in merged.items():
        begins[span.start].append((span.end, rate))
    low, high = 0.0, sum(merged.values()) / layers
    if _feasible(begins, high):
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2.0
        if _feasible(begins, middle):
            low = middle
        else:
            high = middle
    return low if _feasible(begins, DUST) else 0.0


def bound_per_s(layers: int, most: Sequence[tuple[int, float]]) -> float:
    """No placement of these devices makes more tokens a second. `most`: per device the layers that fit, and layers a
    second over so many.

    A device of c layers is of use to at most c layers of each token: it gives no more than ``min(rate, c · T)``. The
    largest T with ``T · layers ≤ Σ min(rate, c · T)``; this leaves out that spans are contiguous and whole.
    """
    if sum(min(room, layers) for room, _ in most) < layers:
        return 0.0
    low, high = 0.0, sum(rate for _, rate in most) / layers
    for _ in range(2 * STEPS):
        middle = (low + high) / 2.0
        if sum(min(rate, min(room, layers) * middle) for room, rate in most) >= middle * layers * (1.0 - 1e-12):
            low = middle
        else:
            high = middle
    return high


def _feasible(begins: Sequence[Sequence[tuple[int, float]]], rate: float) -> bool:
    """Whether every layer can be served `rate` times a second."""
    open_: list[tuple[int, float]] = []
    for layer, starting in enumerate(begins):
        for one in starting:
            heapq.heappush(open_, one)
        while open_ and open_[0][0] <= layer:
            heapq.heappop(open_)
        need = rate
        while need > DUST:
            if not open_:
                return False
            end, left = heapq.heappop(open_)
            if left > need:
                heapq.heappush(open_, (end, left - need))
            need -= left
    return True
