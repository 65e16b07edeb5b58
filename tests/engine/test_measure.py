"""What a node measures of itself is what its steps take: a clock that obeys a formula, and the formula found again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import pytest

from paceline.engine.measure import measure
from paceline.engine.shard import Output, Work
from paceline.engine.toy import ToyModel, ToyShard
from paceline.wire.ids import Span


class Machine(ToyShard):
    """A toy whose steps take what `cost` says of them, on the clock `now`."""

    def __init__(self, cost: Callable[[Sequence[Work]], float], room: int = 8192, max_context: int = 4096) -> None:
        super().__init__(ToyModel(layers=2, max_context=max_context), Span(0, 2), room)
        self._cost, self.now_s, self.longest = cost, 0.0, 0

    def step(self, batch: Sequence[Work]) -> list[Output]:
        self.now_s += self._cost(batch)
        self.longest = max(self.longest, *(work.start + work.n for work in batch))
        return super().step(batch)

    def now(self) -> float:
        return self.now_s


def line(batch: Sequence[Work]) -> float:
    """A step: 4 ms, 0.1 ms a position and 2 µs a position of each one's past, all sessions beyond 4 at half price."""
    each = [work.n * (1e-4 + 2e-6 * (work.start + (work.n - 1) / 2)) for work in batch]
    return 4e-3 + sum(each[:4]) + sum(each[4:]) / 2


def test_the_curves_of_a_machine_are_found() -> None:
    machine = Machine(line)
    found = measure(machine, machine.now)
    assert found.decode_past_s == pytest.approx(2e-6)
    assert found.prefill_past_s == pytest.approx(2e-6)
    assert found.decode_extra_s == pytest.approx(1e-4, rel=0.9)
    assert found.decode_many_s < found.decode_extra_s
    assert 4.1e-3 <= found.decode_s <= 4.3e-3
    assert machine.longest <= 2048
    assert machine.kv_free == 8192


def test_noise_does_not_bend_the_lines() -> None:
    """Every seventh step takes five times as long."""
    number = count()
    machine = Machine(lambda batch: line(batch) * (5.0 if next(number) % 7 == 0 else 1.0))
    found = measure(machine, machine.now)
    assert found.decode_past_s == pytest.approx(2e-6, rel=0.2)
    assert found.prefill_past_s == pytest.approx(2e-6, rel=0.2)


@pytest.mark.parametrize("slower", [0.05, 1.0, 20.0, 400.0])
def test_the_time_that_measuring_takes_is_bounded(slower: float) -> None:
    """In seconds, or in steps where one step takes seconds: a slow machine has no time for a long past."""
    machine = Machine(lambda batch: slower * line(batch))
    found = measure(machine, machine.now)
    assert machine.now_s <= 3.0 + 50 * slower * 20e-3
    assert found.decode_s > 0.0
    assert found.decode_past_s == pytest.approx(slower * 2e-6) or found.decode_past_s == 0.0


@pytest.mark.parametrize("room", [2, 16, 70, 100, 200, 300])
def test_a_node_with_little_room_measures_what_it_can(room: int) -> None:
    machine = Machine(line, room)
    found = measure(machine, machine.now)
    assert found.decode_s > 0.0
    assert found.decode_past_s == pytest.approx(0.0 if room < 257 else 2e-6)
    assert machine.kv_free == room


def test_a_model_of_little_context_has_no_curve() -> None:
    machine = Machine(line, max_context=128)
    assert measure(machine, machine.now).decode_past_s == 0.0
