"""The bounds drop nothing that matters: rings at scale equal the plain programme's."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paceline.routing import prune
from paceline.routing.bounds import ring_bounds, safe_heights
from paceline.routing.candidates import eligible, problem_of
from paceline.routing.coordinates import Coordinate
from paceline.routing.cost import stage_costs
from paceline.routing.latency import Ints
from paceline.routing.plan import RingRequest
from paceline.routing.problem import Problem, Solution, cut_out, path_cost, ride_once, solve, stages_of
from paceline.routing.sweep import Rows, through
from paceline.routing.view import swarm_view

from .swarms import MODEL, NOW, REVISION, offer, service

REQUEST = RingRequest(REVISION)


def problem(seed: int, size: int, layers: int, noise: float, several: float) -> Problem:
    """A random geometric swarm: clustered places, log-normal heights and speeds, noisy measurements, some peers with
    two services."""
    random = np.random.default_rng(seed)
    cities = random.uniform(0.0, 0.06, (4, 2))
    names = [f"p{at}" for at in range(size)]
    places = {
        name: Coordinate(
            tuple(cities[random.integers(4)] + random.normal(0, 0.002, 2)), float(random.lognormal(-6, 0.8)), 0.1
        )
        for name in names
    }
    offers = []
    for name in names:
        services = []
        for _ in range(2 if random.random() < several else 1):
            start = int(random.integers(0, layers)) if random.random() < 0.7 else 0
            end = int(min(layers, start + 1 + random.integers(layers)))
            services.append(
                service(start, end, layers, decode_s=float((end - start) * random.lognormal(-7, 0.7)), fixed_s=2e-4)
            )
        others = {names[int(at)] for at in random.integers(0, size, 4)} - {name}
        rtts = tuple(
            (other, float(places[name].rtt_to(places[other]) * random.lognormal(0.0, noise)))
            for other in sorted(others)
        )
        offers.append(offer(name, *services, rtts=rtts))
    view = swarm_view(MODEL, offers, now=NOW, coordinates=places)
    table = view.table(REVISION)
    return problem_of(view, REQUEST, stage_costs(table, REQUEST.terms), np.ones(len(table), dtype=bool))


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds at work on swarms small enough to solve plainly."""
    monkeypatch.setattr(prune, "PLAIN", 0)
    monkeypatch.setattr(prune, "HINT_SIZE", 4)
    monkeypatch.setattr(prune, "FEW", 3)
    monkeypatch.setattr(prune, "BATCH", 6)
    monkeypatch.setattr(prune, "MANY", 2)


def check(case: Problem) -> None:
    plain, quick = solve(case), prune.solve_at_scale(case)
    assert (plain is None) == (quick is None)
    if plain is None or quick is None:
        return
    assert quick.cost == pytest.approx(plain.cost, abs=1e-12)
    assert path_cost(case, quick.legs) == pytest.approx(quick.cost, abs=1e-12)
    assert len(stages_of(case, quick.legs)) <= case.max_stages
    assert prune.solve_at_scale(case, plain.cost * (1.0 - 1e-9)) is None


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=250, deadline=None)
@given(
    seeds, st.integers(2, 60), st.integers(1, 12), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.0, 0.0, 0.4])
)
@example(4_275_779_272, 48, 12, 0.0, 0.0)  # the head is the tail too: its way home is free
def test_equal_to_the_plain_programme(seed: int, size: int, layers: int, noise: float, several: float) -> None:
    check(problem(seed, size, layers, noise, several))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 30), st.integers(1, 8), st.integers(1, 3))
def test_equal_under_a_stage_limit(seed: int, size: int, layers: int, limit: int) -> None:
    check(replace(problem(seed, size, layers, 0.1, 0.2), max_stages=limit))


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(100, 400), st.integers(4, 24), st.sampled_from([0.0, 0.1]), st.sampled_from([3, 60]))
def test_equal_among_hundreds(seed: int, size: int, layers: int, noise: float, few: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "FEW", few)
        check(problem(seed, size, layers, noise, 0.05))


def with_ends_of_few(case: Problem, few: int) -> Problem:
    """The same swarm where `few` slow peers hold all layers, may ride at both ends, and nobody else holds an end."""
    mine = case.peer < few
    start, end = np.where(mine, 0, case.start), np.where(mine, case.layers, case.end)
    slow = np.where(mine, 2.0 * case.per_layer, case.per_layer)
    case = replace(case, start=start, end=end, per_layer=slow, twice=frozenset(range(few)))
    case = cut_out(case, case.peer >= few, 0, 1)
    return cut_out(case, case.peer >= few, case.layers - 1, case.layers)


@settings(max_examples=150, deadline=None)
@given(seeds, st.integers(2, 60), st.integers(2, 12), st.sampled_from([0.0, 0.1, 1.0]), st.integers(1, 3))
@example(153, 43, 12, 0.1, 2)
def test_equal_where_a_head_ends_its_own_ring(seed: int, size: int, layers: int, noise: float, few: int) -> None:
    case = with_ends_of_few(problem(seed, size, layers, noise, 0.0), few)
    check(case)
    plain, quick = ride_once(case, solve), ride_once(case, prune.solve_at_scale)
    assert (plain is None) == (quick is None)
    if plain is not None and quick is not None:
        assert quick.cost == pytest.approx(plain.cost, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(2, 60), st.integers(2, 12), st.sampled_from([0.1, 2.0]), st.sampled_from([0.5, 1.0]))
