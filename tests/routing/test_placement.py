"""Splits against brute force; joiners go where they are needed; movers leave no gap."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.routing.flow import Held, bound_per_s, tokens_per_s
from paceline.routing.placement import (
    MOVE_GAIN,
    Device,
    choose_span,
    coverage,
    fastest_fleet,
    holders,
    should_move,
    split_layers,
    turning_points,
)
from paceline.routing.view import swarm_view
from paceline.wire.ids import Span

from .swarms import MODEL, NOW, REVISION, offer, service

tenths = st.integers(1, 30).map(lambda value: value / 10.0)
devices = st.builds(Device, tenths, st.integers(0, 6), tenths)
fleets = st.lists(devices, min_size=1, max_size=4)


def stage_s(costs: list[float], head: float, device: Device, start: int, end: int) -> float:
    work = sum(costs[start:end]) + (head if end == len(costs) else 0.0)
    return device.fixed_s + work * device.per_layer_s


@settings(max_examples=150, deadline=None)
@given(st.lists(tenths, min_size=1, max_size=7), tenths, fleets)
def test_split_has_the_quickest_slowest_stage(costs: list[float], head: float, fleet: list[Device]) -> None:
    best = np.inf
    for cuts in combinations_with_replacement(range(len(costs) + 1), len(fleet) - 1):
        bounds = list(zip((0, *cuts), (*cuts, len(costs)), strict=True))
        if all(b - a <= device.capacity for (a, b), device in zip(bounds, fleet, strict=True)):
            used = [(a, b, device) for (a, b), device in zip(bounds, fleet, strict=True) if b > a]
            best = min(best, max(stage_s(costs, head, device, a, b) for a, b, device in used))
    if not np.isfinite(best):
        with pytest.raises(ValueError, match="do not fit"):
            split_layers(costs, head, fleet)
        return
    spans = split_layers(costs, head, fleet)
    held = [(span, device) for span, device in zip(spans, fleet, strict=True) if span is not None]
    assert [layer for span, _ in held for layer in range(span.start, span.end)] == list(range(len(costs)))
    assert all(len(span) <= device.capacity for span, device in held)
    slowest = max(stage_s(costs, head, device, span.start, span.end) for span, device in held)
    assert slowest == pytest.approx(best)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7), fleets, st.integers(0, 20).map(lambda value: value / 10.0))
def test_fastest_fleet_equals_brute_force(layers: int, fleet: list[Device], hop_s: float) -> None:
    def ring_s(counts: tuple[int, ...]) -> float:
        used = [(n, device) for n, device in zip(counts, fleet, strict=True) if n]
        compute = sum(device.fixed_s + n * device.per_layer_s for n, device in used)
        return compute + (len(used) * hop_s if len(used) > 1 else 0.0)

    lawful = [c for c in product(*(range(device.capacity + 1) for device in fleet)) if sum(c) == layers]
    if not lawful:
        with pytest.raises(ValueError, match="do not fit"):
            fastest_fleet(layers, fleet, hop_s)
        return
    found = fastest_fleet(layers, fleet, hop_s)
    assert found in lawful
    assert ring_s(found) == pytest.approx(min(map(ring_s, lawful)))


def test_a_device_that_makes_the_ring_slower_gets_nothing() -> None:
    assert fastest_fleet(10, [Device(0.001, 10), Device(0.1, 10)], 0.02) == (10, 0)
    assert fastest_fleet(10, [Device(0.001, 6), Device(0.002, 6), Device(0.1, 10)], 0.02) == (6, 4, 0)


def test_turning_points_give_the_overlap_to_the_quicker() -> None:
    spans = [Span(0, 6), Span(4, 10), Span(8, 12)]
    assert turning_points(spans, [1.0, 2.0, 1.0]) == (Span(0, 6), Span(6, 8), Span(8, 12))
    assert turning_points(spans, [2.0, 1.0, 2.0]) == (Span(0, 4), Span(4, 10), Span(10, 12))
    with pytest.raises(ValueError, match="hole"):
        turning_points([Span(0, 2), Span(3, 4)], [1.0, 1.0])


@st.composite
def swarm_of(draw: st.DrawFn) -> tuple[int, list[Held]]:
    """Up to ten layers, and who holds some of them."""
    layers = draw(st.integers(1, 10))
    held = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, layers - 1))
        held.append(Held(Span(start, draw(st.integers(start + 1, layers))), draw(st.sampled_from([0.5, 1.0, 5.0]))))
    return layers, held


@settings(max_examples=200, deadline=None)
@given(swarm_of())
def test_flow_is_the_least_cut(swarm: tuple[int, list[Held]]) -> None:
    """Max-flow min-cut: over all sets of layers, what their holders give, divided among them (Hall's condition)."""
    layers, held = swarm
    cuts = []
    for chosen in range(1, 1 << layers):
        members = [layer for layer in range(layers) if chosen >> layer & 1]
        touching = sum(h.layers_per_s for h in held if any(layer in h.span for layer in members))
        cuts.append(touching / len(members))
    assert tokens_per_s(layers, held) == pytest.approx(min(cuts), rel=1e-5, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5), st.lists(devices, min_size=1, max_size=3))
