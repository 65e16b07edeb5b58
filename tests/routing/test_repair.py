"""reroute keeps survivors and fills holes optimally; standbys are lawful."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paceline.routing.ring import RingRequest, cheapest_ring, reroute, standbys
from paceline.routing.view import swarm_view
from paceline.wire.errors import NoRoute
from paceline.wire.offers import Offer

from .swarms import GUESS, MODEL, NOW, REVISION, Part, offer, ring_s, rings, service, swarms

REQUEST = RingRequest(REVISION)


def view_of(*offers: Offer):  # type: ignore[no-untyped-def]
    return swarm_view(MODEL, offers, now=NOW, guess_rtt_s=GUESS)


@settings(max_examples=250, deadline=None)
@given(swarms(max_layers=5, max_peers=6), st.data())
def test_survivors_keep_their_spans_and_holes_are_filled_optimally(
    offers: tuple[Offer, ...], data: st.DataObject
) -> None:
    assume(all(len(o.services) == 1 for o in offers))
    view = view_of(*offers)
    try:
        plan = cheapest_ring(view, REQUEST)
    except NoRoute:
        return
    lost = {data.draw(st.sampled_from(plan.peers))}
    survivors = {(stage.peer, stage.span.start, stage.span.end) for stage in plan.stages if stage.peer not in lost}
    riders = {peer for peer, _, _ in survivors}

    def keeps(ring: tuple[Part, ...]) -> bool:
        parts = {(peer, start, end) for peer, _, start, end in ring}
        own = {part for part in parts if part[0] in riders}
        return own == survivors and not lost & {part[0] for part in parts}

    classes = {plan.numerics}
    fits = [r for r in rings(offers, plan.layers) if r[0][1].numerics in classes and keeps(r)]
    if not fits:
        return
    repaired = reroute(view, plan, lost)
    now = {(stage.peer, stage.span.start, stage.span.end) for stage in repaired.stages}
    assert survivors <= now
    assert {stage.peer for stage in repaired.stages if stage.kept} == riders
    assert repaired.token_s == pytest.approx(min(ring_s(offers, ring) for ring in fits), abs=1e-12)
    assert repaired.request == plan.request


def three() -> tuple[Offer, ...]:
    return (offer("a", service(0, 2, 6)), offer("b", service(2, 4, 6)), offer("c", service(4, 6, 6)))


def test_one_hole_may_take_several_replacements() -> None:
    plan = cheapest_ring(view_of(*three()), REQUEST)
    later = view_of(*three(), offer("d", service(1, 3, 6)), offer("e", service(3, 5, 6)))
    repaired = reroute(later, plan, {"b"})
    assert [(stage.peer, str(stage.span), stage.kept) for stage in repaired.stages] == [
        ("a", "0:2", True), ("d", "2:3", False), ("e", "3:4", False), ("c", "4:6", True),
    ]  # fmt: skip


def test_a_survivor_grows_only_where_nobody_else_can_help() -> None:
    wide = (offer("a", service(0, 4, 6)), *three()[1:])
    plan = cheapest_ring(view_of(*three()), REQUEST)
    repaired = reroute(view_of(*wide), plan, {"b"})
    assert [(stage.peer, str(stage.span), stage.kept) for stage in repaired.stages] == [
        ("a", "0:4", False), ("c", "4:6", True),
    ]  # fmt: skip
    helped = reroute(view_of(*wide, offer("d", service(2, 4, 6, decode_s=0.5))), plan, {"b"})
    assert helped.peers == ("a", "d", "c")


def test_who_holds_the_hole_but_rides_elsewhere_begins_a_new_ring() -> None:
    """a rides 0:2, whole rides the tail; when a falls, only whole holds 0:2, and may not ride twice."""
    a, b = offer("a", service(0, 2, 6)), offer("b", service(2, 4, 6))
    plan = cheapest_ring(view_of(a, b, offer("whole", service(4, 6, 6))), REQUEST)
    assert plan.peers == ("a", "b", "whole")
    repaired = reroute(view_of(b, offer("whole", service(0, 6, 6, decode_s=0.2))), plan, {"a"})
    assert [(stage.peer, str(stage.span), stage.kept) for stage in repaired.stages] == [("whole", "0:6", False)]
    assert repaired.request == plan.request


@st.composite
def tiled(draw: st.DrawFn) -> tuple[tuple[Offer, ...], tuple[Offer, ...]]:
    """A ring of nodes that hold their own stage each, and the same nodes later: some have taken up the whole model."""
    layers = draw(st.integers(2, 4))
    cuts = [0, *sorted(draw(st.sets(st.integers(1, layers - 1)))), layers]
    names = draw(st.permutations("abcd"))
    first = [
        offer(name, service(start, end, layers)) for name, (start, end) in zip(names, pairwise(cuts), strict=False)
    ]
    whole = [draw(st.booleans()) for _ in first]
    later = [offer(o.peer, service(0, layers, layers)) if wide else o for o, wide in zip(first, whole, strict=True)]
    start = draw(st.integers(0, layers - 1))
    return tuple(first), (*later, offer("new", service(start, draw(st.integers(start + 1, layers)), layers)))


@settings(max_examples=100, deadline=None)
@given(tiled(), st.data())
def test_a_repair_fails_only_where_no_ring_is_left(
    offers: tuple[tuple[Offer, ...], tuple[Offer, ...]], data: st.DataObject
) -> None:
    plan = cheapest_ring(view_of(*offers[0]), REQUEST)
    lost = frozenset(data.draw(st.sets(st.sampled_from(plan.peers), min_size=1)))
    left = [ring for ring in rings(offers[1], plan.layers) if not lost & {part[0] for part in ring}]
    try:
        repaired = reroute(view_of(*offers[1]), plan, lost)
    except NoRoute:
        assert not left
        return
    old = {(stage.peer, stage.span) for stage in plan.stages}
    assert all(stage.kept == ((stage.peer, stage.span) in old) for stage in repaired.stages)
    assert not lost & set(repaired.peers)
    assert [stage.span.start for stage in repaired.stages] == [0, *(s.span.end for s in repaired.stages[:-1])]
    assert repaired.stages[-1].span.end == plan.layers


def test_survivors_ride_on_even_when_their_offers_are_gone_or_full() -> None:
    plan = cheapest_ring(view_of(*three()), RingRequest(REVISION, positions=100))
    full = offer("a", service(0, 2, 6, kv_free=0), state="draining", sequence=2)
    view = view_of(full, offer("d", service(2, 4, 6)))
    repaired = reroute(view, plan, {"b"})
    assert repaired.peers == ("a", "d", "c")
    assert [stage.kept for stage in repaired.stages] == [True, False, True]


def test_nobody_left_names_the_layers_and_nothing_lost_changes_nothing() -> None:
    view = view_of(*three())
    plan = cheapest_ring(view, REQUEST)
    with pytest.raises(NoRoute) as caught:
        reroute(view, plan, {"b"})
    assert caught.value.missing == (2, 3)
    assert reroute(view, plan, set()).stages == tuple(stage for stage in reroute(view, plan, {"stranger"}).stages)


def test_everybody_lost_is_a_new_ring() -> None:
    plan = cheapest_ring(view_of(*three()), REQUEST)
    repaired = reroute(view_of(offer("x", service(0, 6, 6))), plan, {"a", "b", "c"})
    assert repaired.peers == ("x",)


def test_standbys_are_spare_distinct_and_outside_the_ring() -> None:
    spare = [
        offer("s", service(0, 4, 6, shadow=True), rtts=(("a", 0.001), ("b", 0.001), ("c", 0.001))),
        offer("t", service(0, 2, 6, shadow=True, decode_s=0.5)),
        offer("u", service(4, 6, 6)),
        offer("v", service(4, 6, 6, shadow=True, kv_free=0)),
        offer("w", service(4, 6, 6, shadow=True, numerics="gpu")),
    ]
    plan = cheapest_ring(view_of(*three()), REQUEST)
    chosen = standbys(view_of(*three(), *spare), plan)
    assert [None if stage is None else stage.peer for stage in chosen] == ["t", "s", None]
    at = {index: stage.at for index, stage in enumerate(chosen) if stage is not None}
    assert [tuple(one.peer for one in stage.standbys) for stage in plan.route(at)] == [("t",), ("s",), ()]
