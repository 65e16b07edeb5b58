"""cheapest_ring against brute force, its constraints, its errors and its explanation."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from paceline.routing.cost import CostTerms
from paceline.routing.ring import RingPlan, RingRequest, cheapest_ring, explain, runner_up
from paceline.routing.view import swarm_view
from paceline.wire.errors import NoRoute
from paceline.wire.offers import Offer

from .swarms import GUESS, MODEL, NOW, REVISION, offer, ring_s, rings, service, swarms

REQUEST = RingRequest(REVISION)


def view_of(*offers: Offer, **more: object):  # type: ignore[no-untyped-def]
    return swarm_view(MODEL, offers, now=NOW, guess_rtt_s=GUESS, **more)  # type: ignore[arg-type]


def lawful(plan: RingPlan) -> None:
    """What every plan must satisfy."""
    assert plan.stages[0].span.start == 0
    assert plan.stages[-1].span.end == plan.layers
    assert all(a.span.end == b.span.start for a, b in zip(plan.stages, plan.stages[1:], strict=False))
    assert len(set(plan.peers)) == len(plan.peers)
    assert plan.token_s == pytest.approx(sum(stage.compute_s + stage.hop_s for stage in plan.stages))


@settings(max_examples=1_000, deadline=None)
@given(
    swarms() | swarms(max_layers=5, max_peers=4, close=True),
    st.sampled_from([(1, 1, 1.0), (200, 1000, 600.0), (2000, 2001, 2000.5)]),
)
def test_regret_is_zero(offers: tuple[Offer, ...], sizes: tuple[int, int, float]) -> None:
    layers = offers[0].services[0].layers
    prompt, positions, past = sizes
    request = replace(REQUEST, prompt=prompt, positions=positions)
    costs = [ring_s(offers, ring, past) for ring in rings(offers, layers)]
    if not costs:
        with pytest.raises(NoRoute):
            cheapest_ring(view_of(*offers), request)
        return
    plan = cheapest_ring(view_of(*offers), request)
    lawful(plan)
    assert plan.token_s == pytest.approx(min(costs), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(swarms(), st.integers(1, 3))
def test_regret_is_zero_under_a_stage_limit(offers: tuple[Offer, ...], limit: int) -> None:
    layers = offers[0].services[0].layers
    costs = [ring_s(offers, r) for r in rings(offers, layers) if len({part[0] for part in r}) <= limit]
    request = replace(REQUEST, max_stages=limit)
    if not costs:
        with pytest.raises(NoRoute):
            cheapest_ring(view_of(*offers), request)
        return
    plan = cheapest_ring(view_of(*offers), request)
    lawful(plan)
    assert len(plan.stages) <= limit
    assert plan.token_s == pytest.approx(min(costs), abs=1e-12)


@settings(max_examples=400, deadline=None)
@given(swarms(max_layers=5, max_peers=5) | swarms(max_layers=5, max_peers=4, close=True), st.data())
def test_regret_is_zero_with_the_ends_in_certain_hands(offers: tuple[Offer, ...], data: st.DataObject) -> None:
    layers = offers[0].services[0].layers
    ends = frozenset(data.draw(st.lists(st.sampled_from([o.peer for o in offers]), min_size=1, max_size=2)))
    costs = [ring_s(offers, ring) for ring in rings(offers, layers, ends)]
    request = replace(REQUEST, ends=ends)
    if not costs:
        with pytest.raises(NoRoute):
            cheapest_ring(view_of(*offers), request)
        return
    plan = cheapest_ring(view_of(*offers), request)
    assert plan.token_s == pytest.approx(min(costs), abs=1e-12)
    assert {plan.peers[0], plan.peers[-1]} <= ends


@settings(max_examples=300, deadline=None)
@given(swarms(max_layers=5, max_peers=5), st.data())
def test_regret_is_zero_under_every_other_constraint(offers: tuple[Offer, ...], data: st.DataObject) -> None:
    layers = offers[0].services[0].layers
    names = st.frozensets(st.sampled_from([o.peer for o in offers]))
    offers = tuple(structs.replace(o, region=data.draw(st.sampled_from(["here", "there"]))) for o in offers)
    request = replace(
        REQUEST,
        trusted=data.draw(st.none() | names),
        excluded=data.draw(st.just(frozenset()) | names),
        regions=data.draw(st.none() | st.just(frozenset({"here"}))),
        numerics=data.draw(st.sampled_from([None, "a", "b"])),
    )
    regions, trusted = request.regions or {"here", "there"}, request.trusted
    fits = {o.peer for o in offers if o.region in regions and (trusted is None or o.peer in trusted)} - request.excluded
    costs = [
        ring_s(offers, ring)
        for ring in rings(offers, layers)
        if {p[0] for p in ring} <= fits and request.numerics in (None, ring[0][1].numerics)
    ]
    if not costs:
        with pytest.raises(NoRoute):
            cheapest_ring(view_of(*offers), request)
        return
    assert cheapest_ring(view_of(*offers), request).token_s == pytest.approx(min(costs), abs=1e-12)


def test_a_long_context_is_ridden_where_the_past_costs_least() -> None:
    """`b` is slower from the start, and grows less with what it attends to."""
    offers = (
        offer("a", service(0, 4, 4, decode_s=0.010, decode_past_s=1e-5, prefill_past_s=1e-7)),
        offer("b", service(0, 4, 4, decode_s=0.012, decode_past_s=1e-6, prefill_past_s=0.0)),
    )
    view = view_of(*offers)
    short = cheapest_ring(view, replace(REQUEST, prompt=50, positions=150))
    long = cheapest_ring(view, replace(REQUEST, prompt=2000, positions=2400))
    assert (short.peers, long.peers) == (("a",), ("b",))
    assert short.token_s == pytest.approx(0.010 + 100 * 1e-5)
    assert long.token_s == pytest.approx(0.012 + 2200 * 1e-6)
    assert "at a past of 2200 positions" in explain(long)
    alone = cheapest_ring(view_of(offers[0]), replace(REQUEST, prompt=2000, positions=2400))
    assert alone.stages[0].prefill_s_per_position == pytest.approx(1e-4 + 1000 * 1e-7)


def test_sessions_beyond_a_small_batch_cost_what_was_measured_of_them() -> None:
    crowded = {"decode_s": 0.01, "decode_extra_s": 0.005, "sessions": 10}
    dear = cheapest_ring(view_of(offer("a", service(0, 4, 4, **crowded))), REQUEST)
    cheap = cheapest_ring(view_of(offer("a", service(0, 4, 4, decode_many_s=0.001, **crowded))), REQUEST)
    assert dear.token_s == pytest.approx(0.01 + 10 * 0.005)
    assert cheap.token_s == pytest.approx(0.01 + 3 * 0.005 + 7 * 0.001)


def test_a_slow_peer_with_everything_and_a_fast_neighbour_do_not_make_a_peer_ride_twice() -> None:
    slow, fast = service(0, 6, 6, decode_s=0.6), service(2, 4, 6, decode_s=0.001)
    plan = cheapest_ring(view_of(offer("slow", slow, rtts=(("fast", 0.001),)), offer("fast", fast)), REQUEST)
    lawful(plan)
    assert plan.peers == ("slow",)
    assert plan.token_s == pytest.approx(0.6)


def test_services_of_one_peer_merge_into_one_stage_and_hop_for_nothing() -> None:
    view = view_of(offer("a", service(0, 2, 6), service(2, 4, 6)), offer("b", service(4, 6, 6)))
    plan = cheapest_ring(view, REQUEST)
    assert [(stage.at.peer, stage.start, stage.end) for stage in plan.route()] == [("a", 0, 4), ("b", 4, 6)]


def test_expired_offers_do_not_count_and_newer_ones_replace_older() -> None:
    gone = offer("a", service(0, 4, 4, decode_s=0.001), expires_at=NOW)
    older, newer = offer("b", service(0, 4, 4, decode_s=0.1)), offer("b", service(0, 4, 4, decode_s=0.2), sequence=2)
    plan = cheapest_ring(view_of(gone, newer, older), REQUEST)
    assert plan.peers == ("b",)
    assert plan.token_s == pytest.approx(0.2)


def test_revisions_are_never_mixed() -> None:
    other = b"\x02" * 32
    halves = (service(0, 2, 4), service(2, 4, 4, revision=other), service(0, 2, 4, revision=other))
    view = view_of(*(offer(name, half) for name, half in zip("abc", halves, strict=True)))
    assert cheapest_ring(view, RingRequest(other)).peers == ("c", "b")
    with pytest.raises(NoRoute) as caught:
        cheapest_ring(view, REQUEST)
    assert caught.value.missing == (2, 3)
    assert [coverage.revision for coverage in view.complete()] == [other]
    assert view.coverage(REVISION).missing == (2, 3)
    assert view.newest_complete({REVISION: 9, other: 1}) == other


WHOLE = service(0, 4, 4)


@pytest.mark.parametrize(
    ("bad", "change", "words"),
    [
        (offer("bad", WHOLE, state="draining"), {}, "joining or draining"),
        (offer("bad", WHOLE, state="joining"), {}, "joining or draining"),
        (offer("bad", WHOLE), {"trusted": frozenset({"half"})}, "no trusted peer"),
        (offer("bad", WHOLE), {"excluded": frozenset({"bad"})}, "excluded"),
        (offer("bad", service(0, 4, 4, max_context=9)), {"positions": 10}, "10 positions of context"),
        (offer("bad", service(0, 4, 4, kv_free=9)), {"positions": 10}, "KV room for 10 positions"),
        (offer("bad", service(0, 4, 4, numerics="gpu")), {"numerics": "cpu-f32"}, "numerics class cpu-f32"),
        (offer("bad", service(2, 4, 4, numerics="gpu")), {}, "no single numerics class"),
    ],
)
def test_no_route_names_the_constraint_the_layers_and_a_cure(bad: Offer, change: dict[str, object], words: str) -> None:
    half = offer("half", service(0, 2, 4))
    with pytest.raises(NoRoute, match=words) as caught:
        cheapest_ring(view_of(bad, half), replace(REQUEST, **change))  # type: ignore[arg-type]
    assert caught.value.missing == (2, 3)
    assert "layers 2-3 of 4" in caught.value.message
    assert caught.value.cure


def test_no_route_for_an_unknown_model_or_revision() -> None:
    with pytest.raises(NoRoute, match="nobody offers toy"):
        cheapest_ring(view_of(), REQUEST)
    with pytest.raises(NoRoute, match="nobody offers revision 0909") as caught:
        cheapest_ring(view_of(offer("a", WHOLE)), RingRequest(b"\x09" * 32))
    assert REVISION.hex()[:12] in caught.value.cure


def test_mixing_numerics_only_on_request() -> None:
    view = view_of(offer("a", service(0, 2, 4, numerics="x")), offer("b", service(2, 4, 4, numerics="y")))
    assert cheapest_ring(view, replace(REQUEST, mix_numerics=True)).numerics == "x+y"


def test_penalties_steer_away_from_stragglers_and_fragile_peers() -> None:
    view = view_of(offer("a", service(0, 4, 4, decode_s=0.010)), offer("b", service(0, 4, 4, decode_s=0.011)))
    assert cheapest_ring(view, REQUEST).peers == ("a",)
    slow = CostTerms(straggler_s={"a": 0.005})
    assert cheapest_ring(view, replace(REQUEST, terms=slow)).peers == ("b",)
    fragile = CostTerms(failures_per_s={"a": 0.02}, repair_s=2.0, token_s=0.1)
    plan = cheapest_ring(view, replace(REQUEST, terms=fragile))
    assert plan.peers == ("b",)


def test_first_token_estimate_grows_with_prompt_and_client_distance() -> None:
    near = view_of(offer("a", WHOLE), client_rtts={"a": 0.001})
    far = view_of(offer("a", WHOLE), client_rtts={"a": 0.3})
    short, long = replace(REQUEST, prompt=10, positions=2000), replace(REQUEST, prompt=1000, positions=2000)
    assert cheapest_ring(near, short).ttft_s < cheapest_ring(near, long).ttft_s < 0.2
    assert cheapest_ring(far, short).ttft_s == pytest.approx(cheapest_ring(near, short).ttft_s + 2 * 0.299)
    assert cheapest_ring(far, short).token_s == cheapest_ring(near, short).token_s


@settings(max_examples=60, deadline=None)
@given(swarms())
def test_explain_adds_up_and_the_runner_up_never_wins(offers: tuple[Offer, ...]) -> None:
    try:
        plan = cheapest_ring(view_of(*offers), REQUEST)
    except NoRoute:
        return
    second = runner_up(view_of(*offers), plan)
    text = explain(plan, second)
    assert "chosen because" not in explain(plan)
    rows = re.findall(r"^ +\d+ \S+ +\d+:\d+ +([\d.]+) +([\d.]+)  ", text, re.MULTILINE)
    assert len(rows) == len(plan.stages)
    assert sum(float(a) + float(b) for a, b in rows) == pytest.approx(plan.token_s * 1e3, abs=0.001 * len(rows))
    if second is None:
        assert "none of its peers can be done without" in text
    else:
        assert second.token_s >= plan.token_s - 1e-12
        assert set(plan.peers) - set(second.peers)
        assert f"slower by {(second.token_s - plan.token_s) * 1e3:.3f} ms" in text