def test_no_placement_passes_the_bound(layers: int, fleet: list[Device]) -> None:
    fleet = [device for device in fleet if device.capacity]
    most = [(device.capacity, device.holding(Span(0, min(device.capacity, layers))).layers_per_s) for device in fleet]
    best = 0.0
    choices = [
        [Span(a, b) for a in range(layers) for b in range(a + 1, min(layers, a + device.capacity) + 1)]
        for device in fleet
    ]
    for spans in product(*choices):
        best = max(best, tokens_per_s(layers, [d.holding(s) for d, s in zip(fleet, spans, strict=True)]))
    assert best <= bound_per_s(layers, most) * (1.0 + 1e-6)


@settings(max_examples=150, deadline=None)
@given(swarm_of(), devices.filter(lambda device: device.capacity > 0), st.integers(0, 99))
def test_a_joiner_covers_what_it_can_and_never_slows_the_swarm(
    swarm: tuple[int, list[Held]], device: Device, tie: int
) -> None:
    layers, others = swarm
    found = choose_span(layers, others, device, tie_break=tie)
    missing = [layer for layer in range(layers) if not any(layer in h.span for h in others)]
    assert len(found.span) == min(device.capacity, layers)
    assert found.span.end <= layers
    starts = range(layers - len(found.span) + 1)
    reach = [sum(start <= layer < start + len(found.span) for layer in missing) for start in starts]
    assert found.missing_before - found.missing_after == max(reach)
    assert found.after_per_s >= found.before_per_s * (1.0 - 1e-6)
    assert str(found.span) in str(found)


@settings(max_examples=150, deadline=None)
@given(swarm_of(), devices.filter(lambda device: device.capacity > 0), st.data())
def test_a_mover_gains_a_tenth_and_leaves_no_gap(
    swarm: tuple[int, list[Held]], device: Device, data: st.DataObject
) -> None:
    layers, others = swarm
    starts = st.integers(0, layers - 1)
    current, proposed = (Span(a, data.draw(st.integers(a + 1, layers))) for a in (data.draw(starts), data.draw(starts)))
    now, then = ([*others, device.holding(span)] for span in (current, proposed))
    held = [[any(layer in h.span for h in some) for layer in range(layers)] for some in (now, then)]
    if should_move(layers, others, device, current, proposed):
        assert not any(a and not b for a, b in zip(*held, strict=True))
        gained = tokens_per_s(layers, then) >= MOVE_GAIN * tokens_per_s(layers, now)
        assert sum(held[1]) > sum(held[0]) or gained
    assert not should_move(layers, others, device, current, current)


def test_equal_joiners_spread_and_the_ring_decides_near_ties() -> None:
    device = Device(0.01, 4)
    assert len({str(choose_span(8, [], device, tie_break=tie).span) for tie in range(8)}) >= 4
    preferred = choose_span(8, [], device, ring_s=lambda span: abs(span.start - 2.0))
    assert preferred.span == Span(2, 6)
    assert preferred.ring_s == 0.0


def test_joining_nodes_count_and_leaving_ones_do_not() -> None:
    view = swarm_view(
        MODEL,
        [
            offer("a", service(0, 2, 4, decode_s=0.5)),
            offer("b", service(1, 4, 4, decode_s=0.25), state="joining"),
            offer("c", service(0, 4, 4, decode_s=0.25), state="draining"),
        ],
        now=NOW,
    )
    table = view.table(REVISION)
    assert coverage(4, holders(table)).tolist() == [2.0, 6.0, 4.0, 4.0]
    assert coverage(4, holders(table, without="a")).tolist() == [0.0, 4.0, 4.0, 4.0]
