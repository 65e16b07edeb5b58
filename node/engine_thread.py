"""Where forwards run: on a thread of their own in life, inline under a test's virtual clock.

torch keeps its worker threads per calling thread, so all forwards run on the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import median
from typing import ParamSpec, Protocol, TypeVar

import trio

P = ParamSpec("P")
T = TypeVar("T")


HANDOFFS = 20
REST_S = 0.02
"""Between two of them, as between two tokens: what has slept has to be woken, and finds its caches cold."""


class Engine(Protocol):
    """Runs one blocking call at a time."""

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result, or its exception."""
        ...

    def close(self) -> None:
        """No more calls."""
        ...


class InlineEngine:
    """Runs calls where it stands, each taking `step_s` of trio's time: a virtual clock cannot wait for threads."""

    def __init__(self, step_s: float = 0.001) -> None:
        self._step_s = step_s

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.sleep(self._step_s)
        return call(*args, **kwargs)

    def close(self) -> None:
        pass


class EngineThread:
    """Runs one call at a time off the event loop. A call cannot be interrupted: cancelling waits for it to end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result, or its exception."""
        token = trio.lowlevel.current_trio_token()
        ended = trio.Event()

        def wake(_: Future[T]) -> None:
            token.run_sync_soon(ended.set)

        future = self._pool.submit(call, *args, **kwargs)
        future.add_done_callback(wake)
        with trio.CancelScope(shield=True):
            await ended.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return future.result()

    def close(self) -> None:
        """Let the thread end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def handoff_s(engine: Engine) -> float:
    """Seconds that a step costs beside its computing: the way to the engine's thread and back. The median of some."""
    taken: list[float] = []
    for _ in range(HANDOFFS):
        await trio.sleep(REST_S)
        began = time.perf_counter()
        await engine.run(int)
        taken.append(time.perf_counter() - began)
    return median(taken)
