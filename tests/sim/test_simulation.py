"""The simulator in small: a few hundred seeds, some mutations, the smallest scopes; the command does the rest."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from paceline.consistency.journal import Journal
from paceline.sim.chance import Chance
from paceline.sim.checks import Broken
from paceline.sim.clone import clone
from paceline.sim.explore import SCOPES, Scope, explore
from paceline.sim.many import many_command, run_seeds
from paceline.sim.mishaps import MISHAPS
from paceline.sim.mutations import MUTATIONS, catch
from paceline.sim.reference import POOL, REVISION, Reference, model_of, reference
from paceline.sim.run import run, simulate
from paceline.sim.scenario import KINDS, draw

FAST = {
    "skip the fence": 20,
    "accept a gap": 20,
    "apply duplicates": 20,
    "forget the crop of the KV": 20,
    "read the journal off by one": 60,
    "recovery line one too high": 20,
    "the owner never looks at the clock": 20,
    "a standby sends": 60,
}


def test_a_few_hundred_seeds_break_nothing() -> None:
    tally = run_seeds(run, range(300))
    assert tally.failed == []
    assert tally.runs == 300
    assert set(tally.counts["repairs by tier"]) == {"none", "shadow", "journal", "tokens"}
    assert {"stop", "length", "fenced", "cancelled"} <= set(tally.counts["ended"])


def test_a_seed_names_a_run_completely() -> None:
    lines: list[list[str]] = [[], []]
    for told in lines:
        simulate(33, lambda now, text, told=told: told.append(f"{now} {text}"))  # type: ignore[misc]
    assert lines[0] == lines[1]
    assert len(lines[0]) > 50


def test_a_seed_names_the_same_run_in_every_process() -> None:
    command = [sys.executable, "-m", "paceline.sim", "--runs", "60"]
    told = {
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": salt}, capture_output=True, check=True).stdout
        for salt in ("1", "2")
    }
    assert len(told) == 1


def test_a_failing_seed_is_told_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    mutation = next(m for m in MUTATIONS if m.name == "skip the fence")
    with mutation.applied():
        assert many_command(run, "python -m paceline.sim", range(40), 1, 20) == 1
    assert "python -m paceline.sim --replay " in capsys.readouterr().out
    assert many_command(run, "python -m paceline.sim", range(5), 1, 20) == 0


@pytest.mark.parametrize("name", sorted(FAST))
def test_a_broken_protocol_is_caught(name: str) -> None:
    mutation = next(m for m in MUTATIONS if m.name == name)
    assert catch(mutation, simulate, 0, FAST[name]) is not None


def test_mutations_are_many_and_leave_nothing_behind() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 12
    read = Journal.read
    with next(m for m in MUTATIONS if m.name == "read the journal off by one").applied():
        assert Journal.read is not read
    assert Journal.read is read


@pytest.mark.parametrize("scope", SCOPES["small"])
def test_the_smallest_scopes_hold_in_every_interleaving(scope: Scope) -> None:
    found = explore(scope)
    assert found.quiet > 10
    assert found.states > 50


@pytest.mark.parametrize(("name", "scope"), [("accept a gap", 0), ("apply duplicates", 1), ("skip the fence", 2)])
def test_the_explorer_catches_a_broken_protocol_and_tells_the_way_there(name: str, scope: int) -> None:
    mutation = next(m for m in MUTATIONS if m.name == name)
    with mutation.applied(), pytest.raises(Broken) as broken:
        explore(SCOPES["small"][scope])
    assert "deliver" in str(broken.value)


def test_references_are_of_all_kinds() -> None:
    found: list[Reference] = [reference(number) for number in range(POOL)]
    assert {made.finish for made in found} == {"stop", "length"}
    assert {made.params.needs_history for made in found} == {True, False}
    assert {made.params.greedy for made in found} == {True, False}
    assert max(len(made.log) for made in found) > 40


def test_scenarios_name_only_mishaps_that_exist() -> None:
    assert set(KINDS) == set(MISHAPS)
    drawn = [draw(Chance(seed)) for seed in range(300)]
    assert {len(scenario.tilings[0]) for scenario in drawn} >= {1, 2, 3}
    assert {scenario.strict for scenario in drawn} == {True, False}


def test_a_clone_shares_values_and_nothing_else() -> None:
    inner = [1, (2, 3)]
    outer = {"a": inner, "b": inner, "model": model_of(REVISION)}
    copied = clone(outer)
    assert copied == outer
    assert copied["a"] is copied["b"] is not inner
    assert copied["model"] is outer["model"]
