"""From legs to a plan: stages merged by peer, hops filled in, totals predicted.

Knows the arithmetic of a plan. Refuses to know how its legs were chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from paceline.routing.cost import StageCosts, frame_bytes, stage_costs, time_to_first_token
from paceline.routing.plan import Drawn, PlannedStage, RingPlan, RingRequest
from paceline.routing.problem import Leg
from paceline.routing.view import ServiceTable, SwarmView
from paceline.wire.ids import Span
from paceline.wire.messages import Stage


def stage_for(table: ServiceTable, costs: StageCosts, leg: Leg) -> PlannedStage:
    """One leg as a stage, its hop still unknown."""
    row, start, end = leg
    tail_s = float(costs.tail[row]) if end == table.layers else 0.0
    return PlannedStage(
        at=table.addresses[row],
        span=Span(start, end),
        numerics=table.services[row].numerics,
        compute_s=float(costs.entry[row] + (end - start) * costs.per_layer[row]) + tail_s,
        tail_s=tail_s,
        hop_s=0.0,
        upload_s=float(costs.upload[row]),
        entry_s=float(costs.entry[row]),
        prefill_s_per_position=float((end - start) * costs.prefill[row]),
    )


def merged(stages: list[PlannedStage]) -> list[PlannedStage]:
    """Consecutive services of one peer become one stage: a session has one stage per peer."""
    merged: list[PlannedStage] = []
    for stage in stages:
        if not merged or merged[-1].peer != stage.peer:
            merged.append(stage)
            continue
        last = merged[-1]
        merged[-1] = replace(
            last,
            span=Span(last.span.start, stage.span.end),
            compute_s=last.compute_s + stage.compute_s,
            tail_s=stage.tail_s,
            upload_s=stage.upload_s,
            entry_s=last.entry_s + stage.entry_s,
            prefill_s_per_position=last.prefill_s_per_position + stage.prefill_s_per_position,
        )
    return merged


def finished(
    view: SwarmView,
    request: RingRequest,
    legs: list[PlannedStage],
    kept: frozenset[tuple[str, Span]] = frozenset(),
    drawn: Drawn | None = None,
) -> RingPlan:
    """The plan of these legs: hops and totals filled in. `kept`: survivors of a repair, as they were."""
    table = view.table(request.revision)
    layers, hidden, stages = table.layers, int(table.hidden[0]), merged(legs)
    latencies = [_one_way(view, stage.peer, stages[(at + 1) % len(stages)].peer) for at, stage in enumerate(stages)]
    last = len(stages) - 1
    done = tuple(
        replace(
            stage, hop_s=latencies[at] + (stage.upload_s if at < last else 0.0), kept=(stage.peer, stage.span) in kept
        )
        for at, stage in enumerate(stages)
    )
    token_s = sum(stage.compute_s + stage.hop_s for stage in done)
    ttft_s = _ttft(view, request, hidden, done, latencies)
    return RingPlan(view.model, request.revision, layers, done, token_s, ttft_s, request, drawn)


def repriced(view: SwarmView, plan: RingPlan) -> RingPlan:
    """`plan` with its hops as far as they are in `view`: what other rings of that view may be compared with."""
    view = view.with_peers(stage.at for stage in plan.stages)
    return finished(view, plan.request, list(plan.stages), frozenset((stage.peer, stage.span) for stage in plan.stages))


def ridden(view: SwarmView, request: RingRequest, route: Sequence[Stage]) -> tuple[RingPlan, frozenset[str]] | None:
    """A `route` that a session rides already, as a plan, and the peers that offer their stage of it no more.

    What those cost is not known, so the totals mean nothing until they are replaced. None where all are silent.
    """
    view = view.with_peers(stage.at for stage in route)
    costs = stage_costs(view.table(request.revision), request.terms, request.past, request.prompt)
    offered = [_offered(view, request, costs, stage) for stage in route]
    numerics = next((legs[0].numerics for legs in offered if legs), None)
    if numerics is None:
        return None
    legs = [leg for stage, known in zip(route, offered, strict=True) for leg in known or [_silent(stage, numerics)]]
    silent = frozenset(stage.at.peer for stage, known in zip(route, offered, strict=True) if not known)
    return finished(view, request, legs), silent


def _offered(view: SwarmView, request: RingRequest, costs: StageCosts, stage: Stage) -> list[PlannedStage]:
    """The services of its peer that make up a stage, from front to back; empty where they do not."""
    table = view.table(request.revision)
    mine = table.peer == view.peer_index[stage.at.peer]
    if request.numerics is not None:
        mine &= table.numerics == request.numerics
    legs, at = [], stage.start
    while at < stage.end:
        rows = np.flatnonzero(mine & (table.start <= at) & (table.end > at))
        if not len(rows):
            return []
        row = int(rows[np.argmax(table.end[rows])])
        end = min(stage.end, int(table.end[row]))
        legs.append(stage_for(table, costs, (row, at, end)))
        at = end
    return legs


def _silent(stage: Stage, numerics: str) -> PlannedStage:
    return PlannedStage(stage.at, Span(stage.start, stage.end), numerics, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _ttft(
    view: SwarmView, request: RingRequest, hidden: int, stages: tuple[PlannedStage, ...], latencies: list[float]
) -> float:
    positions = frame_bytes(hidden, 2) - frame_bytes(hidden, 1)
    one = float(frame_bytes(hidden, 1))
    client = [_client_s(view, stage.peer) for stage in stages]
    return time_to_first_token(
        request.prompt,
        request.chunk,
        [stage.prefill_s_per_position for stage in stages],
        [stage.entry_s for stage in stages],
        latencies[:-1],
        [stage.upload_s / one * float(positions) for stage in stages[:-1]],
        stages[-1].tail_s,
        (2.0 * max(client), client[0], client[-1]),
    )


def _one_way(view: SwarmView, a: str, b: str) -> float:
    """Seconds between two peers of the view."""
    return view.latency.one_way(view.peer_index[a], view.peer_index[b])


def _client_s(view: SwarmView, peer: str) -> float:
    return float(view.client_s[view.peer_index[peer]])
