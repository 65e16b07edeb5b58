"""Vivaldi with height converges, and a liar cannot poison it."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paceline.routing.coordinates import MIN_RTT_S, Coordinate, located, updated, usable

NODES, NEIGHBOURS, ROUNDS = 1_000, 32, 12


def true_rtts() -> np.ndarray:
    """The documented generator: 30 cities on a 120 × 60 ms map, nodes 1 ms around them, log-normal access links (median
    4 ms round trip), and a fixed 8 % log-normal detour per pair, which no coordinate can express."""
    random = np.random.default_rng(7)
    cities = random.uniform((0.0, 0.0), (0.120, 0.060), (30, 2))
    place = cities[random.integers(0, 30, NODES)] + random.normal(0.0, 0.001, (NODES, 2))
    height = random.lognormal(math.log(0.002), 0.6, NODES)
    gap = np.linalg.norm(place[:, None] - place[None], axis=2)
    detour = random.lognormal(0.0, 0.08, (NODES, NODES))
    detour = np.triu(detour, 1) + np.triu(detour, 1).T
    return (gap + height[:, None] + height[None]) * detour


def test_median_relative_error_is_at_most_fifteen_percent() -> None:
    rtts = true_rtts()
    random = np.random.default_rng(8)
    neighbours = random.integers(0, NODES, (NODES, NEIGHBOURS))
    nodes = [Coordinate() for _ in range(NODES)]
    for _ in range(ROUNDS):
        for at in random.permutation(NODES):
            for other in neighbours[at]:
                if other != at:
                    nodes[at] = updated(nodes[at], nodes[other], float(rtts[at, other]), tie_break=int(at))
    pairs = random.integers(0, NODES, (5_000, 2))
    errors = [abs(nodes[a].rtt_to(nodes[b]) - rtts[a, b]) / rtts[a, b] for a, b in pairs if a != b]
    assert float(np.median(errors)) <= 0.15


numbers = st.floats(allow_nan=True, allow_infinity=True)
coordinates = st.builds(Coordinate, st.tuples(numbers, numbers, numbers), numbers, numbers)


@given(coordinates, numbers)
def test_no_sample_makes_a_coordinate_unusable(remote: Coordinate, rtt_s: float) -> None:
    moved = updated(Coordinate((0.01, 0.0, 0.0), 0.002, 0.5), remote, rtt_s)
    assert all(map(math.isfinite, (*moved.position, moved.height, moved.error)))
    assert moved.height > 0.0
    assert 0.0 < moved.error <= 1.0


def test_two_nodes_at_one_place_part() -> None:
    a = updated(Coordinate(), Coordinate(), 0.1, tie_break=1)
    b = updated(Coordinate(), Coordinate(), 0.1, tie_break=2)
    assert math.dist(a.position, b.position) > 0.0


def test_who_has_measured_three_peers_knows_where_he_is() -> None:
    peers = [Coordinate((x, y, 0.0), 0.002, 0.1) for x, y in ((0.0, 0.0), (0.04, 0.0), (0.0, 0.05), (0.03, 0.03))]
    truth = Coordinate((0.01, 0.02, 0.0), 0.001, 0.1)
    found = located([(peer, truth.rtt_to(peer)) for peer in peers])
    assert all(abs(found.rtt_to(peer) - truth.rtt_to(peer)) <= 0.1 * truth.rtt_to(peer) for peer in peers)
    assert Coordinate.of(found.place) == found


@given(coordinates, numbers)
def test_a_settled_node_is_not_thrown_far_by_one_liar(remote: Coordinate, rtt_s: float) -> None:
    own = Coordinate((0.01, 0.0, 0.0), 0.002, 0.2)
    moved = updated(own, remote, rtt_s)
    if 0.0 < rtt_s <= 10.0:
        assert math.dist(own.position, moved.position) <= 0.25 * max(rtt_s, MIN_RTT_S) + 1e-12
    assert usable(moved)
