"""The bounds drop nothing that matters: rings at scale equal the plain programme's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.routing import prune
from paceline.routing.candidates import eligible, problem_of
from paceline.routing.coordinates import Coordinate
from paceline.routing.cost import stage_costs
from paceline.routing.plan import RingRequest
from paceline.routing.problem import Problem, path_cost, solve, stages_of
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
    monkeypatch.setattr(prune, "BATCH", 6)


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
def test_equal_to_the_plain_programme(seed: int, size: int, layers: int, noise: float, several: float) -> None:
    check(problem(seed, size, layers, noise, several))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 30), st.integers(1, 8), st.integers(1, 3))
def test_equal_under_a_stage_limit(seed: int, size: int, layers: int, limit: int) -> None:
    check(replace(problem(seed, size, layers, 0.1, 0.2), max_stages=limit))


def test_all_alike_and_nowhere_in_particular() -> None:
    offers = [offer(f"p{at}", service(at % 3 * 4, at % 3 * 4 + 4, 12)) for at in range(60)]
    view = swarm_view(MODEL, offers, now=NOW)
    rows = eligible(view, REQUEST)
    check(problem_of(view, REQUEST, stage_costs(view.table(REVISION), REQUEST.terms), rows))
