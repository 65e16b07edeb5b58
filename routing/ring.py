"""The ring of a request and its runner-up; with repair.py, all that a client asks of routing.

Knows views and requests. Refuses to know time, sockets and sessions: the same view and request give the same ring.
What a ring is chosen for is in choice.py, the search in problem.py (exact) and prune.py (what makes it fast at scale,
without giving up exactness).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from paceline.routing.build import finished, repriced, ridden, stage_for
from paceline.routing.candidates import candidates_of, eligible, numerics_classes, problem_of
from paceline.routing.choice import choose
from paceline.routing.cost import stage_costs
from paceline.routing.plan import PlannedStage, RingPlan, RingRequest, explain
from paceline.routing.repair import mended, standbys, terms_of_repair
from paceline.routing.view import SwarmView
from paceline.wire.errors import NoRoute

__all__ = [
    "PlannedStage",
    "RingPlan",
    "RingRequest",
    "cheapest_ring",
    "chosen_ring",
    "explain",
    "repriced",
    "reroute",
    "ridden",
    "runner_up",
    "standbys",
]


def chosen_ring(view: SwarmView, request: RingRequest) -> RingPlan:
    """The ring that the request's objective asks for, under its constraints: the cheapest, exactly, or one drawn.

    Of equals the cheapest is whichever the arrays hold first, so equal views give equal rings. Raises NoRoute, naming
    the missing layers, the constraint that lost them, and a cure.
    """
    rows = eligible(view, request)
    table = view.table(request.revision)
    costs = stage_costs(table, request.terms, request.past, request.prompt)
    classes = [
        candidates_of(view, request, problem_of(view, request, costs, chosen))
        for chosen in numerics_classes(view, request, rows)
    ]
    found = choose(classes, request.objective, request.seed)
    if found is None:
        raise NoRoute(
            f"every layer is covered, but no ring of at most {request.max_stages} stages uses each peer once",
            cure="allow more stages, or start a node with a longer span",
        )
    legs, drawn = found
    return finished(view, request, [stage_for(table, costs, leg) for leg in legs], drawn=drawn)


def cheapest_ring(view: SwarmView, request: RingRequest) -> RingPlan:
    """The ring with the least time per token, whatever the request's objective. Raises NoRoute as `chosen_ring`."""
    return chosen_ring(view, replace(request, objective="latency"))


def reroute(view: SwarmView, plan: RingPlan, lost: set[str] | frozenset[str]) -> RingPlan:
    """Repair `plan` without the `lost` peers: all survivors stay where they are, as `repair.mended` says.

    Where that leaves a hole (who holds the missing layers rides elsewhere in the ring, and a peer rides once), the
    cheapest new ring goes on with the session; who has just its old span in it keeps its KV (`kept`). So a repair
    fails only where no ring is left. Raises NoRoute, naming the layers that nobody holds any more.
    """
    lost = frozenset(lost)
    try:
        return mended(view, plan, lost)
    except NoRoute as unfilled:
        try:
            ring = cheapest_ring(view, terms_of_repair(plan, lost))
        except NoRoute:
            # Survivors may have ceased to offer what they still run: what the repair lacks says more.
            raise unfilled from None
    old = {(stage.peer, stage.span) for stage in plan.stages}
    stages = tuple(replace(stage, kept=(stage.peer, stage.span) in old) for stage in ring.stages)
    return replace(ring, stages=stages, request=plan.request)


def runner_up(view: SwarmView, plan: RingPlan) -> RingPlan | None:
    """What the plan's objective takes if at least one of the plan's peers must be done without: of these rings the
    fastest, or the one whose lot is next. None where each of the peers is indispensable.
    """
    others = []
    for peer in plan.peers:
        request = replace(plan.request, excluded=plan.request.excluded | {peer})
        with suppress(NoRoute):
            others.append(chosen_ring(view, request))
    return min(others, key=lambda ring: ring.token_s if ring.drawn is None else ring.drawn.lot, default=None)
