"""A ring that knows the beginning of the prompt is taken as long as it saves more than it loses."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.routing.cost import CostTerms
from paceline.routing.prefixes import Knows, better_known
from paceline.routing.ring import RingRequest, cheapest_ring
from paceline.routing.view import swarm_view
from paceline.wire.errors import NoRoute
from paceline.wire.ids import Span
from paceline.wire.offers import Offer

from .swarms import GUESS, MODEL, NOW, REVISION, offer, service, swarms

REQUEST = RingRequest(REVISION, prompt=1_024, positions=1_124, chunk=1_024)
"""The prompt takes each stage 0.1 s (1e-4 a position); 100 tokens follow."""

HALVES = (Span(0, 2), Span(2, 4))
KNOWN = tuple(Knows(peer, span, 992) for peer, span in zip(("a", "b"), HALVES, strict=True))


def view_of(*offers: Offer):  # type: ignore[no-untyped-def]
    return swarm_view(MODEL, offers, now=NOW, guess_rtt_s=GUESS)


def two_rings(slower_s: float, **more: object):  # type: ignore[no-untyped-def]
    """a and b, who know the prompt, and c and d, who are quicker by so much a token."""
    known = [
        offer(peer, service(span.start, span.end, 4, 0.01 + slower_s / 2, **more))
        for peer, span in zip(("a", "b"), HALVES, strict=True)
    ]
    others = [offer(peer, service(span.start, span.end, 4, 0.01)) for peer, span in zip("cd", HALVES, strict=True)]
    return view_of(*known, *others)


@pytest.mark.parametrize(("slower_s", "riders"), [(0.0018, ("a", "b")), (0.0022, ("c", "d"))])
def test_it_is_kept_until_it_has_become_slower_by_more_than_is_saved(slower_s: float, riders: tuple[str, ...]) -> None:
    """Saved are 992 positions of both stages, 0.2 s: 2 ms for each of 100 tokens."""
    view = two_rings(slower_s)
    cheapest = cheapest_ring(view, REQUEST)
    assert cheapest.peers == ("c", "d")
    chosen = better_known(view, cheapest, [KNOWN])
    assert chosen.peers == riders
    saved = (1e-4 * 2 * 992) if riders == ("a", "b") else 0.0
    assert chosen.ttft_s <= cheapest.ttft_s - saved + 1e-3
    assert [stage.prefill_s_per_position for stage in chosen.stages] == [1e-4, 1e-4], "a move still computes all of it"


def test_a_straggler_who_knows_the_prompt_is_left_where_that_pays() -> None:
    view = two_rings(0.0)
    for excess_s, riders in ((0.001, ("a", "b")), (0.01, ("c", "d"))):
        request = replace(REQUEST, terms=CostTerms(straggler_s={"a": excess_s, "b": excess_s / 2}))
        assert better_known(view, cheapest_ring(view, request), [KNOWN]).peers == riders


@pytest.mark.parametrize(
    "change",
    [
        {"trusted": frozenset("bcd")},
        {"excluded": frozenset("a")},
        {"ends": frozenset("cd")},
        {"numerics": "cpu-f32", "excluded": frozenset("b")},
    ],
)
def test_constraints_hold_for_the_ring_that_knows(change: dict[str, object]) -> None:
    view = two_rings(0.0)
    request = replace(REQUEST, **change)  # type: ignore[arg-type]
    cheapest = cheapest_ring(view, request)
    assert better_known(view, cheapest, [KNOWN]).peers == cheapest.peers


@settings(max_examples=60, deadline=None)
@given(swarms(max_layers=4, max_peers=4), st.data())
def test_whatever_is_remembered_the_ring_is_lawful_and_never_ends_later(
    offers: tuple[Offer, ...], data: st.DataObject
) -> None:
    view = view_of(*offers)
    layers = offers[0].services[0].layers
    request = replace(REQUEST, max_stages=data.draw(st.integers(1, 3)))
    try:
        cheapest = cheapest_ring(view, request)
    except NoRoute:
        return
    peers = st.sampled_from([o.peer for o in offers] + ["gone"])
    cuts = st.lists(st.integers(1, layers), unique=True).map(lambda inner: sorted({0, *inner, layers}))
    earlier = []
    for _ in range(data.draw(st.integers(0, 3))):
        edges = data.draw(cuts)
        spans = [Span(a, b) for a, b in pairwise(edges)]
        earlier.append(tuple(Knows(data.draw(peers), span, data.draw(st.integers(1, 4_000))) for span in spans))
    chosen = better_known(view, cheapest, earlier)
    assert chosen.token_s >= cheapest.token_s - 1e-12
    assert len(set(chosen.peers)) == len(chosen.stages) <= request.max_stages
    assert chosen.numerics in ("a", "b")
    assert [s.span.start for s in chosen.stages] + [layers] == [0] + [s.span.end for s in chosen.stages]
    assert chosen.ttft_s + 100 * chosen.token_s <= cheapest.ttft_s + 100 * cheapest.token_s + 1e-9
