"""The decision table, row by row, and that it is total."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.consistency.decision import Case, Claim, Standing, decide

HERE = Standing(b"tag0", epoch=5, branch=2, expected=10, known=6)

TABLE = [
    # tag, epoch, branch, start, n
    ((b"tag1", 5, 2, 10, 1), Case.WRONG_REVISION),
    ((b"tag1", 4, 2, 10, 1), Case.WRONG_REVISION),
    ((b"tag0", 4, 2, 10, 1), Case.FENCED),
    ((b"tag0", 4, 9, 10, 1), Case.FENCED),
    ((b"tag0", 6, 0, 0, 1), Case.HOLD),
    ((b"tag0", 5, 1, 10, 1), Case.STALE_BRANCH),
    ((b"tag0", 5, 1, 99, 1), Case.STALE_BRANCH),
    ((b"tag0", 5, 3, 11, 1), Case.GAP),
    ((b"tag0", 5, 3, 5, 1), Case.BAD_ROLLBACK),
    ((b"tag0", 5, 3, 6, 1), Case.ROLLBACK),
    ((b"tag0", 5, 3, 10, 1), Case.ROLLBACK),
    ((b"tag0", 5, 2, 10, 1), Case.APPLY),
    ((None, 5, 2, 10, 4), Case.APPLY),
    ((b"tag0", 5, 2, 9, 1), Case.DUPLICATE),
    ((b"tag0", 5, 2, 8, 2), Case.DUPLICATE),
    ((b"tag0", 5, 2, 8, 3), Case.OVERLAP),
    ((b"tag0", 5, 2, 11, 1), Case.GAP),
]


@pytest.mark.parametrize(("claim", "case"), TABLE)
def test_table(claim: tuple[bytes | None, int, int, int, int], case: Case) -> None:
    assert decide(HERE, Claim(*claim)) is case


def test_a_replacement_below_the_watermark_may_adopt_a_branch() -> None:
    at = Standing(b"tag0", epoch=5, branch=0, expected=3, known=6)
    assert decide(at, Claim(b"tag0", 5, 1, 3, 1)) is Case.ROLLBACK
    assert decide(at, Claim(b"tag0", 5, 1, 2, 1)) is Case.BAD_ROLLBACK


SMALL = st.integers(0, 3)


@given(SMALL, SMALL, SMALL, SMALL, SMALL, SMALL, SMALL, st.integers(1, 3), st.booleans())
def test_it_is_total_and_what_is_applied_is_fresh_and_gapless(
    epoch: int, branch: int, expected: int, known: int, e: int, b: int, start: int, n: int, foreign: bool
) -> None:
    at = Standing(b"tag0", epoch, branch, expected, known)
    case = decide(at, Claim(b"tag1" if foreign else b"tag0", e, b, start, n))
    if case in (Case.APPLY, Case.OVERLAP, Case.ROLLBACK):
        assert (e, foreign) == (epoch, False)
        assert b >= branch
        assert start <= expected < start + n or case is Case.ROLLBACK
    if case is Case.ROLLBACK:
        assert b > branch
        assert min(known, expected) <= start <= expected
    assert (case is Case.FENCED) == (e < epoch and not foreign)
