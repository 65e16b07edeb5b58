"""What may go: never what somebody needs, in the order of last use, and no more than it takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.store.room import Contents, Resident, decide, shares

BLOCKS = [f"b{number}" for number in range(9)]


@st.composite
def contents(draw: st.DrawFn) -> Contents:
    sizes = draw(st.dictionaries(st.sampled_from(BLOCKS), st.integers(0, 50)))
    claimed = draw(st.dictionaries(st.sampled_from(BLOCKS), st.integers(0, 50), max_size=3))
    residents = tuple(
        Resident(f"r{number}", draw(st.frozensets(st.sampled_from(BLOCKS), max_size=4)), draw(st.integers(0, 3)), kept)
        for number, kept in enumerate(draw(st.lists(st.sampled_from(["", "", "pinned"]), max_size=5)))
    )
    return Contents(sizes, residents, claimed)


@given(contents(), st.none() | st.integers(0, 200), st.booleans())
def test_what_is_needed_stays_and_the_quota_holds_where_it_can(it: Contents, quota: int | None, evict: bool) -> None:
    decision = decide(it, quota, evict=evict)
    gone = set(decision.revisions)
    kept = [resident for resident in it.residents if resident.revision not in gone]
    needed = {block for resident in kept for block in resident.blocks} | it.claimed.keys()
    assert not decision.blocks & needed
    assert {*it.sizes} - decision.blocks <= needed
    assert all(not resident.kept for resident in it.residents if resident.revision in gone)
    left = Contents({b: n for b, n in it.sizes.items() if b not in decision.blocks}, tuple(kept), it.claimed)
    assert decision.used == left.used()
    assert decision.over == (0 if quota is None else max(0, left.used() - quota))
    assert not gone or (evict and quota is not None)
    if evict and quota is not None and decision.over:
        must = {block for resident in kept if resident.kept for block in resident.blocks} | it.claimed.keys()
        floor = Contents({b: n for b, n in it.sizes.items() if b in must}, (), it.claimed).used()
        assert floor == decision.used, "everything that may go has gone"


@given(contents(), st.integers(0, 200))
def test_no_revision_goes_that_frees_nothing_or_before_its_turn(it: Contents, quota: int) -> None:
    gone = set(decide(it, quota).revisions)
    residents = {resident.revision: resident for resident in it.residents}
    for one in gone:
        back = tuple(resident for resident in it.residents if resident.revision not in gone - {one})
        without = tuple(resident for resident in back if resident.revision != one)
        assert decide(Contents(it.sizes, back, it.claimed), None).used > (
            decide(Contents(it.sizes, without, it.claimed), None).used
        )
    if gone:
        last = max((residents[one].used_at, one) for one in gone)
        fewer = tuple(resident for resident in it.residents if resident.revision not in gone - {last[1]})
        assert decide(Contents(it.sizes, fewer, it.claimed), None).used > quota, "the last one had to go, too"


def test_shared_blocks_are_nobodys_own() -> None:
    residents = (Resident("old", frozenset({"a", "b"}), 0), Resident("new", frozenset({"b", "c"}), 1))
    assert shares(Contents({"a": 1, "b": 10}, residents)) == {"old": (1, 10), "new": (0, 10)}


def test_the_oldest_goes_first_and_only_it() -> None:
    residents = tuple(Resident(f"r{number}", frozenset({f"b{number}"}), -number) for number in range(3))
    decision = decide(Contents({f"b{number}": 10 for number in range(3)}, residents), 20)
    assert (decision.revisions, decision.blocks, decision.used) == (("r2",), {"b2"}, 20)
