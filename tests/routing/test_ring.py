"""cheapest_ring against brute force, its constraints, its errors and its explanation."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.routing.cost import CostTerms
from paceline.routing.ring import RingPlan, RingRequest, cheapest_ring, explain, runner_up
from paceline.routing.view import swarm_view
from paceline.wire.errors import NoRoute
from paceline.wire.offers import Offer

from .swarms import GUESS, MODEL, NOW, REVISION, ring_s, rings, offer, service, swarms

REQUEST = RingRequest(REVISION)


def view_of(*offers: Offer, **more: object):  # type: ignore[no-untyped-def]
    return swarm_view(MODEL, offers, now=NOW, guess_rtt_s=GUESS, **more)  # type: ignore[arg-type]


def lawful(plan: RingPlan) -> None:
    """What every plan must satisfy."""
    assert plan.stages[0].span.start == 0
    assert plan.stages[-1].span.end == plan.layers
    assert all(a.span.end == b.span.start for a, b in zip(plan.stages, plan.stages[1:], strict=False))
    assert len(set(plan.peers)) == len(plan.peers)
    assert plan.token_s == pytest.approx(sum(stage.compute_s + stage.hop_s for stage in plan.stages))


@settings(max_examples=300, deadline=None)
@given(swarms())
def test_regret_is_zero(offers: tuple[Offer, ...]) -> None:
    layers = offers[0].services[0].layers
    costs = [ring_s(offers, ring) for ring in rings(offers, layers)]
    if not costs:
        with pytest.raises(NoRoute):
            cheapest_ring(view_of(*offers), REQUEST)
        return
    plan = cheapest_ring(view_of(*offers), REQUEST)
    lawful(plan)
    assert plan.token_s == pytest.approx(min(costs), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(swarms(), st.integers(1, 3))
def test_regret_is_zero_under_a_stage_limit(offers: tuple[Offer, ...], limit: int) -> None:
    layers = offers[0].services[0].layers
    costs = [ring_s(offers, r) for r in rings(offers, layers) if len({part[0] for part in r}) <= limit]
    request = replace(REQUEST, max_stages=limit)
    if not costs:
        with pytest.raises(NoRoute):
            cheapest_ring(view_of(*offers), request)
        return
    plan = cheapest_ring(view_of(*offers), request)
    lawful(plan)
    assert len(plan.stages) <= limit
    assert plan.token_s == pytest.approx(min(costs), abs=1e-12)
