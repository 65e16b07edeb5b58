"""From a view and a request to candidates: the constraints, one by one, and the error that names the one that broke.

Knows which services a request may ride. Refuses to know which of them are fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from paceline.routing.capacity import Capacity, capacities
from paceline.routing.choice import Candidates
from paceline.routing.cost import StageCosts
from paceline.routing.plan import RingRequest
from paceline.routing.problem import Problem, cut_out
from paceline.routing.view import Bools, ServiceTable, SwarmView
from paceline.wire.errors import NoRoute


def eligible(view: SwarmView, request: RingRequest, needed: Bools | None = None) -> Bools:
    """Rows of the revision's table that the request may use, `needed` being the layers they have to cover (None: all).

    Raises NoRoute, naming the constraint that broke and the layers.
    """
    table = view.table(request.revision)
    rows = np.ones(len(table), dtype=bool)
    _require(
        view,
        request,
        rows,
        needed,
        "no live offer holds",
        "start a node that serves these layers, or wait for one to join",
    )
    for allowed, fault, cure in _constraints(view, table, request):
        rows = rows & allowed
        _require(view, request, rows, needed, fault, cure)
    if request.ends is not None:
        _require(
            view,
            request,
            rows & _of_peers(table, request.ends),
            _outermost(table.layers) if needed is None else _outermost(table.layers) & needed,
            "nobody who may hold the ends holds",
            "start a node of your own with the first and the last layers",
        )
    return rows


def numerics_classes(view: SwarmView, request: RingRequest, rows: Bools) -> list[Bools]:
    """Sets of rows that may form one ring together: each class that covers every layer, or all rows where mixing is
    allowed. Raises NoRoute where no single class covers."""
    table = view.table(request.revision)
    if request.mix_numerics:
        return [rows]
    classes = [chosen for of_class in table.classes.values() if (chosen := rows & of_class).any()]
    whole = [chosen for chosen in classes if not _missing(table, chosen)]
    if not whole:
        closest = min(classes, key=lambda chosen: len(_missing(table, chosen)))
        name = str(table.numerics[closest][0])
        raise _no_route(
            view,
            request,
            _missing(table, closest),
            f"no single numerics class is complete; in the closest one, {name}, nobody holds",
            "allow mixed numerics classes, or start a node of this class",
        )
    return whole


def problem_of(view: SwarmView, request: RingRequest, costs: StageCosts, rows: Bools) -> Problem:
    """The bare numbers for the chosen rows."""
    table = view.table(request.revision)
    at = np.flatnonzero(rows)
    problem = Problem(
        layers=table.layers,
        row=at,
        peer=table.peer[at],
        start=table.start[at],
        end=table.end[at],
        per_layer=costs.per_layer[at],
        entry=costs.entry[at],
        tail=costs.tail[at],
        upload=costs.upload[at],
        latency=view.latency,
        max_stages=request.max_stages,
    )
    if request.ends is not None:
        problem = replace(problem, twice=frozenset(view.peer_index[p] for p in request.ends if p in view.peer_index))
        others = ~np.isin(problem.peer, list(problem.twice))
        problem = cut_out(problem, others, 0, 1)
        others = ~np.isin(problem.peer, list(problem.twice))
        problem = cut_out(problem, others, table.layers - 1, table.layers)
    return problem


def candidates_of(view: SwarmView, request: RingRequest, problem: Problem) -> Candidates:
    """`problem` with what its candidates can do, where the request's objective asks for it. Survivors of a repair (rows
    below 0) are in the ring anyway: they are no bottleneck.
    """
    if request.objective == "latency":
        return Candidates(problem)
    able, free = capacities(view.table(request.revision), request.terms), problem.row >= 0
    ample = (1.0 + able.layers_per_s.sum()) * problem.layers
    capacity = Capacity(
        np.where(free, able.layers_per_s[problem.row], ample),
        np.where(free, able.full[problem.row], 1.0),
        np.where(free, able.sessions[problem.row], 0.0),
    )
    return Candidates(problem, capacity, [offer.peer for offer in view.offers])


def _of_peers(table: ServiceTable, peers: frozenset[str]) -> Bools:
    return np.array([address.peer in peers for address in table.addresses], dtype=bool)


def _outermost(layers: int) -> Bools:
    at = np.arange(layers)
    ends: Bools = (at == 0) | (at == layers - 1)
    return ends


def _constraints(view: SwarmView, table: ServiceTable, request: RingRequest) -> Iterator[tuple[Bools, str, str]]:
    yield (
        table.serving,
        "only joining or draining nodes hold",
        "wait until a joining node is ready, or start another",
    )
    if request.trusted is not None:
        yield (
            _of_peers(table, request.trusted),
            "no trusted peer holds",
            "trust more peers, or start a node of your own for these layers",
        )
    if request.excluded:
        yield (
            ~_of_peers(table, request.excluded),
            "only excluded or lost peers hold",
            "allow one of the excluded peers again, or wait for a replacement",
        )
    if request.regions is not None:
        regions = request.regions
        yield (
            np.array([view.offers[at].region in regions for at in table.peer], dtype=bool),
            f"no peer in {' or '.join(sorted(regions)) or 'no region'} holds",
            "allow more regions, or start a node there",
        )
    yield (
        table.max_context >= request.positions,
        f"no peer takes {request.positions} positions of context for",
        "ask for fewer tokens, or shorten the prompt",
    )
    yield (
        table.kv_free >= request.positions,
        f"no peer has KV room for {request.positions} positions left for",
        "try again when a session has ended, or ask for fewer tokens",
    )
    if request.numerics is not None:
        yield (
            np.asarray(table.numerics == request.numerics),
            f"no peer of numerics class {request.numerics} holds",
            "ask for another numerics class, or for none in particular",
        )


def _require(view: SwarmView, request: RingRequest, rows: Bools, needed: Bools | None, fault: str, cure: str) -> None:
    table = view.table(request.revision)
    if not len(table):
        known = ", ".join(coverage.revision.hex()[:12] for coverage in view.complete())
        if not view.revisions:
            raise NoRoute(
                f"nobody offers {view.model}", cure="start a node with this model, or check the swarm's address"
            )
        raise NoRoute(
            f"nobody offers revision {request.revision.hex()[:12]} of {view.model}",
            cure=f"use a complete revision: {known}" if known else "start nodes that serve this revision",
        )
    missing = _missing(table, rows, needed)
    if missing:
        raise _no_route(view, request, missing, fault, cure)


def _missing(table: ServiceTable, rows: Bools, needed: Bools | None = None) -> tuple[int, ...]:
    bare = table.replicas(rows) == 0
    return tuple(int(layer) for layer in np.flatnonzero(bare if needed is None else bare & needed))


def _no_route(view: SwarmView, request: RingRequest, missing: tuple[int, ...], fault: str, cure: str) -> NoRoute:
    table = view.table(request.revision)
    where = f"{view.model} revision {request.revision.hex()[:12]}"
    return NoRoute(f"{fault} layers {runs(missing)} of {table.layers} ({where})", missing=missing, cure=cure)


def runs(layers: tuple[int, ...]) -> str:
    """``(3, 4, 5, 9)`` → ``"3-5, 9"``."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and parts[-1][1] == layer - 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
