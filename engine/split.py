"""Where to cut a model. Knows sizes, no torch."""

from __future__ import annotations

import itertools

from paceline.store.manifest import Manifest
from paceline.wire.ids import Span


def even_split(layers: int, parts: int) -> list[Span]:
    """`parts` spans that differ by at most one layer. Raises ValueError where there are fewer layers than parts."""
    if not 1 <= parts <= layers:
        raise ValueError(f"{layers} layers cannot be cut into {parts} spans")
    cuts = [round(at * layers / parts) for at in range(parts + 1)]
    return [Span(start, end) for start, end in itertools.pairwise(cuts)]


def suggest_split(manifest: Manifest, parts: int) -> list[Span]:
    """`parts` spans whose slowest reads the fewest bytes per decoded token.

    Decode is bound by memory reads: a layer costs its block, the tail also the LM head's matrix, which a small model
    feels as several layers; the head's embedding reads one row and costs nothing. Ties go to the more even split.
    """
    layers = len(manifest.layers)
    if not 1 <= parts <= layers:
        raise ValueError(f"{layers} layers cannot be cut into {parts} spans")
    costs = [block.size for block in manifest.layers]
    costs[-1] += manifest.head.size + (manifest.embed.size if manifest.tied else 0)
    cuts = _best_cuts(costs, parts)
    return [Span(start, end) for start, end in itertools.pairwise(cuts)]


def _best_cuts(costs: list[int], parts: int) -> list[int]:
    """Cuts that minimise the greatest sum, then the sum of squares (dynamic programming over prefixes)."""
    sums = [0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    Best = tuple[int, int, list[int]]
    best: list[Best | None] = [(sums[end], sums[end] ** 2, [0, end]) if end else None for end in range(len(sums))]
    for part in range(2, parts + 1):
        longer: list[Best | None] = [None] * len(sums)
        for end in range(part, len(sums)):
            options = []
            for cut in range(part - 1, end):
                before = best[cut]
                if before is not None:
                    last = sums[end] - sums[cut]
                    options.append((max(before[0], last), before[1] + last**2, [*before[2], end]))
            longer[end] = min(options)
        best = longer
    found = best[-1]
    assert found is not None
    return found[2]
