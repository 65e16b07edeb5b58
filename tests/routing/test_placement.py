"""Splits against brute force; joiners go where they are needed; movers leave no gap."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.routing.placement import (
    MOVE_GAIN,
    Device,
    choose_span,
    fastest_fleet,
    should_move,
    split_layers,
    throughput,
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


rates = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]), min_size=1, max_size=10).map(np.array)


@settings(max_examples=150, deadline=None)
@given(rates, devices.filter(lambda device: device.capacity > 0), st.integers(0, 99))
def test_a_joiner_covers_what_it_can_and_helps_the_weakest(others: np.ndarray, device: Device, tie: int) -> None:
    found = choose_span(others, device, tie_break=tie)
    missing = np.flatnonzero(others == 0.0)
    assert len(found.span) <= device.capacity
    assert found.span.end <= len(others)
    reach = [sum(start <= layer < start + device.capacity for layer in missing) for start in range(len(others))]
    assert found.missing_before - found.missing_after == max(reach)
    assert found.weakest_after >= found.weakest_before
    assert str(found.span) in str(found)


@settings(max_examples=150, deadline=None)
@given(rates, devices.filter(lambda device: device.capacity > 0), st.data())
def test_a_mover_gains_a_third_and_leaves_no_gap(others: np.ndarray, device: Device, data: st.DataObject) -> None:
    starts = st.integers(0, len(others) - 1)
    current, proposed = (
        Span(a, data.draw(st.integers(a + 1, len(others)))) for a in (data.draw(starts), data.draw(starts))
    )
    now, then = others.copy(), others.copy()
    now[current.start : current.end] += device.tokens_per_s(len(current))
    then[proposed.start : proposed.end] += device.tokens_per_s(len(proposed))
    if should_move(others, device, current, proposed):
        assert not ((now > 0.0) & (then == 0.0)).any()
        assert (then == 0.0).sum() < (now == 0.0).sum() or then.min() >= MOVE_GAIN * now.min()
    assert not should_move(others, device, current, current)


def test_equal_joiners_spread_and_the_ring_decides_near_ties() -> None:
    empty, device = np.zeros(8), Device(0.01, 4)
    assert {str(choose_span(empty, device, tie_break=tie).span) for tie in range(8)} >= {"0:4", "4:8"}
    preferred = choose_span(empty, device, ring_s=lambda span: abs(span.start - 2.0))
    assert preferred.span == Span(2, 6)
    assert preferred.ring_s == 0.0


def test_throughput_counts_joining_nodes_and_can_leave_one_out() -> None:
    view = swarm_view(
        MODEL,
        [
            offer("a", service(0, 2, 4, decode_s=0.5)),
            offer("b", service(1, 4, 4, decode_s=0.25), state="joining"),
        ],
        now=NOW,
    )
    assert throughput(view.table(REVISION)).tolist() == [2.0, 6.0, 4.0, 4.0]
    assert throughput(view.table(REVISION), without="a").tolist() == [0.0, 4.0, 4.0, 4.0]
