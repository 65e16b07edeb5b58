"""Pages, slots, buckets and tiles: the accounting that kernels trust."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.cuda_pages import BUCKETS, Pages, Seat, bucket, splits, tiles
from paceline.wire.errors import Overloaded
from paceline.wire.ids import Span

SPAN = Span(0, 4)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=60), st.sampled_from([1, 4, 16]))
def test_no_page_and_no_slot_has_two_holders_and_none_is_lost(moves: list[tuple[int, int]], page: int) -> None:
    told: list[Seat] = []
    pages = Pages(200, 6, 64, page, told.append)
    held: dict[int, Seat] = {}
    for key, positions in moves:
        if key in held:
            pages.close(key)
            pages.close(key)
            del held[key]
            continue
        room = len(held) < 6 and -(-positions // page) * page <= pages.free
        if not room:
            with pytest.raises(Overloaded):
                pages.open(key, positions, SPAN)
            continue
        held[key] = seat = pages.open(key, positions, SPAN)
        assert told[-1] is seat
        assert len(seat.pages) == -(-positions // page) <= pages.row
    taken = [number for seat in held.values() for number in seat.pages]
    assert len(set(taken)) == len(taken)
    assert all(0 <= number < pages.count for number in taken)
    slots = {seat.slot for seat in held.values()}
    assert len(slots) == len(held)
    assert slots <= set(range(6))
    for key in held:
        pages.close(key)
    assert pages.free == 200 // page * page


def test_a_table_row_holds_the_longest_session() -> None:
    assert Pages(100, 2, 65, 16).row == 5


@given(st.integers(1, 400))
def test_buckets_hold_what_they_are_for(rows: int) -> None:
    size = bucket(rows)
    if size is None:
        assert rows > BUCKETS[-1]
    else:
        assert size >= rows
        assert all(other < rows or other >= size for other in BUCKETS)


@given(st.integers(1, 128), st.sampled_from([1, 2, 4, 8, 16]))
def test_splits_fill_the_machine_and_no_more(rows: int, kv_heads: int) -> None:
    parts = splits(rows, kv_heads)
    assert parts in (1, 2, 4, 8, 16, 32)
    assert parts == 1 or parts * rows * kv_heads <= 256


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 500)), min_size=1, max_size=8), st.sampled_from([16, 64]))
def test_tiles_cover_every_row_once_the_longest_past_first(given_segments: list[tuple[int, int]], size: int) -> None:
    segments, row = [], 0
    for slot, (n, start) in enumerate(given_segments):
        segments.append((row, n, start, slot))
        row += n
    cut = tiles(segments, size)
    covered = sorted(first + at for first, n, _, _ in cut for at in range(n))
    assert covered == list(range(row))
    assert all(1 <= n <= size for _, n, _, _ in cut)
    where = {slot: (first, start) for first, _, start, slot in segments}
    assert all(first - where[slot][0] == position - where[slot][1] for first, _, position, slot in cut)
    ends = [position + n for _, n, position, _ in cut]
    assert ends == sorted(ends, reverse=True)
