"""The cheapest ring and its runner-up; with repair.py, all that a client asks of routing.

Knows views and requests. Refuses to know time, sockets and sessions: the same view and request give the same ring.
The search itself is in problem.py (exact) and prune.py (what makes it fast at scale, without giving up exactness).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paceline.routing.build import finished, repriced, stage_for
from paceline.routing.candidates import eligible, numerics_classes, problem_of
from paceline.routing.cost import stage_costs
from paceline.routing.plan import PlannedStage, RingPlan, RingRequest, explain
from paceline.routing.problem import Solution, ride_once
from paceline.routing.prune import solve_at_scale
from paceline.routing.repair import reroute, standbys
from paceline.routing.view import SwarmView
from paceline.wire.errors import NoRoute

__all__ = [
    "PlannedStage",
    "RingPlan",
    "RingRequest",
    "cheapest_ring",
    "explain",
    "repriced",
    "reroute",
    "runner_up",
    "standbys",
]


def cheapest_ring(view: SwarmView, request: RingRequest) -> RingPlan:
    """The ring with the least time per token under the request's constraints, exactly.

    Ties go to whichever the arrays hold first, so equal views give equal rings. Raises NoRoute, naming the missing
    layers, the constraint that lost them, and a cure.
    """
    rows = eligible(view, request)
    costs = stage_costs(view.table(request.revision), request.terms, request.past, request.prompt)
    best: Solution | None = None
    for chosen in numerics_classes(view, request, rows):
        problem = problem_of(view, request, costs, chosen)
        found = ride_once(problem, solve_at_scale, np.inf if best is None else best.cost)
        best = found or best
    if best is None:
        raise NoRoute(
            f"every layer is covered, but no ring of at most {request.max_stages} stages uses each peer once",
            cure="allow more stages, or start a node with a longer span",
        )
    table = view.table(request.revision)
    return finished(view, request, [stage_for(table, costs, leg) for leg in best.legs])


def runner_up(view: SwarmView, plan: RingPlan) -> RingPlan | None:
    """The best ring that does without at least one of the plan's peers; None where each of them is indispensable."""
    best: RingPlan | None = None
    for peer in plan.peers:
        request = replace(plan.request, excluded=plan.request.excluded | {peer})
        try:
            other = cheapest_ring(view, request)
        except NoRoute:
            continue
        if best is None or other.token_s < best.token_s:
            best = other
    return best
