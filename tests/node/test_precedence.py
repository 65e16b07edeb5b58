"""Who goes first at a node: decoding before prompts, an owner's urgent sessions before its others, at no one's cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.node.precedence import Standing, ordered

STANDINGS = st.lists(st.builds(Standing, st.sampled_from("ab"), st.booleans(), st.integers(-1, 1)), max_size=12)


def test_an_owner_s_prompts_go_by_priority_in_the_owner_s_own_places() -> None:
    standings = [Standing("a", True, -1), Standing("b", True, 0), Standing("a", True, 1), Standing("b", False, 0)]
    assert ordered(["flex", "other", "urgent", "decoding"], standings) == ["decoding", "urgent", "other", "flex"]


@given(STANDINGS)
def test_nobody_loses_a_place_to_another_owner(standings: list[Standing]) -> None:
    keys = list(range(len(standings)))
    plain = ordered(keys, [standing._replace(priority=0) for standing in standings])
    found = ordered(keys, standings)
    assert [(standings[k].owner, standings[k].prefills) for k in found] == [
        (standings[k].owner, standings[k].prefills) for k in plain
    ]
    assert sorted(found) == keys


@given(STANDINGS)
def test_an_owner_s_own_sessions_go_by_priority_and_then_in_turn(standings: list[Standing]) -> None:
    for owner in "ab":
        mine = [k for k in ordered(list(range(len(standings))), standings) if standings[k].owner == owner]
        assert mine == sorted(mine, key=lambda k: (standings[k].prefills, -standings[k].priority, k))
