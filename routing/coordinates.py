"""Network coordinates: Vivaldi with height, as a pure update.

Knows how one measured round trip moves one coordinate. Refuses to know who measured it, when, or how coordinates
travel between peers.

Source: F. Dabek, R. Cox, F. Kaashoek, R. Morris, "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM 2004,
sections 3.4 (adaptive time step) and 5.4 (height vectors). The height models the access link, which every path of a
node crosses whatever its direction; the Euclidean part models the core. Predicted round trip of i and j:
``|x_i - x_j| + h_i + h_j``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.wire.limits import FARTHEST_S
from paceline.wire.offers import Place

DIMENSIONS = 3
"""Three, with the height beside them: the paper finds 2–3 dimensions plus height enough for the Internet."""

ERROR_GAIN = 0.25
"""`c_e` of the paper: how fast the confidence follows the samples."""

POSITION_GAIN = 0.25
"""`c_c` of the paper: the largest share of the residual that one sample may correct."""

MIN_HEIGHT_S = 1e-5
"""A height of nothing could never grow again along the height axis."""

MIN_RTT_S = 1e-6

MAX_S = 10.0
"""A longer round trip is no measurement."""

SETTLED = 0.4
"""From this confidence on, one sample moves us by at most a share of the round trip it measured, however far off it
says we are. This and the two below are not in the paper."""

NEAR_S = 0.02
"""Once settled, round trips beyond this count for less: what they are wrong by grows with them, and would drown what
near peers say."""

LEAST_ERROR = 0.1
"""Nobody is believed to know his place better than this, so that one who claims to is not followed blindly."""


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A node's place. `position`, `height`: seconds of round trip. `error`: relative, 0 (sure) to 1 (no idea)."""

    position: tuple[float, ...] = (0.0,) * DIMENSIONS
    height: float = MIN_HEIGHT_S
    error: float = 1.0

    @classmethod
    def of(cls, place: Place) -> Coordinate:
        """As an offer tells it."""
        return cls(place[:3], place[3], place[4])

    @property
    def place(self) -> Place:
        """For an offer."""
        x, y, z = self.position
        return (x, y, z, self.height, self.error)

    def rtt_to(self, other: Coordinate) -> float:
        """Predicted round trip, seconds. Raises ValueError where the dimensions differ."""
        return math.dist(self.position, other.position) + self.height + other.height


def updated(own: Coordinate, remote: Coordinate, rtt_s: float, tie_break: int = 0) -> Coordinate:
    """`own` after measuring `rtt_s` to `remote`. Only `own` moves: the remote does the same with its own samples.

    `tie_break` picks the direction in which two nodes at the very same place part (any integer that differs between
    nodes, such as a hash of the peer id: there is no randomness here). Samples that are not positive or
    above `MAX_S`, and remote coordinates outside these bounds, leave `own` unchanged: a liar may mislead, not poison.
    """
    if not usable(remote) or not 0.0 < rtt_s <= MAX_S:
        return own
    rtt_s = max(rtt_s, MIN_RTT_S)
    predicted = own.rtt_to(remote)
    weight = own.error / max(own.error + max(remote.error, LEAST_ERROR), 1e-9)
    sample_error = min(abs(predicted - rtt_s) / rtt_s, 1.0)
    gain = ERROR_GAIN * weight
    error = min(max(sample_error * gain + own.error * (1.0 - gain), 1e-3), 1.0)
    force = POSITION_GAIN * weight * (rtt_s - predicted)
    if own.error < SETTLED:
        most = POSITION_GAIN * weight * rtt_s
        force = max(-most, min(force, most)) / (1.0 + rtt_s / NEAR_S)
    direction, height_share = _direction(own, remote, tie_break)
    position = tuple(_bounded(x + force * u) for x, u in zip(own.position, direction, strict=True))
    height = min(max(own.height + force * height_share, MIN_HEIGHT_S), FARTHEST_S)
    return Coordinate(position, height, error)


def located(
    samples: Sequence[tuple[Coordinate, float]], own: Coordinate | None = None, turns: int = 4, tie_break: int = 0
) -> Coordinate:
    """Where somebody is who has measured these round trips, having been at `own` (None: nowhere yet). Each sample is
    taken in `turns` times; from nowhere ten times as often, so that a client that has just come knows at once.
    """
    found = own or Coordinate()
    for _ in range(turns if own else 10 * turns):
        for at, (remote, rtt_s) in enumerate(samples):
            found = updated(found, remote, rtt_s, tie_break + at)
    return found


def usable(coordinate: Coordinate) -> bool:
    """Whether a claimed coordinate can be true: finite, of our dimensions, and on Earth."""
    within = all(-FARTHEST_S <= x <= FARTHEST_S for x in coordinate.position) and len(coordinate.position) == DIMENSIONS
    return within and 0.0 <= coordinate.height <= FARTHEST_S and 0.0 <= coordinate.error <= 1.0


def _bounded(x: float) -> float:
    return max(-FARTHEST_S, min(x, FARTHEST_S))


def _direction(own: Coordinate, remote: Coordinate, tie_break: int) -> tuple[tuple[float, ...], float]:
    """Unit vector remote → own, where ``[x, h] - [y, g] = [x - y, h + g]`` and its norm is ``|x - y| + h + g``."""
    gap = math.dist(own.position, remote.position)
    norm = gap + own.height + remote.height
    if gap < 1e-9:
        return _parting(len(own.position), tie_break), 0.0 if norm == 0.0 else (own.height + remote.height) / norm
    return (
        tuple((x - y) / norm for x, y in zip(own.position, remote.position, strict=True)),
        (own.height + remote.height) / norm,
    )


def _parting(dimensions: int, tie_break: int) -> tuple[float, ...]:
    """A unit vector drawn from `tie_break` by golden-ratio angles: different integers give spread directions."""
    raw = [math.cos(2.399963229728653 * (tie_break % 65_537 + 1) * (axis + 1)) for axis in range(dimensions)]
    norm = math.sqrt(sum(value * value for value in raw)) or 1.0
    return tuple(value / norm for value in raw)
