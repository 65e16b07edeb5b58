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


class Disk:
    """A spill that holds `room` bytes, and cannot be read from the `broken`-th read on."""

    def __init__(self, room: int, broken: int) -> None:
        self.data, self.room, self.left = b"", room, broken

    def write(self, data: bytes | bytearray | memoryview) -> int | None:
        if len(self.data) + len(data) > self.room:
            return None
        self.data += bytes(data)
        return len(self.data) - len(data)

    def read(self, at: int, n: int) -> bytes | None:
        self.left -= 1
        return None if self.left < 0 else self.data[at : at + n]

    def clear(self) -> None:
        self.data = b""


@given(st.integers(0, 6 * ROW), st.integers(0, 20 * ROW), OPERATIONS, st.integers(1, 9))
def test_a_journal_with_a_disk_is_a_suffix_of_what_was_sent_too(
    budget: int, room: int, operations: list[tuple[str, int]], most: int
) -> None:
    journal, plain, end = Journal(budget, Disk(room, 1 << 30)), Journal(budget), 0
    for name, number in operations:
        if name == "append":
            for each in (journal, plain):
                each.append(end, number, rows(end, number))
            end += number
        else:
            for each in (journal, plain):
                each.crop(number)
            end = min(end, number)
        assert journal.end == end
        assert 0 <= journal.first <= end
        assert journal.nbytes <= budget
        assert journal.first <= plain.first or journal.first == end
        for start in range(journal.first, end):
            n, data = journal.read(start, most)
            assert n == min(most, end - start)
            assert bytes(data) == rows(start, n)
    journal.clear()
    assert (journal.first, journal.end, journal.nbytes) == (0, 0, 0)


def test_with_room_on_disk_nothing_is_forgotten() -> None:
    journal = Journal(2 * ROW, Disk(1000 * ROW, 1 << 30))
    for position in range(100):
        journal.append(position, 1, rows(position, 1))
    assert (journal.first, journal.nbytes) == (0, 2 * ROW)
    n, data = journal.read(0, 100)
    assert (n, bytes(data)) == (100, rows(0, 100))


def test_a_disk_that_cannot_be_read_makes_the_journal_short() -> None:
    box = Outbox(2 * ROW, Disk(1000 * ROW, 0))
    for position in range(10):
        box.journal.append(position, 1, rows(position, 1))
    box.begin(["b"], 0)
    assert box.due("b", 10, 4, None) == ([], 0)
    assert box.journal.first == 8
