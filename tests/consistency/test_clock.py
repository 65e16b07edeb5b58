"""The laws of the versioned vector clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.consistency.clock import Clock, Order
from paceline.wire.ids import Branch, Epoch, Revision

R1, R2 = Revision(b"1" * 32), Revision(b"2" * 32)
LENGTHS = st.lists(st.integers(0, 4), max_size=4).map(tuple)
CLOCKS = st.builds(Clock, st.just(R1), st.integers(0, 2).map(Epoch), st.integers(0, 2).map(Branch), LENGTHS)


def same(a: Clock, b: Clock) -> bool:
    return a.compare(b) is Order.EQUAL


@given(CLOCKS, CLOCKS)
def test_merge_is_commutative(a: Clock, b: Clock) -> None:
    assert same(a.merge(b), b.merge(a))


@given(CLOCKS, CLOCKS, CLOCKS)
def test_merge_is_associative(a: Clock, b: Clock, c: Clock) -> None:
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))


@given(CLOCKS)
def test_merge_is_idempotent(a: Clock) -> None:
    assert a.merge(a) == a


@given(CLOCKS, CLOCKS)
def test_merge_is_the_least_upper_bound(a: Clock, b: Clock) -> None:
    both = a.merge(b)
    assert a.compare(both) in (Order.BEFORE, Order.EQUAL)
    assert b.compare(both) in (Order.BEFORE, Order.EQUAL)
    if a.compare(b) in (Order.BEFORE, Order.EQUAL):
        assert same(both, b)


@given(CLOCKS, CLOCKS)
def test_compare_is_antisymmetric(a: Clock, b: Clock) -> None:
    mirror = {Order.BEFORE: Order.AFTER, Order.AFTER: Order.BEFORE}
    assert b.compare(a) is mirror.get(a.compare(b), a.compare(b))


@given(CLOCKS, CLOCKS, CLOCKS)
def test_before_is_transitive(a: Clock, b: Clock, c: Clock) -> None:
    if a.compare(b) is Order.BEFORE and b.compare(c) is Order.BEFORE:
        assert a.compare(c) is Order.BEFORE


@given(CLOCKS, CLOCKS)
def test_only_lengths_of_one_version_are_concurrent(a: Clock, b: Clock) -> None:
    if a.compare(b) is Order.CONCURRENT:
        assert a.version == b.version
        assert not same(a.merge(b), a)


@given(CLOCKS, st.integers(0, 5), st.integers(0, 6))
def test_grown_never_shrinks(a: Clock, index: int, length: int) -> None:
    assert a.compare(a.grown(index, length)) in (Order.BEFORE, Order.EQUAL)


@given(CLOCKS, st.integers(0, 6))
def test_deltas_carry_the_lengths(a: Clock, base: int) -> None:
    bare = Clock(a.revision, a.epoch, a.branch, ())
    assert same(bare.with_deltas(base, a.deltas(base)), a)


def test_clocks_of_two_revisions_share_nothing() -> None:
    a, b = Clock(R1, Epoch(1), Branch(0), (1,)), Clock(R2, Epoch(2), Branch(0), (2,))
    assert a.compare(b) is Order.CONCURRENT
    with pytest.raises(ValueError):
        a.merge(b)
