"""What do many sessions together get under each objective? ``python -m bench.objectives``

A simulated swarm and a fluid model. Nodes stand in five cities; spans, speeds and batching are drawn. Sessions arrive
in groups; those of one group see the same offers (nodes announce every few seconds), the next group sees their
sessions. Then everybody decodes: a session can make ``1 / token_s`` tokens a second on its ring with nobody else there,
a node can run so many layers a second at a full batch, and rates rise together until a node of the ring is full or the
session is as fast as it can be (max-min fairness). Printed: tokens per second of all sessions, beside the swarm's
max-flow, and by how much the nodes' shares of the load differ from their shares of capacity (half the sum).

Exits 1 where throughput does not reach `BAR` of the max-flow with the most sessions, or less than latency does.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from msgspec import structs

from paceline.routing.build import finished, stage_for
from paceline.routing.capacity import capacities, flow_weights
from paceline.routing.cost import CostTerms, stage_costs
from paceline.routing.plan import OBJECTIVES
from paceline.routing.ring import RingPlan, RingRequest, cheapest_ring, chosen_ring
from paceline.routing.view import SwarmView, swarm_view
from paceline.wire.ids import Span
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Measured, Offer, Service

BAR = 0.8
LAYERS, HIDDEN, NOW = 32, 4096, 1_000_000.0
REVISION = b"\x07" * 32
STEPS = 400
"""Of the rising of rates."""


def swarm(size: int, seed: int) -> tuple[Offer, ...]:
    """Offers of `size` nodes, every layer held."""
    random = np.random.default_rng(seed)
    cities = random.uniform(0.0, 0.05, (5, 2))
    at = cities[random.integers(0, 5, size)] + random.normal(0.0, 0.001, (size, 2))
    while True:
        length = random.integers(4, 17, size)
        start = np.clip(random.integers(-4, LAYERS, size), 0, LAYERS - length)
        if all(((start <= layer) & (start + length > layer)).any() for layer in range(LAYERS)):
            break
    each_s = 1e-3 * random.lognormal(0.0, 0.6, size)
    offers = []
    for k in range(size):
        gaps = 2.0 * np.linalg.norm(at - at[k], axis=1) + 0.004
        rtts = tuple((f"n{j}", float(gaps[j])) for j in np.argsort(gaps)[1:17])
        decode_s = float(each_s[k] * length[k])
        measured = Measured(decode_s, decode_s / 30, 3e-4, decode_s / 8, 1e-3, 5e6)
        span = int(start[k]), int(start[k] + length[k])
        service = Service("bench", REVISION, *span, LAYERS, HIDDEN, "cuda-bf16", measured, 1 << 20, 8192)
        offers.append(Offer(PeerAddress(f"n{k}"), 1, NOW, NOW + 60, (service,), rtts=rtts))
    return tuple(offers)


class Outcome(NamedTuple):
    tokens_per_s: float
    token_s: float
    off: float


def run(offers: tuple[Offer, ...], objective: str, sessions: int, group: int, seed: int) -> Outcome:
    """Let `sessions` choose, then decode."""
    there = dict.fromkeys((o.peer for o in offers), 0)
    rings: list[RingPlan] = []
    for begin in range(0, sessions, group):
        view = _view(offers, there)
        request = RingRequest(REVISION, objective=objective)  # type: ignore[arg-type]
        many = min(group, sessions - begin)
        if objective == "latency":
            rings += [cheapest_ring(view, request)] * many
        else:
            rings += [chosen_ring(view, replace(request, seed=(seed << 20) + begin + k)) for k in range(many)]
        for ring in rings[begin:]:
            for peer in ring.peers:
                there[peer] += 1
    return _decode(_view(offers, dict.fromkeys(there, 0)), rings)


def _view(offers: tuple[Offer, ...], there: dict[str, int]) -> SwarmView:
    told = (structs.replace(o, services=(structs.replace(o.services[0], sessions=there[o.peer]),)) for o in offers)
    return swarm_view("bench", told, now=NOW)


def _decode(empty: SwarmView, rings: list[RingPlan]) -> Outcome:
    """Max-min fair rates by raising all that can still be raised, step by step."""
    table = empty.table(REVISION)
    row = {address.peer: at for at, address in enumerate(table.addresses)}
    able = capacities(table, CostTerms()).layers_per_s
    needs = np.zeros((len(rings), len(table)))
    for at, ring in enumerate(rings):
        for stage in ring.stages:
            needs[at, row[stage.peer]] += len(stage.span)
    known: dict[tuple[tuple[str, Span], ...], float] = {}
    for ring in rings:
        key = tuple((stage.peer, stage.span) for stage in ring.stages)
        known[key] = known.get(key) or _alone_s(empty, ring)
    alone = np.array([1.0 / known[tuple((s.peer, s.span) for s in ring.stages)] for ring in rings])
    rate = np.zeros(len(rings))
    for _ in range(STEPS):
        left = able - rate @ needs
        open_ = (rate < alone * (1.0 - 1e-9)) & ~(needs[:, left <= 1e-6 * able] > 0.0).any(axis=1)
        if not open_.any():
            break
        wanted = open_ @ needs
        step = float(np.min(left[wanted > 0.0] / wanted[wanted > 0.0]))
        rate[open_] += min(step, float((alone - rate)[open_].min()))
    load = (rate @ needs) / able
    shares, fair = (rate @ needs) / (rate @ needs).sum(), able / able.sum()
    assert load.max() <= 1.0 + 1e-6
    return Outcome(float(rate.sum()), float(1.0 / alone.mean()), float(np.abs(shares - fair).sum() / 2.0))


def _alone_s(empty: SwarmView, ring: RingPlan) -> float:
    """A token's time on this ring with nobody else there."""
    table = empty.table(REVISION)
    costs, row = stage_costs(table, CostTerms()), {address.peer: at for at, address in enumerate(table.addresses)}
    legs = [stage_for(table, costs, (row[s.peer], s.span.start, s.span.end)) for s in ring.stages]
    return finished(empty, ring.request, legs).token_s


