"""The simulated change of revisions in small: some seeds, the named mutation; the command does the rest."""

from __future__ import annotations

import pytest

from paceline.consistency.revisions import Frontier
from paceline.sim.many import run_seeds
from paceline.sim.mutations import catch
from paceline.sim.revisions import BROKEN_RULES, run, simulate

FAST = {
    "accept a frame of another revision": 6,
    "strong takes what is served": 0,
    "bounded allows one more": 34,
    "a canary has twice its share": 3,
    "a canary counts as a release for everybody": 0,
    "a canary replaces what it stands beside": 0,
    "nobody takes a canary up": 5,
}
"""A seed that catches each; `--mutations` finds them."""


def test_some_seeds_keep_every_promise() -> None:
    tally = run_seeds(run, range(4))
    assert tally.failed == []
    assert {"available", "strong", "bounded", "pinned"} <= set(tally.counts["answered"])
    assert {"strong", "pinned"} <= set(tally.counts["refused"])
    assert set(tally.counts["sessions while a canary ran"]) == {"on it", "beside it"}


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
    assert catch(mutation, simulate, FAST[name], 1) is not None
    assert Frontier.merge is merge
