"""The journal and the outbox against naive models: a dict of rows, and a set of positions that a target has."""

from __future__ import annotations

import pytest
from consistency_making import ROW, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.consistency.invariants import InvariantBroken
from paceline.consistency.journal import Journal
from paceline.consistency.outbox import Outbox, Piece

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 5)),
        st.tuples(st.just("crop"), st.integers(0, 30)),
    ),
    max_size=30,
)


@given(st.integers(0, 12 * ROW), OPERATIONS, st.integers(1, 9))
def test_journal_is_a_bounded_suffix_of_what_was_sent(
    budget: int, operations: list[tuple[str, int]], most: int
) -> None:
    journal, end = Journal(budget), 0
    for name, number in operations:
        if name == "append":
            journal.append(end, number, rows(end, number))
            end += number
        else:
            journal.crop(number)
            end = min(end, number)
        assert journal.end == end
        assert 0 <= journal.first <= end
        assert journal.nbytes == (end - journal.first) * ROW <= budget
        for start in range(journal.first, end):
            n, data = journal.read(start, most)
            assert n == min(most, end - start)
            assert bytes(data) == rows(start, n)
        for outside in (journal.first - 1, end):
            with pytest.raises(KeyError):
                journal.read(outside, most)


@given(st.integers(0, 20), st.lists(st.integers(1, 5), min_size=1, max_size=10))
def test_journal_keeps_all_that_fits_in_whole_entries(keep: int, sizes: list[int]) -> None:
    journal, end = Journal(keep * ROW), 0
    for n in sizes:
        journal.append(end, n, rows(end, n))
        end += n
    kept = 0
    for n in reversed(sizes):
        if kept + n > keep:
            break
        kept += n
    assert end - journal.first == kept


def test_journal_takes_no_hole() -> None:
    journal = Journal(100)
    journal.append(0, 2, rows(0, 2))
    with pytest.raises(InvariantBroken):
        journal.append(3, 1, rows(3, 1))


def test_journal_stays_flat_over_ten_thousand_tokens() -> None:
    journal = Journal(64 * ROW)
    for position in range(10_000):
        journal.append(position, 1, rows(position, 1))
        assert journal.nbytes <= 64 * ROW
    assert (journal.first, journal.end) == (10_000 - 64, 10_000)
    journal.clear()
    assert (journal.first, journal.end, journal.nbytes) == (0, 0, 0)


@settings(max_examples=60)
@given(st.integers(0, 10), st.data())
def test_outbox_brings_a_target_everything_or_says_what_is_missing(budget: int, data: st.DataObject) -> None:
    box, length = Outbox(budget * ROW), 0
    has = data.draw(st.integers(0, 6))
    box.begin(["b"], has)
    for _ in range(data.draw(st.integers(1, 8))):
        n = data.draw(st.integers(1, 4))
        fresh = Piece(length, n, rows(length, n))
        box.journal.append(length, n, fresh.rows)
        length += n
        if data.draw(st.booleans()):
            has = data.draw(st.integers(0, has))
            box.rewind("b", has)
        pieces, reached = box.due("b", length, 3, fresh)
        for piece in pieces:
            assert piece.start == has
            assert bytes(piece.rows) == rows(piece.start, piece.n)
            has += piece.n
        assert reached == has
        if has < length:
            assert has < box.journal.first, "it is held, and was not sent"
            assert has < fresh.start, "it was in hand"
            has = length
            box.rewind("b", has)


def test_outbox_sends_nothing_to_strangers() -> None:
    box = Outbox(100)
    box.journal.append(0, 1, rows(0, 1))
    assert box.due("nobody", 1, 8, None) == ([], 1)
    box.begin(["b"], 0)
    box.forget("b")
    assert box.due("b", 1, 8, None) == ([], 1)
