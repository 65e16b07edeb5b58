"""The inbox against a naive model: what is applied is 0, 1, 2, …, each of the newest branch, whatever is cropped."""

from __future__ import annotations

import pytest
from consistency_making import ROW, rows
from hypothesis import given
from hypothesis import strategies as st

from paceline.consistency.inputs import Inbox, Input
from paceline.consistency.invariants import InvariantBroken

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 5)),
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("done"), st.just(0)),
        st.tuples(st.just("fail"), st.just(0)),
        st.tuples(st.just("crop"), st.integers(0, 12)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_kv_holds_what_was_pushed_last_for_each_position(steps: list[tuple[str, int]]) -> None:
    inbox, running, branch = Inbox(), None, 0
    wanted: list[int] = []  # the branch that each accepted position belongs to
    kv: list[int] = []  # what a shard would hold
    for name, number in steps:
        if name == "push":
            start = inbox.expected
            assert start == len(wanted)
            inbox.push(Input(0, branch, start, number, rows=rows(start, number, branch)))
            wanted += [branch] * number
        elif name == "take" and inbox.peek() is not None:
            running = inbox.take(number, lambda given: False)
            assert running.start == inbox.length == len(kv)
            assert bytes(running.rows) == rows(running.start, running.n, running.branch)
            kv += [running.branch] * running.n
        elif name in ("done", "fail") and running is not None:
            applied = inbox.finish(running, applied=name == "done")
            if name == "fail" and applied:
                inbox.clear()
            running = None
            del kv[inbox.length :]
        elif name == "crop":
            if inbox.crop(number):
                del kv[inbox.length :]
            branch += 1
        elif name == "clear":
            inbox.clear()
        del wanted[inbox.expected :]
        assert wanted[: inbox.length] == kv[: inbox.length]
        assert inbox.length <= inbox.expected == len(wanted)


def test_a_result_comes_back_once() -> None:
    inbox = Inbox()
    inbox.push(Input(0, 0, 0, 1, ids=(3,)))
    given_ = inbox.take(4, lambda given: True)
    assert given_.sample
    assert inbox.finish(given_, applied=True)
    with pytest.raises(InvariantBroken):
        inbox.finish(given_, applied=True)


def test_nothing_is_pushed_over_a_gap() -> None:
    with pytest.raises(InvariantBroken):
        Inbox().push(Input(0, 0, 1, 1, ids=(3,)))


def test_parts_of_rows_and_ids() -> None:
    both = Input(0, 0, 4, 3, rows=rows(4, 3))
    assert bytes(both.part(1, 2).rows) == rows(5, 2)
    assert len(both.part(1, 2).rows) == 2 * ROW
    assert Input(0, 0, 4, 3, ids=(7, 8, 9)).part(2, 1).ids == (9,)
