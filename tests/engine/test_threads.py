"""The number of threads of a small step follows what is fastest, and comes back when that changes.

Machines are simulated from a seed: what a step takes on each number of threads, with the noise that a stage of a ring
meets. Figures of the rule before this one, in the same machines: docs/LOG.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.threads import PROBE_EVERY, ThreadChoice

COSTS = st.floats(0.001, 1.0)
Costs = dict[int, float]
Machine = Callable[[Random, int], Costs]


def run(choice: ThreadChoice, costs: Costs, steps: int) -> Counter[int]:
    used: Counter[int] = Counter()
    for _ in range(steps):
        threads = choice.choose()
        used[threads] += 1
        choice.took(threads, costs[threads])
    return used


@given(st.sampled_from([1, 2, 3, 8]), st.data())
def test_the_fastest_is_found_and_found_again(most: int, data: st.DataObject) -> None:
    choice = ThreadChoice(most)
    counts = sorted({1, max(1, most // 2), most})
    for _ in range(2):
        costs = {n: data.draw(COSTS) for n in counts}
        run(choice, costs, 20 * PROBE_EVERY)
        used = run(choice, costs, 4 * PROBE_EVERY)
        taken = used.most_common(1)[0][0]
        assert costs[taken] <= min(costs.values()) / 0.9
        assert used[taken] >= 3 * PROBE_EVERY


def test_slow_steps_in_a_row_change_nothing_where_others_would_be_as_slow() -> None:
    choice = ThreadChoice(2)
    run(choice, {1: 1.4, 2: 1.0}, 3 * PROBE_EVERY)
    for _ in range(5):
        run(choice, {1: 7.0, 2: 5.0}, 6)
        assert choice.best == 2
        run(choice, {1: 1.4, 2: 1.0}, 6)


def test_a_busy_machine_is_noticed_within_a_few_steps() -> None:
    choice = ThreadChoice(2)
    run(choice, {1: 2.0, 2: 1.0}, 3 * PROBE_EVERY)
    run(choice, {1: 4.0, 2: 20.0}, 12)
    assert choice.best == 1


def test_lost_trials_become_rare() -> None:
    choice = ThreadChoice(2)
    used = run(choice, {1: 1.0, 2: 5.0}, 1000)
    assert 5 <= used[2] <= 15


def test_without_a_choice_there_is_none() -> None:
    assert run(ThreadChoice(1), {1: 1.0}, 50) == {1: 50}


# --- machines


def quiet(draw: Random, step: int) -> Costs:
    """Two threads win by three tenths."""
    return {1: 14.0 * draw.lognormvariate(0.0, 0.1), 2: 10.0 * draw.lognormvariate(0.0, 0.1)}


def cold(draw: Random, step: int) -> Costs:
    """A stage of a ring: one step in four waits for a thread that has to be woken."""
    late = 1.7 if draw.random() < 0.25 else 1.0
    return {1: 14.0 * draw.lognormvariate(0.0, 0.1), 2: 10.2 * late * draw.lognormvariate(0.0, 0.1)}


def stalling(draw: Random, step: int) -> Costs:
    """One step in ten takes several times as long, whatever it runs on."""
    times = draw.uniform(2.0, 8.0) if draw.random() < 0.1 else 1.0
    return {threads: times * cost for threads, cost in quiet(draw, step).items()}


def bursts(draw: Random, step: int) -> Costs:
    """Five steps of every fifty meet others, who hurt two threads more."""
    hurt = {1: 2.0, 2: 6.0} if step % 50 >= 45 else {1: 1.0, 2: 1.0}
    return {threads: hurt[threads] * cost for threads, cost in quiet(draw, step).items()}


def drifting(draw: Random, step: int) -> Costs:
    """Everything becomes half as fast again, and faster, over some hundred steps."""
    times = 1.0 + abs(step % 400 - 200) / 200
    return {threads: times * cost for threads, cost in quiet(draw, step).items()}


def busy(draw: Random, step: int) -> Costs:
    """Two threads take four times as long as one, more or less."""
    return {1: 20.0 * draw.lognormvariate(0.0, 0.3), 2: 80.0 * draw.lognormvariate(0.0, 0.6)}


def ride(machine: Machine, steps: int, choice: ThreadChoice, draw: Random) -> tuple[float, Costs, Counter[int]]:
    """What all steps took, what they would have taken on either number, and how often each was used."""
    took, would, used = 0.0, {1: 0.0, 2: 0.0}, Counter[int]()
    for step in range(steps):
        costs, threads = machine(draw, step), choice.choose()
        choice.took(threads, costs[threads])
        used[threads] += 1
        took += costs[threads]
        would = {n: would[n] + costs[n] for n in would}
    return took, would, used


@pytest.mark.parametrize(
    ("machine", "best", "share", "lost"),
    [
        (quiet, 2, 0.96, 0.02),
        (cold, 2, 0.85, 0.04),
        (stalling, 2, 0.90, 0.06),
        (bursts, 2, 0.80, 0.06),
        (drifting, 2, 0.96, 0.02),
        (busy, 1, 0.97, 0.08),
    ],
)
def test_a_machine_is_ridden_nearly_as_fast_as_it_can_be(
    machine: Machine, best: int, share: float, lost: float
) -> None:
    """Over twenty seeds: how often the better number ran, and what was lost to trials and errors."""
    took = would = 0.0
    used: Counter[int] = Counter()
    for seed in range(20):
        cost, either, count = ride(machine, 1000, ThreadChoice(2), Random(seed))
        took, would, used = took + cost, would + either[best], used + count
    assert used[best] >= share * used.total()
    assert took <= (1.0 + lost) * would


@pytest.mark.parametrize("seed", range(20))
def test_a_machine_that_becomes_busy_and_quiet_again_is_followed(seed: int) -> None:
    draw, choice = Random(seed), ThreadChoice(2)
    ride(quiet, 200, choice, draw)
    assert choice.best == 2
    ride(busy, 40, choice, draw)
    took, would, _ = ride(busy, 300, choice, draw)
    assert took <= 1.35 * would[1]
    assert choice.best == 1
    ride(quiet, 150, choice, draw)
    took, would, _ = ride(quiet, 200, choice, draw)
    assert took <= 1.1 * would[2]


def test_two_threads_are_back_soon_after_a_busy_time() -> None:
    """Half of the times within forty steps, and always before the longest rest between trials is over."""
    took = []
    for seed in range(40):
        draw, choice = Random(seed), ThreadChoice(2)
        ride(busy, 300 + seed, choice, draw)
        took.append(next(steps for steps in range(1, 400) if ride(quiet, 1, choice, draw) and choice.best == 2))
    assert sorted(took)[20] <= 40
    assert max(took) <= 120
