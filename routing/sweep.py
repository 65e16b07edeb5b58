"""A lower bound for every candidate at once: the cheapest closed chain through it, with distances known in bands only.

Knows columns of candidates, in groups and bands. Refuses to know places, peers and rings.

The relaxed programme. Inside a group a chain of candidates covers all layers from the group's head back to it; between
two candidates it pays `leave` of the one and `enter` of the other, and the way between their bands, which is the least
distance that two places in these ranges from the head can have. Who rides twice, and where in its band a candidate
lies, is forgotten. So the chain through a candidate costs at most what any ring through it costs. The programme runs
from both ends, and the two halves meet at each candidate.

All candidates are swept at every layer, those that do not hold it at infinity: long plain vectors are several times as
quick here as gathering the few that do. Numbers are 32 bits wide, and what that may round up is taken off at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from paceline.routing.latency import Floats, Ints

Narrow = NDArray[np.float32]

_UNIT = 2.0**-24
"""Relative rounding of one 32-bit operation."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Candidates side by side, each in a `group` and in a `band` of distance from that group's head, `width[group]`
    seconds wide. Each group is a ring problem of its own. One band: no geometry. Seconds; `start`, `end`: layers held.
    `leads`: rows that stand for their candidate as the ring's head, and so may be entered at layer 0 only.
    """

    layers: int
    start: Ints
    end: Ints
    group: Ints
    band: Ints
    groups: int
    bands: int
    width: Floats
    enter: Floats
    leave: Floats
    finish: Floats
    per_layer: Floats
    leads: NDArray[np.bool_] | None = None

    def between_bands(self) -> Narrow:
        """bands × bands × groups: the least distance of two candidates in these bands, by the triangle inequality."""
        step = np.arange(self.bands)
        apart = np.maximum(np.abs(step[:, None] - step[None, :]) - 1.0, 0.0)[:, :, None] * self.width
        narrow: Narrow = apart.astype(np.float32)
        return narrow


def through(rows: Rows) -> Floats:
    """Per row: a lower bound on the closed chains of its group that use the row for at least one layer."""
    if not len(rows.start):
        return np.zeros(0)
    sweep = _Sweep(rows)
    found = np.empty(len(rows.start))
    found[sweep.order] = sweep.outward(sweep.homeward())
    # A chain adds at most four numbers a layer. Negative ones make its parts larger than the whole.
    hop = -min(0.0, float(rows.enter.min()), float(rows.leave.min()))
    below = 2.0 * (rows.layers + 1) * hop - min(0.0, float(rows.finish.min()))
    rounding = 4.0 * (rows.layers + 2) * _UNIT
    known = np.isfinite(found)
    found[known] -= rounding * (np.abs(found[known]) + below)
    return found


class _Sweep:
    """The programme's columns in order of their cells (band by band, group by group), and two vectors to work in."""

    def __init__(self, rows: Rows) -> None:
        cell = rows.band * rows.groups + rows.group
        self.rows = rows
        self.size = rows.groups * rows.bands
        self.order = np.argsort(cell, kind="stable")
        self.cell = cell[self.order].astype(np.intp)
        self.firsts = np.flatnonzero(np.diff(self.cell, prepend=-1))
        self.present = self.cell[self.firsts]
        self.full = len(self.present) == self.size
        self.apart = rows.between_bands()
        self.moved = np.empty_like(self.apart)
        self.enter, self.leave, self.per_layer = (
            column[self.order].astype(np.float32) for column in (rows.enter, rows.leave, rows.per_layer)
        )
        self.home = rows.finish[self.order].astype(np.float32) + self.apart[0].ravel()[self.cell]
        self.leads = np.zeros(0, dtype=np.intp) if rows.leads is None else np.flatnonzero(rows.leads[self.order])
        self.begins = _by_layer(rows.start[self.order], rows.layers)
        self.ends = _by_layer(rows.end[self.order], rows.layers)
        self.one, self.two = (np.empty(len(cell), dtype=np.float32) for _ in range(2))

    def homeward(self) -> list[Narrow]:
        """Per cut and cell: the cheapest way home for whoever left a candidate of that cell there."""
        layers, value, leave, enter = self.rows.layers, self._nobody(), self._nobody(), self.enter.copy()
        enter[self.leads] = np.inf
        ahead = [np.zeros(0, dtype=np.float32)] * layers
        for layer in range(layers - 1, 0, -1):
            new, over = self.ends[layer + 1], self.begins[layer + 1]
            leave[new] = self.leave[new]
            leave[over] = value[over] = np.inf
            if layer == layers - 1:
                value[new] = self.home[new]
            else:
                np.minimum(value, self._plus(ahead[layer + 1], leave, self.one), out=value)
            value += self.per_layer
            ahead[layer] = self._spread(np.add(value, enter, out=self.one))
        return ahead

    def outward(self, ahead: list[Narrow]) -> Narrow:
        """The programme from the head on, joined at each candidate with the way home."""
        layers, value, enter, best = self.rows.layers, self._nobody(), self._nobody(), self._nobody()
        done: Narrow = np.full(self.size, np.inf, dtype=np.float32)
        done[: self.rows.groups] = 0.0  # the nearest band
        for layer in range(layers):
            new, over = self.begins[layer], self.ends[layer]
            enter[new] = self.enter[new]
            enter[over] = value[over] = np.inf
            np.minimum(value, self._plus(done, enter, self.one), out=value)
            value += self.per_layer
            if layer == 0:
                enter[self.leads] = np.inf
            if layer == layers - 1:
                last = self.ends[layers]
                best[last] = np.minimum(best[last], value[last] + self.home[last])
                break
            left = np.add(value, self.leave, out=self.one)
            done = self._spread(left)
            np.minimum(best, self._plus(ahead[layer + 1], left, self.two), out=best)
        return best

    def _nobody(self) -> Narrow:
        return np.full(len(self.cell), np.inf, dtype=np.float32)

    def _plus(self, cells: Narrow, more: Narrow, out: Narrow) -> Narrow:
        """Each candidate's value of its cell, and `more`, which is read last: it may not be `out`."""
        if self.size == 1:
            np.add(more, cells[0], out=out)
            return out
        # "clip" writes straight into `out`; every index is in range.
        cells.take(self.cell, out=out, mode="clip")
        out += more
        return out

    def _spread(self, value: Narrow) -> Narrow:
        """Least value per cell, then least over all bands of the group with the way between the bands added."""
        if self.size == 1:
            whole: Narrow = np.minimum.reduce(value, keepdims=True)
            return whole
        if self.full:
            least = np.minimum.reduceat(value, self.firsts)
        else:
            least = np.full(self.size, np.inf, dtype=np.float32)
            least[self.present] = np.minimum.reduceat(value, self.firsts)
        if self.rows.bands == 1:
            return least
        np.add(least.reshape(self.rows.bands, 1, -1), self.apart, out=self.moved)
        moved: Narrow = np.minimum.reduce(self.moved, axis=0)
        return moved.ravel()


def _by_layer(layer: Ints, layers: int) -> list[Ints]:
    """Per layer ``0 … layers``: the candidates that have it here."""
    order = np.argsort(layer.astype(np.int16), kind="stable")
    ends = np.searchsorted(layer[order], np.arange(layers + 1), side="right").tolist()
    return [order[begin:end] for begin, end in pairwise([0, *ends])]
