"""The recovery line and the tiers."""

from __future__ import annotations

from consistency_making import ABC, route

from paceline.consistency.recovery import Tier, plan, recovery_line, replay_estimate_s


def test_line_is_what_every_stage_applied_before_the_last_known_token_was_drawn() -> None:
    assert recovery_line(known=4, prompt_length=4) == 0
    assert recovery_line(known=5, prompt_length=4) == 4
    assert recovery_line(known=9, prompt_length=4) == 8


def test_tiers() -> None:
    shadowed = route("a", "b", "c", shadows={"b": "s"})
    assert plan((), ABC, 0).tier is Tier.NONE
    assert plan(ABC, ABC, 8) == plan(ABC, shadowed, 8)
    assert plan(ABC, ABC, 8).lengths == (8, 8, 8)
    assert plan(shadowed, route("a", "s", "c"), 8).tier is Tier.SHADOW
    assert plan(shadowed, route("a", "s", "c"), 8).lengths == (8, 8, 8)
    journal = plan(ABC, route("a", "x", "c"), 8)
    assert (journal.tier, journal.lengths, journal.kept) == (Tier.JOURNAL, (8, 0, 8), 2)
    assert plan(ABC, ABC, 8, from_tokens=True).lengths == (0, 0, 0)
    assert plan(ABC, ABC, 0).tier is Tier.TOKENS


def test_a_peer_that_changes_its_span_is_no_survivor() -> None:
    assert plan(ABC, route("b", "a", "c"), 8).lengths == (0, 0, 8)


def test_estimate_adds_transfer_and_prefill() -> None:
    assert replay_estimate_s(10, 100, 1000.0, 0.5) == 6.0
    assert replay_estimate_s(10, 100, 0.0, 0.5) == 5.0
