"""Where the time of a traced answer went: each token's trip around the ring, and what its stages had on average. Pure.

A token's time is what its reader measures, from the token before to this one. The trip's parts are measured by the
stages' clocks: a hop from one to the next, the wait there, the engine's step. Around a ring the clocks' differences
cancel, so the parts add up to the time although no clock is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from paceline.client.results import Piece, Result, Rider


@dataclass(frozen=True, slots=True)
class Trip:
    """Token `index` of the answer. `took_s`: as its reader measured. `stages`: hop, wait, compute in µs, head first."""

    index: int
    text: str
    took_s: float
    stages: tuple[tuple[int, int, int], ...]
    mended: bool = False
    """The ring was repaired before this token came: its time holds the repair."""

    @property
    def told_s(self) -> float:
        """What the stages' parts add up to."""
        return sum(map(sum, self.stages)) / 1e6


@dataclass(frozen=True, slots=True)
class StageMean:
    """A stage's part of the mean trip, in seconds. `hop_s`: to it from the one before; to the head from the tail."""

    rider: Rider
    hop_s: float
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """`trips`: every token behind the first. Means are over those that rode the last route and were not held up by a
    repair.
    """

    trips: tuple[Trip, ...]
    stages: tuple[StageMean, ...]
    measured_s: float
    told_s: float

    @property
    def off(self) -> float:
        """How far the parts miss the measured time, as a share of it."""
        return self.told_s / self.measured_s - 1.0 if self.measured_s else 0.0


def timeline(pieces: Sequence[Piece], result: Result) -> Timeline:
    """Of a whole answer that was asked for with `trace`; empty of one that was not."""
    mended = {failover.index - result.prompt_tokens for failover in result.failovers}
    pairs = zip(pieces[1:], result.intervals_s, strict=False)
    trips = tuple(
        Trip(piece.index, piece.text, took, piece.timings, piece.index in mended)
        for piece, took in pairs
        if piece.timings
    )
    last = max(mended, default=0)
    steady = [trip for trip in trips if trip.index > last and len(trip.stages) == len(result.route)]
    if not steady:
        return Timeline(trips, (), 0.0, 0.0)
    means = tuple(
        StageMean(rider, *(fmean(trip.stages[at][part] for trip in steady) / 1e6 for part in range(3)))
        for at, rider in enumerate(result.route)
    )
    return Timeline(trips, means, fmean(trip.took_s for trip in steady), fmean(trip.told_s for trip in steady))
