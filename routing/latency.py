"""One-way latencies between peers: measured where somebody measured, estimated from coordinates elsewhere.

Knows numbers. Refuses to know offers, sessions, or where a measurement came from.

One way is half a round trip until somebody measures it better. The estimate is
``|x_i - x_j| + h_i + h_j`` (network coordinates with height; halved here), and a measured pair overrides it in both
directions. A peer reaches itself in 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paceline.routing.coordinates import Coordinate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FLAT_S = 1e-9
"""Heights of a pair below this are none: a share of them can make up for nothing."""


@dataclass(frozen=True, eq=False)
class LatencyMap:
    """Latencies among P peers, seconds one way.

    `place`: P × d, `height`: P, both already halved to one way. Measured pairs in compressed rows:
    ``near[first[p] : first[p + 1]]`` are the peers measured from or to p, ``near_s`` their one-way seconds; every pair
    is present in both rows with the same value.
    """

    place: Floats
    height: Floats
    first: Ints
    near: Ints
    near_s: Floats

    @property
    def peers(self) -> int:
        return len(self.height)

    @cached_property
    def safe_height(self) -> Floats:
        """Per peer the largest simple g with ``latency(i, j) >= g_i + g_j`` for every j, see :func:`shortened`."""
        source = np.repeat(np.arange(self.peers), np.diff(self.first))
        return shortened(self.height, source, self.near, self.near_s)

    def between(self, rows: Ints, columns: Ints) -> Floats:
        """Matrix ``len(rows) × len(columns)`` of one-way seconds; 0 where both are the same peer."""
        gap = self.place[rows][:, None, :] - self.place[columns][None, :, :]
        matrix: Floats = np.sqrt(np.einsum("ijk,ijk->ij", gap, gap))
        matrix += self.height[rows][:, None] + self.height[columns][None, :]
        self._override(matrix, rows, columns)
        matrix[rows[:, None] == columns[None, :]] = 0.0
        return matrix

    def with_strangers(self, count: int, guess_rtt_s: float) -> LatencyMap:
        """This map and `count` more peers about whom nothing is known."""
        middle = self.place.mean(axis=0) if self.peers else np.zeros(self.place.shape[1])
        place = np.concatenate([self.place, np.broadcast_to(middle, (count, len(middle)))])
        height = np.concatenate([self.height, np.full(count, guess_rtt_s / 4.0)])
        first = np.concatenate([self.first, np.full(count, self.first[-1])])
        return LatencyMap(place, height, first, self.near, self.near_s)

    def one_way(self, a: int, b: int) -> float:
        """Seconds from peer a to peer b."""
        return float(self.between(np.array([a]), np.array([b]))[0, 0])

    def measured_among(self, peers: Ints) -> tuple[Ints, Ints, Floats]:
        """Measured pairs with both ends in `peers` (distinct): sources, destinations, seconds. Both directions."""
        counts = self.first[peers + 1] - self.first[peers]
        source = np.repeat(peers, counts)
        shift = np.cumsum(counts) - counts
        at = np.arange(len(source)) - np.repeat(shift, counts) + np.repeat(self.first[peers], counts)
        inside = np.zeros(self.peers, dtype=bool)
        inside[peers] = True
        kept = inside[self.near[at]]
        return source[kept], self.near[at][kept], self.near_s[at][kept]

    def _override(self, matrix: Floats, rows: Ints, columns: Ints) -> None:
        """Write measured values over estimates. Candidates may share a peer, so rows and columns may repeat."""
        unique_rows, row_of = np.unique(rows, return_inverse=True)
        unique_columns, column_of = np.unique(columns, return_inverse=True)
        source, target, seconds = self.measured_among(np.union1d(unique_rows, unique_columns))
        if not len(source):
            return
        patch = np.full((len(unique_rows), len(unique_columns)), np.nan)
        r = np.searchsorted(unique_rows, source).clip(max=len(unique_rows) - 1)
        c = np.searchsorted(unique_columns, target).clip(max=len(unique_columns) - 1)
        hit = (unique_rows[r] == source) & (unique_columns[c] == target)
        patch[r[hit], c[hit]] = seconds[hit]
        full = patch[row_of][:, column_of]
        np.copyto(matrix, full, where=~np.isnan(full))


def shortened(height: Floats, source: Ints, target: Ints, room: Floats) -> Floats:
    """Heights g ≤ `height` with ``g_i + g_j <= room`` for each pair given (in both directions).

    What a pair misses is taken off both ends in proportion to their heights, so that a noisy measurement of a far-off
    access link hardly touches the good link at the other end; off both alike where neither has a height to speak of.
    """
    both = height[source] + height[target]
    missing = np.maximum(both - room, 0.0)
    flat = both < FLAT_S
    share, half = np.zeros(len(height)), np.zeros(len(height))
    np.maximum.at(share, source, np.where(flat, 0.0, missing / np.maximum(both, FLAT_S)))
    np.maximum.at(half, source[flat], missing[flat] / 2.0)
    return height * (1.0 - share) - half


def latency_map(
    peers: Sequence[str],
    rtts: Iterable[tuple[str, str, float]],
    coordinates: Mapping[str, Coordinate],
    guess_rtt_s: float,
) -> LatencyMap:
    """Build the map for `peers` from measured round trips ``(peer, peer, seconds)`` and coordinates.

    A pair measured from both ends takes the smaller value: queueing only ever adds. A peer without a coordinate sits in
    the middle of the others with such a height that two unknown peers are `guess_rtt_s` apart.
    """
    index = {peer: at for at, peer in enumerate(peers)}
    place, height = _places(peers, coordinates, guess_rtt_s)
    best: dict[tuple[int, int], float] = {}
    for a, b, rtt_s in rtts:
        i, j = index.get(a), index.get(b)
        if i is None or j is None or i == j:
            continue
        pair = (i, j) if i < j else (j, i)
        known = best.get(pair)
        if known is None or rtt_s < known:
            best[pair] = rtt_s
    first, near, near_s = _rows(len(peers), best)
    return LatencyMap(place, height, first, near, near_s)


def _places(peers: Sequence[str], coordinates: Mapping[str, Coordinate], guess_rtt_s: float) -> tuple[Floats, Floats]:
    known = [(at, coordinates[peer]) for at, peer in enumerate(peers) if peer in coordinates]
    dimensions = max((len(c.position) for _, c in known), default=1)
    place = np.zeros((len(peers), dimensions))
    height = np.full(len(peers), guess_rtt_s / 4.0)
    for at, coordinate in known:
        place[at, : len(coordinate.position)] = coordinate.position
        height[at] = coordinate.height / 2.0
    if known:
        rows = [at for at, _ in known]
        middle = place[rows].mean(axis=0)
        strangers = np.ones(len(peers), dtype=bool)
        strangers[rows] = False
        place[strangers] = middle
    return place / 2.0, height


def _rows(peers: int, pairs: Mapping[tuple[int, int], float]) -> tuple[Ints, Ints, Floats]:
    """Symmetric pairs as compressed rows, seconds one way."""
    if not pairs:
        return np.zeros(peers + 1, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    ends = np.array(list(pairs.keys()), dtype=np.int64)
    seconds = np.fromiter(pairs.values(), dtype=np.float64, count=len(pairs)) / 2.0
    source = np.concatenate([ends[:, 0], ends[:, 1]])
    target = np.concatenate([ends[:, 1], ends[:, 0]])
    value = np.concatenate([seconds, seconds])
    order = np.argsort(source, kind="stable")
    first = np.zeros(peers + 1, dtype=np.int64)
    np.cumsum(np.bincount(source, minlength=peers), out=first[1:])
    return first, target[order], value[order]
