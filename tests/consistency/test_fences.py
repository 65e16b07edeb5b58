"""What a node remembers of sessions that it has freed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.consistency.fences import Fences


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=8), st.integers(0, 6))
def test_an_epoch_is_over_when_a_later_one_was_seen_or_it_was_closed(noted: list[tuple[int, bool]], epoch: int) -> None:
    fences = Fences()
    for number, closed in noted:
        fences.note(b"s", number, closed)
    newest = max((number for number, _ in noted), default=0)
    over = epoch < newest or (epoch, True) in [pair for pair in noted if pair[0] == newest]
    assert fences.over(b"s", epoch) == (newest if over else None)
    assert fences.over(b"other", 0) is None


def test_the_longest_unnoted_are_forgotten() -> None:
    fences = Fences(most=3)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        fences.note(name, 2)
    assert len(fences) == 3
    assert fences.over(b"b", 1) is None
    assert [fences.over(name, 1) for name in (b"a", b"c", b"d")] == [2, 2, 2]
