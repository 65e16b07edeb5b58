"""The engine's own thread: torch keeps its worker threads per calling thread, so forwards always run on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import trio

P = ParamSpec("P")
T = TypeVar("T")


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
