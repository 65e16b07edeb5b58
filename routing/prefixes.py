"""A ring that knows the beginning of a prompt, beside the one that would be chosen without.

Knows plans and what earlier riders have computed, as far as their client remembers. Refuses to know tokens.

Prefill is no part of what a ring is chosen by: it is paid once, and the time per token for each. A stage that still has
the KV of a prompt's beginning computes only the rest (docs/adr/0014-prefixes.md), though all rows cross the network as
before. So an earlier ring is priced anew, in the same view, with as much of its prefill left out as its riders know,
and both rings are compared by the time until the request's last position. The search itself stays as it is, exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from paceline.routing.build import finished, repriced, stage_for
from paceline.routing.candidates import eligible
from paceline.routing.cost import stage_costs
from paceline.routing.plan import PlannedStage, RingPlan, RingRequest
from paceline.routing.view import SwarmView
from paceline.wire.ids import Span


@dataclass(frozen=True, slots=True)
class Knows:
    """A rider who has run `span` over the first `positions` of the prompt."""

    peer: str
    span: Span
    positions: int


def better_known(view: SwarmView, plan: RingPlan, earlier: Sequence[tuple[Knows, ...]]) -> RingPlan:
    """`plan`, or the earlier ring that ends the request sooner. Only rings that the plan's request allows now count."""
    rows = _rows(view, plan.request, {it.peer for riders in earlier for it in riders})
    rings = [ring for riders in earlier if (ring := _ring(view, plan.request, rows, riders)) is not None]
    known: dict[tuple[str, Span], int] = {}
    for it in (it for riders in earlier for it in riders):
        known[it.peer, it.span] = max(it.positions, known.get((it.peer, it.span), 0))
    return min((_credited(view, ring, known) for ring in (plan, *rings)), key=_whole_s)


def _whole_s(plan: RingPlan) -> float:
    """Seconds until the last position, if the answer takes all that was asked for."""
    return plan.ttft_s + max(0, plan.request.positions - plan.request.prompt) * plan.token_s


def _credited(view: SwarmView, plan: RingPlan, known: dict[tuple[str, Span], int]) -> RingPlan:
    """`plan` with the first token as early as what its riders know allows."""
    prompt = plan.request.prompt
    left = {peer_span: 1.0 - min(positions, prompt - 1) / prompt for peer_span, positions in known.items()}
    stages = tuple(
        replace(s, prefill_s_per_position=s.prefill_s_per_position * left.get((s.peer, s.span), 1.0))
        for s in plan.stages
    )
    return replace(plan, ttft_s=repriced(view, replace(plan, stages=stages)).ttft_s)


def _rows(view: SwarmView, request: RingRequest, peers: set[str]) -> dict[str, list[int]]:
    """Services of these peers that the request may use, as rows of the revision's table."""
    table, found = view.table(request.revision), dict[str, list[int]]()
    for row in np.flatnonzero(eligible(view, request)):
        if (peer := table.addresses[row].peer) in peers:
            found.setdefault(peer, []).append(int(row))
    return found


def _ring(
    view: SwarmView, request: RingRequest, rows: dict[str, list[int]], riders: tuple[Knows, ...]
) -> RingPlan | None:
    """The ring of just these riders at today's prices; None where the request or an offer does not allow it."""
    table = view.table(request.revision)
    costs, stages = stage_costs(table, request.terms, request.past, request.prompt), list[PlannedStage]()
    for it in riders:
        row = next((row for row in rows.get(it.peer, ()) if table.services[row].span.covers(it.span)), None)
        if row is None:
            return None
        stages.append(stage_for(table, costs, (row, it.span.start, it.span.end)))
    return finished(view, request, stages) if _lawful(request, table.layers, stages) else None


def _lawful(request: RingRequest, layers: int, stages: list[PlannedStage]) -> bool:
    """What `eligible` does not look at: the ring as a whole."""
    peers, ends = [stage.peer for stage in stages], request.ends
    if [stage.span.start for stage in stages] + [layers] != [0] + [stage.span.end for stage in stages]:
        return False
    if len(stages) > request.max_stages or (ends is not None and not {peers[0], peers[-1]} <= ends):
        return False
    comes_back = ends is not None and len(peers) > 2 and peers[0] == peers[-1]
    once = len(set(peers)) == len(peers) - comes_back
    return once and (request.mix_numerics or len({stage.numerics for stage in stages}) == 1)
