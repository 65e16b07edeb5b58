"""`AsyncClient`: the client under trio and asyncio. One implementation; under asyncio it runs beside, on a thread.

::

    async with AsyncClient() as client:
        async with client.generate("Once upon a time", max_tokens=64) as answer:
            async for piece in answer:
                print(piece.text, end="")
        print(answer.result.tokens_per_s)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import sniffio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from paceline.client.connect import ClientConfig, as_addresses, connect
from paceline.client.core import ClientCore
from paceline.client.options import GenerateOptions, Messages, Prompt
from paceline.client.results import Piece, Result
from paceline.client.stream import Stream
from paceline.wire.offers import Offer
from paceline.wire.session import SessionState

T = TypeVar("T")
Start = Callable[[ClientCore], Awaitable[Stream]]


class AsyncGeneration:
    """One generation: iterate its pieces inside ``async with``; `result` holds once they have ended."""

    def __init__(self, client: AsyncClient, start: Start) -> None:
        self._client = client
        self._start = start
        self._stream: Stream | None = None

    async def __aenter__(self) -> AsyncGeneration:
        self._stream = await self._client._call(self._start, self._client._core)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stream = self._open()
        await self._client._call(_finish, stream)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        stream = self._open()
        while (piece := await self._client._call(stream.receive)) is not None:
            yield piece

    async def cancel(self) -> None:
        """Stop generating; the pieces so far stay."""
        await self._client._call(_finish, self._open())

    @property
    def result(self) -> Result:
        """The account so far; complete once the pieces have ended."""
        return self._open().result()

    def state(self) -> SessionState:
        """Resumes this session in another process (`AsyncClient.resume`)."""
        return self._open().state()

    def _open(self) -> Stream:
        if self._stream is None:
            raise RuntimeError("use the generation inside `async with`")
        return self._stream


async def _finish(stream: Stream) -> None:
    stream.cancel()
    await stream.finished()


class AsyncClient:
    """A client of one swarm. `swarm`: members' multiaddrs (None: see ClientConfig). Raises typed PacelineErrors."""

    def __init__(self, swarm: str | Sequence[str] | None = None, *, home: Path | None = None) -> None:
        self._config = ClientConfig(bootstrap=as_addresses(swarm), home=home)
        self._exit = AsyncExitStack()
        self._portal: BlockingPortal | None = None
        self._core: ClientCore

    async def __aenter__(self) -> AsyncClient:
        if sniffio.current_async_library() == "trio":
            self._core = await self._exit.enter_async_context(connect(self._config))
            return self
        loop = asyncio.get_running_loop()
        opened: AbstractContextManager[BlockingPortal] = start_blocking_portal(backend="trio")
        self._portal = await loop.run_in_executor(None, opened.__enter__)
        self._exit.push_async_exit(partial(_in_executor, opened))
        manager: AbstractAsyncContextManager[ClientCore] = connect(self._config)
        wrapped = self._portal.wrap_async_context_manager(manager)
        self._core = await loop.run_in_executor(None, wrapped.__enter__)
        self._exit.push_async_exit(partial(_in_executor, wrapped))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.__aexit__(kind, error, trace)

    def generate(self, prompt: Prompt, **options: Any) -> AsyncGeneration:
        """Continue `prompt` (text or token ids). Keywords: the fields of GenerateOptions."""
        return AsyncGeneration(self, lambda core: core.generate(prompt, GenerateOptions(**options)))

    def chat(self, messages: Messages, **options: Any) -> AsyncGeneration:
        """Answer `messages` (role and content) through the model's chat template."""
        return AsyncGeneration(self, lambda core: core.chat(messages, GenerateOptions(**options)))

    def resume(self, state: SessionState, **options: Any) -> AsyncGeneration:
        """Take a session over from its exported state."""
        return AsyncGeneration(self, lambda core: core.resume(state, GenerateOptions(**options)))

    async def offers(self) -> tuple[Offer, ...]:
        """What the swarm offers."""
        return await self._call(self._core.offers)

    async def status(self) -> list[dict[str, Any]]:
        """Each node's own account."""
        return await self._call(self._core.status)

    async def _call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        if self._portal is None:
            return await function(*args)
        return await asyncio.wrap_future(self._portal.start_task_soon(function, *args))


async def _in_executor(
    manager: AbstractContextManager[Any],
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    await asyncio.get_running_loop().run_in_executor(None, manager.__exit__, None, None, None)
