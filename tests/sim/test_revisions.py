"""The simulated change of revisions in small: some seeds, the named mutation; the command does the rest."""

from __future__ import annotations

import pytest

from paceline.consistency.revisions import Frontier
from paceline.sim.many import run_seeds
from paceline.sim.mutations import catch
from paceline.sim.revisions import BROKEN_RULES, run, simulate

FAST = {
    "accept a frame of another revision": 10,
    "strong takes what is served": 6,
    "bounded allows one more": 14,
}


def test_some_seeds_keep_every_promise() -> None:
    tally = run_seeds(run, range(6))
    assert tally.failed == []
    assert {"available", "strong", "bounded", "pinned"} <= set(tally.counts["answered"])
    assert {"strong", "pinned"} <= set(tally.counts["refused"])


def test_a_seed_names_a_run_completely() -> None:
    lines: list[list[str]] = [[], []]
    for told in lines:
        simulate(3, lambda now, text, told=told: told.append(f"{now} {text}"))  # type: ignore[misc]
    assert lines[0] == lines[1]
    assert any("release 2" in line for line in lines[0])


@pytest.mark.parametrize("name", sorted(FAST))
def test_a_broken_rule_is_caught(name: str) -> None:
    mutation = next(it for it in BROKEN_RULES if it.name == name)
    merge = Frontier.merge
    assert catch(mutation, simulate, 0, FAST[name]) is not None
    assert Frontier.merge is merge
