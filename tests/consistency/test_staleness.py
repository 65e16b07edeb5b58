"""Since when a revision in use is behind, and whom that is told, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.consistency.revisions import Frontier
from paceline.consistency.staleness import Staleness
from paceline.wire.releases import Release

OLD, NEW = b"o" * 32, b"n" * 32


def frontier(*released: tuple[bytes, float]) -> Frontier:
    return Frontier.of(Release("toy", it, n, b"p" * 32, share=share) for n, (it, share) in enumerate(released, 1))


CURRENT, BEHIND = frontier((OLD, 1.0)), frontier((OLD, 1.0), (NEW, 1.0))
CANARY = frontier((OLD, 1.0), (NEW, 0.1))


def test_what_is_behind_for_long_is_told_once() -> None:
    watch = Staleness(600.0)
    assert watch.look("toy", [OLD], CURRENT, 0.0) == []
    assert watch.look("toy", [OLD], BEHIND, 100.0) == []
    assert [(lag.releases, lag.for_s, lag.overdue) for lag in watch.lags(400.0)] == [(1, 300.0, False)]
    assert watch.look("toy", [OLD], BEHIND, 699.0) == []
    (lag,) = watch.look("toy", [OLD, NEW], BEHIND, 700.0)
    assert (lag.revision, lag.releases, lag.for_s) == (OLD, 1, 600.0)
    assert watch.look("toy", [OLD, NEW], BEHIND, 800.0) == []
    assert [lag.overdue for lag in watch.lags(800.0)] == [False, True]


def test_what_is_current_again_or_no_longer_used_begins_anew() -> None:
    watch = Staleness(10.0)
    watch.look("toy", [OLD], BEHIND, 0.0)
    back = BEHIND.merge(Frontier.of([Release("toy", OLD, 3, b"p" * 32)]))
    assert watch.look("toy", [OLD], back, 20.0) == []
    assert [lag.for_s for lag in watch.lags(99.0)] == [0.0]
    watch.look("toy", [], BEHIND, 30.0)
    assert watch.look("toy", [OLD], BEHIND, 31.0) == []
    assert len(watch.look("toy", [OLD], BEHIND, 41.0)) == 1
    watch.forget(["toy"])
    assert watch.lags(50.0) == []


@given(now=st.floats(0, 1e9))
def test_neither_side_of_a_canary_is_behind_nor_what_nobody_released(now: float) -> None:
    watch = Staleness(0.0)
    assert watch.look("toy", [OLD, NEW, b"x" * 32], CANARY, now) == []
    assert [lag.releases for lag in watch.lags(now)] == [0, 0, 0]
