"""The frontier's laws, and what each level accepts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.consistency.revisions import Frontier, Level, choose
from paceline.wire.errors import InvalidRequest, LevelUnmet
from paceline.wire.releases import Release, standing

REVISIONS = [bytes([n]) * 32 for n in range(6)]
PUBLISHERS = [b"p" * 32, b"q" * 32]


def release(sequence: int, revision: bytes, publisher: bytes = PUBLISHERS[0], share: float = 1.0) -> Release:
    return Release("toy", revision, sequence, publisher, share=share)


shares = st.sampled_from([1.0, 1.0, 0.1, 0.5])
releases = st.lists(
    st.builds(release, st.integers(1, 9), st.sampled_from(REVISIONS), st.sampled_from(PUBLISHERS), shares), max_size=12
)
frontiers = releases.map(Frontier.of)
LINE = Frontier.of([release(n + 1, REVISIONS[n]) for n in range(4)])


@given(a=frontiers, b=frontiers, c=frontiers)
def test_merging_is_a_least_upper_bound(a: Frontier, b: Frontier, c: Frontier) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a
    assert a.merge(b).merge(a) == a.merge(b)
    assert a.merge(Frontier()) == a
    both = a.merge(b)
    assert all(both.ranks[revision] >= rank for revision, rank in a.ranks.items())


@given(some=releases)
def test_the_order_of_news_does_not_matter(some: list[Release]) -> None:
    assert Frontier.of(some) == Frontier.of(reversed(some)) == Frontier.of(some + some)


@given(frontier=frontiers)
def test_what_is_for_everybody_and_its_canary_are_not_behind_and_all_others_are(frontier: Frontier) -> None:
    assert (frontier.newest is None) == (not frontier.ranks)
    for revision in frontier.ranks:
        behind = frontier.behind(revision)
        assert behind is not None
        if frontier.full is not None:
            assert (behind == 0) == (revision in (frontier.full, frontier.canary))
    assert frontier.behind(b"x" * 32) is None


@given(some=releases)
def test_the_frontier_and_the_releases_say_the_same(some: list[Release]) -> None:
    full, canary = standing(some)
    frontier = Frontier.of(some)
    assert frontier.full == (full.revision if full else None)
    assert frontier.canary == (canary.revision if canary else None)


served = st.lists(st.sampled_from([*REVISIONS, b"u" * 32]), unique=True)


@given(frontier=frontiers, complete=served, k=st.integers(0, 9))
def test_a_level_gives_what_it_promises_or_refuses(frontier: Frontier, complete: list[bytes], k: int) -> None:
    for_all = [it for it in complete if frontier.is_full(it) or it not in frontier.ranks]
    try:
        got = choose(Level("available"), frontier, complete)
        assert got in for_all
        assert not any(frontier.newer(other, got) for other in for_all if other in frontier.ranks)
    except LevelUnmet:
        assert not for_all
    for level, most in ((Level("strong"), 0), (Level("bounded", k=k), k)):
        try:
            got = choose(level, frontier, complete)
            behind = frontier.behind(got)
            assert got in for_all
            assert behind is not None
            assert behind <= most
        except LevelUnmet:
            lags = [frontier.behind(revision) for revision in for_all]
            assert all(lag is None or lag > most for lag in lags)


@given(frontier=frontiers, complete=served, key=st.binary(max_size=20))
def test_only_who_is_drawn_tries_a_canary(frontier: Frontier, complete: list[bytes], key: bytes) -> None:
    for level in (Level(), Level("bounded", k=99), Level("strong")):
        try:
            got = choose(level, frontier, complete, key)
        except LevelUnmet:
            continue
        tries = level.kind != "strong" and frontier.drawn(key) and frontier.canary in complete
        assert (got == frontier.canary) == tries
    for revision in complete:
        assert choose(Level("pinned", revision=revision), frontier, complete, key) == revision


def test_a_canary_has_its_share_of_sessions_and_keeps_whom_it_has_while_it_grows() -> None:
    keys = [n.to_bytes(16, "big") for n in range(4000)]
    drawn = {}
    for share in (0.1, 0.5):
        line = LINE.merge(Frontier.of([release(9, REVISIONS[4], share=share)]))
        drawn[share] = {key for key in keys if choose(Level(), line, REVISIONS[:5], key) == REVISIONS[4]}
        assert abs(len(drawn[share]) / len(keys) - share) < 0.02
    assert drawn[0.1] < drawn[0.5]
    other = LINE.merge(Frontier.of([release(9, REVISIONS[5], share=0.1)]))
    assert {key for key in keys if other.drawn(key)} != drawn[0.1]


def test_a_canary_that_was_taken_back_is_for_nobody() -> None:
    back = LINE.merge(Frontier.of([release(5, REVISIONS[4], share=0.9), release(6, REVISIONS[3])]))
    assert back.canary is None
    assert choose(Level(), back, [REVISIONS[4], REVISIONS[0]], b"k") == REVISIONS[0]
    with pytest.raises(LevelUnmet, match="only a canary"):
        choose(Level(), back, [REVISIONS[4]], b"k")


def test_each_level_on_a_line_of_releases() -> None:
    old = [REVISIONS[0], REVISIONS[1]]
    assert choose(Level("available"), LINE, old) == REVISIONS[1]
    assert choose(Level("bounded", k=2), LINE, old) == REVISIONS[1]
    assert choose(Level("pinned", revision=REVISIONS[0]), LINE, old) == REVISIONS[0]
    assert choose(Level("strong"), LINE, [*old, REVISIONS[3]]) == REVISIONS[3]
    for level in (Level("bounded", k=1), Level("strong"), Level("pinned", revision=REVISIONS[3])):
        with pytest.raises(LevelUnmet):
            choose(level, LINE, old)
    assert choose(Level(), Frontier(), [REVISIONS[5]]) == REVISIONS[5]
    with pytest.raises(LevelUnmet):
        choose(Level("strong"), Frontier(), [REVISIONS[5]])


def test_going_back_makes_the_old_revision_the_newest() -> None:
    back = LINE.merge(Frontier.of([release(5, REVISIONS[0])]))
    assert back.newest == REVISIONS[0]
    assert back.behind(REVISIONS[3]) == 1
    assert choose(Level(), back, REVISIONS[:4]) == REVISIONS[0]


@pytest.mark.parametrize(
    "level", [Level(), Level("strong"), Level("bounded", k=3), Level("pinned", revision=bytes(32))]
)
def test_levels_are_spelled_as_they_are_read(level: Level) -> None:
    assert Level.parse(str(level)) == level


@pytest.mark.parametrize("text", ["", "newest", "bounded", "bounded(-1)", "pinned(12)", "strong(1)", "bounded(1))"])
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Level.parse(text)
