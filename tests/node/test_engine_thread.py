"""The engine's thread: calls run one at a time on it, and what the way there costs is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pytest

from paceline.node.engine_thread import HANDOFFS, EngineThread, InlineEngine, handoff_s

P = ParamSpec("P")
T = TypeVar("T")


class Counting(InlineEngine):
    """Counts what it is given."""

    calls = 0

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.calls += 1
        return await super().run(call, *args, **kwargs)


async def test_the_way_to_the_engine_is_measured_with_nothing_to_compute(autojump_clock: object) -> None:
    engine = Counting()
    assert await handoff_s(engine) > 0.0
    assert engine.calls == HANDOFFS


async def test_calls_run_on_one_thread_and_raise_what_they_raise() -> None:
    engine = EngineThread()
    first = await engine.run(threading.get_ident)
    assert first == await engine.run(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await engine.run(divmod, 1, 0)
    engine.close()
