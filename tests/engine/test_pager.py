"""Turns in memory: never more than fits, and everybody's turn comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.pager import PATIENCE_S, QUANTUM_S, Pager

sizes = st.dictionaries(st.integers(0, 9), st.integers(1, 60), min_size=1)


def check(pager: Pager, needs: dict[int, int], now: float) -> list[object]:
    before = {key for key in range(10) if key in pager}
    turn = pager.turn(needs, now)
    assert pager.held <= pager.budget
    assert set(turn.run) <= set(needs)
    assert all(key in pager for key in turn.run)
    assert set(turn.out) <= before
    assert not set(turn.out) & set(turn.run)
    assert all(key not in pager for key in turn.out)
    return list(turn.run)


@given(st.lists(st.tuples(sizes, st.floats(0.0, 2.0)), max_size=20))
def test_memory_never_holds_more_than_its_budget(steps: list[tuple[dict[int, int], float]]) -> None:
    pager, now, grown = Pager(60), 0.0, dict.fromkeys(range(10), 0)
    for needs, later in steps:
        now += later
        grown |= {key: max(grown[key], need) for key, need in needs.items()}
        check(pager, {key: grown[key] for key in needs}, now)


@given(sizes)
def test_everybody_has_his_turn(needs: dict[int, int]) -> None:
    pager, ran, now = Pager(60), set[object](), 0.0
    for _ in range(400):
        ran.update(check(pager, needs, now))
        now += 0.1
    assert ran == set(needs)


@given(sizes, sizes)
def test_idle_places_are_not_kept_for_ever(idle: dict[int, int], needs: dict[int, int]) -> None:
    pager = Pager(60)
    check(pager, idle, 0.0)
    assert check(pager, needs, QUANTUM_S)


def test_a_ring_s_sessions_keep_their_places_between_trips() -> None:
    pager = Pager(100)
    assert check(pager, {1: 50, 2: 50}, 0.0) == [1, 2]
    assert check(pager, {3: 50}, 0.1) == []
    assert check(pager, {1: 50, 3: 50}, 0.2) == [1]
    assert check(pager, {1: 50, 3: 50}, 0.2 + PATIENCE_S) == [1, 3]
    assert 2 not in pager


def test_who_waits_longest_is_next_and_is_not_overtaken() -> None:
    pager = Pager(100)
    check(pager, {1: 60, 2: 40}, 0.0)
    assert check(pager, {1: 60, 2: 40, 3: 90, 4: 10}, 0.5) == [1, 2]
    assert check(pager, {1: 60, 2: 40, 3: 90, 4: 10}, QUANTUM_S) == [3, 4]
    assert check(pager, {1: 60, 2: 40, 3: 90, 4: 10}, 2 * QUANTUM_S) == [1, 2]


def test_a_batch_that_must_run_pushes_others_out() -> None:
    pager = Pager(100)
    check(pager, {1: 50, 2: 50}, 0.0)
    turn = pager.must({1: 50, 3: 30}, 0.0)
    assert set(turn.run) == {1, 3}
    assert turn.out == (2,)
    assert pager.held == 80
    pager.close(3)
    assert pager.held == 50
