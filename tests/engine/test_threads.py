"""The number of threads of a small step follows what is fastest, and comes back when that changes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.threads import PROBE_EVERY, ThreadChoice

COSTS = st.floats(0.001, 1.0)


def run(choice: ThreadChoice, costs: dict[int, float], steps: int) -> Counter[int]:
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


def test_a_single_slow_step_changes_nothing() -> None:
    choice = ThreadChoice(2)
    run(choice, {1: 2.0, 2: 1.0}, 3 * PROBE_EVERY)
    choice.took(2, 50.0)
    assert choice.best == 2


def test_a_busy_machine_is_noticed_within_a_few_steps() -> None:
    choice = ThreadChoice(2)
    run(choice, {1: 2.0, 2: 1.0}, 3 * PROBE_EVERY)
    run(choice, {1: 4.0, 2: 20.0}, 3)
    assert choice.best == 1


def test_without_a_choice_there_is_none() -> None:
    assert run(ThreadChoice(1), {1: 1.0}, 50) == {1: 50}
