"""Fleets live on under every rule; ours leaves no gap and keeps near the bound."""

from __future__ import annotations

import pytest

from paceline.sim.swarm_churn import RULES, Fleet, run

SMALL = Fleet(layers=16, size=14, events=25)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_fleet_lives_through_its_events(rule) -> None:  # type: ignore[no-untyped-def]
    report = run(SMALL, rule, 3)
    assert report.departures > 3
    assert all(0.0 <= share <= 1.0 + 1e-6 for share, _ in report.shares)
    assert report.whole_share <= report.share + 1e-9
    assert run(SMALL, rule, 3) == report


@pytest.mark.parametrize("seed", range(3))
def test_ours_leaves_no_gap_and_keeps_near_the_bound(seed: int) -> None:
    report = run(SMALL, RULES[0], seed)
    assert report.gaps == 0
    assert report.share >= 0.9
