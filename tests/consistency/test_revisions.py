"""The frontier's laws, and what each level accepts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.consistency.revisions import Frontier, Level, choose
from paceline.wire.errors import InvalidRequest, LevelUnmet
from paceline.wire.releases import Release

REVISIONS = [bytes([n]) * 32 for n in range(6)]
PUBLISHERS = [b"p" * 32, b"q" * 32]


def release(sequence: int, revision: bytes, publisher: bytes = PUBLISHERS[0]) -> Release:
    return Release("toy", revision, sequence, publisher)


releases = st.lists(
    st.builds(release, st.integers(1, 9), st.sampled_from(REVISIONS), st.sampled_from(PUBLISHERS)), max_size=12
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
def test_the_newest_is_not_behind_and_all_others_are(frontier: Frontier) -> None:
    newest = frontier.newest
    assert (newest is None) == (not frontier.ranks)
    for revision in frontier.ranks:
        behind = frontier.behind(revision)
        assert behind is not None
        assert (behind == 0) == (revision == newest)
    assert frontier.behind(b"x" * 32) is None


@given(
    frontier=frontiers, complete=st.lists(st.sampled_from([*REVISIONS, b"u" * 32]), unique=True), k=st.integers(0, 9)
)
def test_a_level_gives_what_it_promises_or_refuses(frontier: Frontier, complete: list[bytes], k: int) -> None:
    try:
        got = choose(Level("available"), frontier, complete)
        assert got in complete
        assert not any(frontier.newer(other, got) for other in complete if other in frontier.ranks)
    except LevelUnmet:
        assert not complete
    for level, most in ((Level("strong"), 0), (Level("bounded", k=k), k)):
        try:
            got = choose(level, frontier, complete)
            behind = frontier.behind(got)
            assert got in complete
            assert behind is not None
            assert behind <= most
        except LevelUnmet:
            lags = [frontier.behind(revision) for revision in complete]
            assert all(lag is None or lag > most for lag in lags)


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
