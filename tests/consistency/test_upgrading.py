"""Node by node: who goes when, and that no layer is ever without a holder."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.consistency.upgrading import Holder, Move, Patience, Standing, aim, complete, decide, replicas
from paceline.wire.ids import Span
from paceline.wire.releases import Release

OLD, NEW = b"o" * 32, b"n" * 32
PATIENCE = Patience(turn_s=60.0, views_s=20.0, laggards_s=300.0)
SPANS = [Span(0, 4), Span(4, 8), Span(8, 12)]


def at(me: str = "a", span: Span = SPANS[0], **changes: object) -> Standing:
    return replace(Standing(me, 12, span, OLD, NEW, has_new=False, sessions=0, known_s=0.0), **changes)  # type: ignore[arg-type]


def held(peer: str, revision: bytes = OLD, span: Span = SPANS[0]) -> Holder:
    return Holder(peer, revision, span)


def test_one_goes_first_and_the_others_wait_for_it() -> None:
    holders = [held("a"), held("b"), held("c", span=SPANS[1])]
    assert decide(at("a"), holders, PATIENCE) is Move.TAKE
    assert decide(at("b"), holders, PATIENCE) is Move.WAIT
    assert decide(at("b", known_s=60.0), holders, PATIENCE) is Move.TAKE


def test_two_do_not_load_in_quick_succession() -> None:
    holders = [held("a"), held("b"), held("b", NEW)]
    assert decide(at("a", last_s=2.9), holders, PATIENCE) is Move.WAIT
    assert decide(at("a", last_s=3.0), holders, PATIENCE) is Move.TAKE


def test_layers_without_the_new_revision_come_before_a_second_holder() -> None:
    holders = [held("a"), held("a", NEW), held("b"), held("c", span=SPANS[1])]
    assert decide(at("b"), holders, PATIENCE) is Move.WAIT
    assert decide(at("c", SPANS[1]), holders, PATIENCE) is Move.TAKE


def test_the_old_revision_is_offered_until_everybody_has_the_new_one() -> None:
    mine = [held("a"), held("a", NEW, Span(0, 12))]
    assert decide(at(has_new=True), [*mine, held("b")], PATIENCE) is Move.WAIT
    assert decide(at(has_new=True), mine, PATIENCE) is Move.QUIET
    assert decide(at(has_new=True, known_s=300.0), [*mine, held("b")], PATIENCE) is Move.QUIET
    assert decide(at(has_new=True, known_s=900.0), [held("a"), held("a", NEW)], PATIENCE) is Move.WAIT


def test_it_goes_when_nobody_rides_and_no_view_shows_it() -> None:
    for sessions, quiet_s, move in ((1, 900.0, Move.WAIT), (0, 19.0, Move.WAIT), (0, 20.0, Move.DROP)):
        assert decide(at(has_new=True, sessions=sessions, quiet_s=quiet_s), [], PATIENCE) is move


def test_a_canary_is_taken_up_by_as_many_as_its_share_asks_for() -> None:
    four = [held(name) for name in "abcd"]
    assert decide(at("a", share=0.1), four, PATIENCE) is Move.TAKE
    assert decide(at("b", share=0.1), four, PATIENCE) is Move.WAIT
    one = [*four, held("a", NEW)]
    assert decide(at("b", share=0.25, known_s=900.0), one, PATIENCE) is Move.WAIT
    assert decide(at("b", share=0.26), one, PATIENCE) is Move.TAKE
    assert decide(at("c", share=0.26), one, PATIENCE) is Move.WAIT
    assert decide(at("b", share=0.26, last_s=1.0), one, PATIENCE) is Move.WAIT


def test_nobody_is_quiet_about_what_a_canary_stands_beside() -> None:
    everybody = [held("a"), held("a", NEW, Span(0, 12)), held("b"), held("b", NEW)]
    assert decide(at("a", has_new=True, share=0.9, known_s=9999.0), everybody, PATIENCE) is Move.WAIT
    assert decide(at("a", has_new=True), everybody, PATIENCE) is Move.QUIET


def test_what_a_service_is_to_become() -> None:
    full, canary = Release("toy", OLD, 1, b"p" * 32), Release("toy", NEW, 2, b"p" * 32, share=0.1)
    older = b"x" * 32
    assert aim(OLD, full, canary) == canary
    assert aim(NEW, full, canary) is None
    assert aim(older, full, canary) == full
    assert aim(OLD, full, None) is None
    assert aim(NEW, full, None) == full
    assert aim(older, None, canary) == canary
    assert aim(older, None, None) is None


@settings(max_examples=25)
@given(
    spans=st.lists(st.sampled_from([*SPANS, Span(0, 8), Span(4, 12), Span(0, 12)]), min_size=1, max_size=9),
    share=st.sampled_from([0.01, 0.3, 0.5, 0.99]),
    seed=st.integers(0, 10**6),
)
def test_a_canary_finds_a_ring_and_no_more_holders_than_it_needs(spans: list[Span], share: float, seed: int) -> None:
    nodes = {f"n{k}": span for k, span in enumerate(spans)}
    new: set[str] = set()
    dice = Random(seed)
    rows = [held(name, OLD, span) for name, span in nodes.items()]
    for now in range(0, 1800, 3):
        name = dice.choice(sorted(nodes))
        holders = [*rows, *(held(other, NEW, nodes[other]) for other in sorted(new))]
        move = decide(at(name, nodes[name], has_new=name in new, known_s=float(now), share=share), holders, PATIENCE)
        assert move in (Move.TAKE, Move.WAIT)
        if move is Move.TAKE:
            have = replicas(NEW, nodes[name], holders)
            old = replicas(OLD, nodes[name], rows)
            assert any(n < max(1, ceil(share * of)) for n, of in zip(have, old, strict=True))
            new.add(name)
    have = replicas(NEW, Span(0, 12), [held(other, NEW, nodes[other]) for other in sorted(new)])
    old = replicas(OLD, Span(0, 12), rows)
    assert all(n >= ceil(share * of) for n, of in zip(have, old, strict=True))


@settings(max_examples=25)
@given(
    spans=st.lists(st.sampled_from([*SPANS, Span(0, 8), Span(4, 12), Span(0, 12)]), min_size=1, max_size=7),
    seed=st.integers(0, 10**6),
)
def test_a_swarm_changes_over_without_a_gap(spans: list[Span], seed: int) -> None:
    """Random order of looks: the old or the new revision always covers what was covered; all end on the new one."""
    nodes = {f"n{k}": {"span": span, "held": {OLD}, "quiet": None} for k, span in enumerate(spans)}
    covered = complete(OLD, 12, [held(name, OLD, node["span"]) for name, node in nodes.items()])  # type: ignore[arg-type]
    dice = Random(seed)
    for now in range(0, 1800, 3):
        name = dice.choice(sorted(nodes))
        holders = [
            held(other, revision, node["span"])  # type: ignore[arg-type]
            for other, node in nodes.items()
            for revision in sorted(node["held"])  # type: ignore[arg-type]
            if not (revision == OLD and node["quiet"] is not None)
        ]
        if covered:
            assert complete(OLD, 12, holders) or complete(NEW, 12, holders)
        node = nodes[name]
        if OLD not in node["held"]:  # type: ignore[operator]
            continue
        quiet = None if node["quiet"] is None else now - node["quiet"]  # type: ignore[operator]
        standing = at(name, node["span"], has_new=NEW in node["held"], known_s=float(now), quiet_s=quiet)  # type: ignore[arg-type,operator]
        match decide(standing, holders, PATIENCE):
            case Move.TAKE:
                node["held"].add(NEW)  # type: ignore[attr-defined]
            case Move.QUIET:
                node["quiet"] = now
            case Move.DROP:
                node["held"].discard(OLD)  # type: ignore[attr-defined]
            case Move.WAIT:
                pass
    if covered:
        assert all(node["held"] == {NEW} for node in nodes.values())
    else:
        assert all(NEW in node["held"] for node in nodes.values())  # type: ignore[operator]
    assert replicas(NEW, Span(0, 1), []) == [0]
