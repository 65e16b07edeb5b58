"""Stop strings and incremental text, against the obvious way of doing it all at the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.client.text import StopMatcher

letters = st.text(alphabet="ab", max_size=30)


@given(st.lists(letters, max_size=12), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3))
def test_pieces_give_what_the_whole_would(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    matcher = StopMatcher(stops)
    shown, stopped = "", False
    seen = ""
    for piece in pieces:
        seen += piece
        text, stopped = matcher.feed(piece)
        shown += text
        assert whole.startswith(shown)
        if stopped:
            break
    cuts = [at for stop in stops if (at := seen.find(stop)) >= 0]
    assert stopped == bool(cuts)
    assert shown + ("" if stopped else matcher.flush()) == (seen[: min(cuts)] if cuts else whole)


@given(letters)
def test_without_stops_nothing_waits(text: str) -> None:
    assert StopMatcher(()).feed(text) == (text, False)
