"""Repair of a ring, and the shadows that make repair quick.

Knows a plan, a view and who is lost. Refuses to re-tile: a survivor never changes its span, unless nobody else is left.
What to do where survivors cannot all stay is ring.py's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paceline.routing.build import finished, stage_for
from paceline.routing.candidates import candidates_of, eligible, problem_of
from paceline.routing.choice import choose
from paceline.routing.cost import StageCosts, stage_costs
from paceline.routing.latency import Floats, Ints
from paceline.routing.plan import PlannedStage, RingPlan, RingRequest
from paceline.routing.problem import Problem, cut_out
from paceline.routing.view import Bools, ServiceTable, SwarmView
from paceline.wire.errors import NoRoute


def mended(view: SwarmView, plan: RingPlan, lost: frozenset[str]) -> RingPlan:
    """Repair `plan` without the `lost` peers: every survivor keeps exactly its span, the holes are filled optimally.

    Survivors reload nothing and keep their KV (`kept` is true), even where they are draining, full or silent by now. A
    hole may be filled by several stages. Only where no other peers can fill the holes, a survivor next to one that also
    holds the missing layers takes them: its stage then grows, so its KV is rebuilt (`kept` is false). The numerics
    class stays the plan's. Raises NoRoute: nobody holds some layers any more, or only survivors who ride elsewhere in
    the ring do, and a peer rides once.
    """
    survivors = tuple(stage for stage in plan.stages if stage.peer not in lost)
    if len(survivors) == len(plan.stages):
        return replace(plan, stages=tuple(replace(stage, kept=True) for stage in plan.stages))
    view = view.with_peers(stage.at for stage in survivors)
    request = terms_of_repair(plan, lost)
    others = replace(request, excluded=request.excluded | {stage.peer for stage in survivors})
    try:
        repaired = _filled(view, others, plan, survivors)
    except NoRoute:
        repaired = _filled(view, request, plan, survivors)
    return replace(repaired, request=plan.request)


def terms_of_repair(plan: RingPlan, lost: frozenset[str]) -> RingRequest:
    """What any ring that goes on with the session of `plan` must keep to: without the `lost`, in the same numerics."""
    request = replace(plan.request, excluded=plan.request.excluded | lost)
    return request if request.mix_numerics else replace(request, numerics=plan.numerics)


def standbys(view: SwarmView, plan: RingPlan) -> tuple[PlannedStage | None, ...]:
    """The best shadow for each stage, or None where there is none.

    A shadow holds the whole stage in the same revision and numerics, offers spare capacity, is not in the ring, and
    shadows one stage only. Stages with the fewest candidates choose first; each takes the shadow that would make the
    ring fastest once promoted.
    """
    view = view.with_peers(stage.at for stage in plan.stages)
    table = view.table(plan.revision)
    costs = stage_costs(table, plan.request.terms, plan.request.past, plan.request.prompt)
    spare = np.array([service.shadow for service in table.services], dtype=bool) & table.serving
    spare &= table.kv_free >= plan.request.positions
    fits = [_shadow_rows(table, plan, stage, spare) for stage in plan.stages]
    chosen: list[PlannedStage | None] = [None] * len(plan.stages)
    taken: set[str] = set()
    for at in sorted(range(len(plan.stages)), key=lambda index: (len(fits[index]), index)):
        options = [
            _substitute(view, plan, costs, at, row) for row in fits[at] if table.addresses[row].peer not in taken
        ]
        if options:
            best = min(options, key=lambda option: option[0])[1]
            chosen[at] = best
            taken.add(best.peer)
    return tuple(chosen)


def _filled(view: SwarmView, request: RingRequest, plan: RingPlan, survivors: tuple[PlannedStage, ...]) -> RingPlan:
    """The ring through all `survivors` whose other legs lie in the holes, chosen as the request's objective asks."""
    table = view.table(request.revision)
    holes = np.ones(plan.layers, dtype=bool)
    for stage in survivors:
        holes[stage.span.start : stage.span.end] = False
    rows = eligible(view, request, holes) if holes.any() else np.zeros(len(table), dtype=bool)
    costs = stage_costs(table, request.terms, request.past, request.prompt)
    problem = _with_survivors(view, problem_of(view, request, costs, rows), survivors)
    found = choose([candidates_of(view, request, problem)], request.objective, request.seed)
    if found is None:
        raise NoRoute(
            f"every lost layer is still held, but not so that at most {request.max_stages} stages can fill the holes "
            "with each peer once",
            cure="open a new ring instead of repairing this one",
        )
    legs = [survivors[-1 - row] if row < 0 else stage_for(table, costs, (row, a, b)) for row, a, b in found[0]]
    kept = frozenset((stage.peer, stage.span) for stage in survivors)
    return finished(view, request, legs, kept, found[1])


def _with_survivors(view: SwarmView, free: Problem, survivors: tuple[PlannedStage, ...]) -> Problem:
    """Survivors as the only candidates for their layers (row ``-1 - k``), everybody else cut down to the holes."""
    peers = np.array([view.peer_index[stage.peer] for stage in survivors], dtype=np.int64)
    own = np.isin(free.peer, peers)
    # A survivor that grows runs one longer forward pass: what it pays per frame is paid already.
    free = replace(free, entry=np.where(own, 0.0, free.entry))
    for stage in survivors:
        free = cut_out(free, np.ones(len(free), dtype=bool), stage.span.start, stage.span.end)
    tail = np.array([stage.tail_s for stage in survivors])
    compute = np.array([stage.compute_s for stage in survivors])
    fixed: dict[str, Ints | Floats] = {
        "row": -1 - np.arange(len(survivors)),
        "peer": peers,
        "start": np.array([stage.span.start for stage in survivors], dtype=np.int64),
        "end": np.array([stage.span.end for stage in survivors], dtype=np.int64),
        "per_layer": np.zeros(len(survivors)),
        "entry": compute - tail,
        "tail": tail,
        "upload": np.array([stage.upload_s for stage in survivors]),
    }
    return free.joined(fixed)


def _shadow_rows(table: ServiceTable, plan: RingPlan, stage: PlannedStage, spare: Bools) -> list[int]:
    fits = (
        spare & (table.start <= stage.span.start) & (table.end >= stage.span.end) & (table.numerics == stage.numerics)
    )
    allowed = plan.request.trusted
    return [
        int(row)
        for row in np.flatnonzero(fits)
        if (peer := table.addresses[row].peer) not in plan.peers
        and peer not in plan.request.excluded
        and (allowed is None or peer in allowed)
    ]


def _substitute(view: SwarmView, plan: RingPlan, costs: StageCosts, at: int, row: int) -> tuple[float, PlannedStage]:
    """Token time of the ring with stage `at` served by `row`, and the stage as it would be."""
    span = plan.stages[at].span
    stages = list(plan.stages)
    stages[at] = stage_for(view.table(plan.revision), costs, (row, span.start, span.end))
    promoted = finished(view, plan.request, stages)
    return promoted.token_s, promoted.stages[at]