@example(141, 25, 10, 2.0, 1.0)
def test_equal_where_peers_claim_no_height(seed: int, size: int, layers: int, noise: float, share: float) -> None:
    """An offer may claim a height of nothing, and a measured pair be shorter than its places are apart."""
    case = problem(seed, size, layers, noise, 0.0)
    flat = np.random.default_rng(seed).random(case.latency.peers) < share
    height = np.where(flat, 0.0, case.latency.height)
    check(replace(case, latency=replace(case.latency, height=height)))


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(2, 60), st.integers(2, 12), st.sampled_from([0.0, 0.1, 0.4]), st.floats(0.001, 1.0))
def test_nobody_is_paid_for_being_entered(seed: int, size: int, layers: int, noise: float, limit: float) -> None:
    """However short a measured pair is: the sweeps forget who has ridden, and would enter him again and again."""
    case = problem(seed, size, layers, noise, 0.1)
    bounds = ring_bounds(case, safe_heights(case))
    stretch, height = prune._geometry(case, bounds, limit)
    assert stretch >= prune.MIN_STRETCH
    assert height.min() >= -prune.SLACK or stretch == prune.MIN_STRETCH


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(2, 40), st.integers(2, 12), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 2))
def test_no_bound_is_above_a_ring(seed: int, size: int, layers: int, noise: float, few: int) -> None:
    """The cheapest ring of each of some heads, not only of the best, as if it were the one to be found."""
    case = problem(seed, size, layers, noise, 0.1)
    case = with_ends_of_few(case, few) if few else case
    for head in np.flatnonzero(case.start == 0)[:6]:
        ring = solve(case, heads=np.array([head]))
        if ring is not None and len(ring.legs) > 1:
            survives(case, ring)


def survives(case: Problem, ring: Solution) -> None:
    """No bound on the ring's riders is above what it costs, whatever the neighbourhoods."""
    limit, (head, *riders) = ring.cost + prune.SLACK, [leg[0] for leg in ring.legs]
    bounds = ring_bounds(case, safe_heights(case))
    assert (bounds[[head, *riders]] <= limit).all()
    stretch, height = prune._geometry(case, bounds, ring.cost)
    bounds = ring_bounds(case, height)
    assert (bounds[[head, *riders]] <= limit).all()
    place, heads = stretch * case.latency.place[case.peer], np.flatnonzero(case.start == 0)
    for side in (0.02, 0.002, 0.0):
        centres = prune._neighbourhoods(place, heads, bounds, side, np.zeros_like(heads))
        pairs = prune._discs(place, centres, bounds, ring.cost)
        bound, as_head = prune._inside_discs(case, height, centres, pairs, 4)
        mine = (pairs.centre == centres.of[head]) & np.isin(pairs.member, riders)
        assert set(pairs.member[mine]) == set(riders)
        assert (bound[mine] <= limit).all()
        assert as_head[head] <= limit


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(2, 30), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4))
def test_a_sweep_is_never_above_a_ring(seed: int, size: int, layers: int, groups: int, bands: int) -> None:
    """Rings drawn at random, priced by the sweep's own rule with true distances from the head."""
    random = np.random.default_rng(seed)
    start = random.integers(0, layers, size)
    end = np.minimum(layers, start + 1 + random.integers(0, layers, size))
    gap, group = random.exponential(0.01, size), random.integers(0, groups, size)
    start[gap == gap.min()] = 0
    gap[gap == gap.min()] = 0.0
    width = np.full(groups, 0.05 / bands)
    band = np.minimum((gap / width[0]).astype(np.int64), bands - 1)
    enter, leave, finish, per_layer = (random.lognormal(-6, 1, size) for _ in range(4))
    rows = Rows(layers, start, end, group, band, groups, bands, width, enter, leave, finish, per_layer)
    bound = through(rows)
    for _ in range(30):
        ring = _random_chain(random, start, end, group, band, layers)
        if not ring:
            continue
        cost = sum(enter[i] + (b - a) * per_layer[i] for i, a, b in ring) + finish[ring[-1][0]]
        cost += sum(leave[i] for i, _, _ in ring[:-1])
        way = [0.0, *(gap[i] for i, _, _ in ring), 0.0]
        cost += sum(abs(b - a) for a, b in pairwise(way[1:]))
        assert all(bound[i] <= cost for i, _, _ in ring)


def _random_chain(
    random: np.random.Generator, start: Ints, end: Ints, group: Ints, band: Ints, layers: int
) -> list[tuple[int, int, int]]:
    """Legs that cover all layers inside one group, from a candidate in its nearest band; empty where luck ran out."""
    at, ring, mine = 0, [], -1
    while at < layers:
        fits = (start <= at) & (end > at) & ((group == mine) if ring else (band == 0))
        if not fits.any():
            return []
        i = int(random.choice(np.flatnonzero(fits)))
        to = int(random.integers(at + 1, end[i] + 1))
        ring.append((i, at, to))
        at, mine = to, int(group[i])
    return ring


def test_all_alike_and_nowhere_in_particular() -> None:
    offers = [offer(f"p{at}", service(at % 3 * 4, at % 3 * 4 + 4, 12)) for at in range(60)]
    view = swarm_view(MODEL, offers, now=NOW)
    rows = eligible(view, REQUEST)
    check(problem_of(view, REQUEST, stage_costs(view.table(REVISION), REQUEST.terms), rows))