def main() -> int:
    """Print the table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--sessions", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--group", type=int, default=128, help="sessions that choose from the same offers")
    parser.add_argument("--seeds", type=int, default=2)
    chosen = parser.parse_args()
    met = True
    print("tokens/s of all sessions (share of the max-flow), time of a token alone, load off from capacity; means")
    for sessions in chosen.sessions:
        found: dict[str, list[tuple[float, Outcome]]] = {objective: [] for objective in OBJECTIVES}
        for seed in range(chosen.seeds):
            offers = swarm(chosen.nodes, seed)
            table = _view(offers, dict.fromkeys((o.peer for o in offers), 0)).table(REVISION)
            able = capacities(table, CostTerms()).layers_per_s
            most = flow_weights(LAYERS, table.start, table.end, able)[1]
            for objective in OBJECTIVES:
                outcome = run(offers, objective, sessions, min(chosen.group, sessions), seed)
                found[objective].append((outcome.tokens_per_s / most, outcome))
        print(f"{sessions} sessions on {chosen.nodes} nodes:")
        for objective, rows in found.items():
            share, rate, alone, off = (
                float(np.mean([pick(row) for row in rows]))
                for pick in (
                    lambda row: row[0],
                    lambda row: row[1].tokens_per_s,
                    lambda row: row[1].token_s,
                    lambda row: row[1].off,
                )
            )
            print(f"  {objective:<11}{rate:>8.1f} tokens/s ({share:>6.1%}){alone * 1e3:>8.1f} ms{off:>8.1%}")
        shares = {objective: np.mean([share for share, _ in rows]) for objective, rows in found.items()}
        if sessions == max(chosen.sessions):
            met = shares["throughput"] >= max(BAR, float(shares["latency"]))
    print(f"bar: throughput reaches {BAR:.0%} of the max-flow, and no less than latency: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
