"""`Client`: the client for plain blocking code.

::

    with Client() as client:
        with client.generate("Once upon a time", max_tokens=64) as answer:
            for piece in answer:
                print(piece.text, end="")
        print(answer.result.tokens_per_s)

The swarm's side runs under trio on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from paceline.client.connect import ClientConfig, as_addresses, connect
from paceline.client.core import ClientCore
from paceline.client.options import GenerateOptions, Messages, Prompt
from paceline.client.results import Piece, Result
from paceline.client.stream import Stream
from paceline.wire.offers import Offer
from paceline.wire.session import SessionState


class Generation:
    """One generation: iterate its pieces; `result` holds once they have ended. As a context it cancels what is left."""

    def __init__(self, portal: BlockingPortal, stream: Stream) -> None:
        self._portal = portal
        self._stream = stream

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._portal.call(self._stream.receive)) is not None:
            yield piece

    def cancel(self) -> None:
        """Stop generating and wait until the stages have been told."""
        self._portal.call(self._finish)

    async def _finish(self) -> None:
        self._stream.cancel()
        await self._stream.finished()

    @property
    def result(self) -> Result:
        """The account so far; complete once the pieces have ended."""
        return self._stream.result()

    def state(self) -> SessionState:
        """Resumes this session in another process (`Client.resume`)."""
        return self._stream.state()


class Client:
    """A client of one swarm. `swarm`: members' multiaddrs (None: see ClientConfig). Raises typed PacelineErrors."""

    def __init__(self, swarm: str | Sequence[str] | None = None, *, home: Path | None = None) -> None:
        self._config = ClientConfig(bootstrap=as_addresses(swarm), home=home)
        self._exit: ExitStack
        self._portal: BlockingPortal
        self._core: ClientCore

    def __enter__(self) -> Client:
        with ExitStack() as stack:  # told of an error on the way, the portal cancels what still joins the swarm
            self._portal = stack.enter_context(start_blocking_portal(backend="trio"))
            self._core = stack.enter_context(self._portal.wrap_async_context_manager(connect(self._config)))
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def generate(self, prompt: Prompt, **options: Any) -> Generation:
        """Continue `prompt` (text or token ids). Keywords: the fields of GenerateOptions."""
        return self._started(self._core.generate, prompt, GenerateOptions(**options))

    def chat(self, messages: Messages, **options: Any) -> Generation:
        """Answer `messages` (role and content) through the model's chat template."""
        return self._started(self._core.chat, messages, GenerateOptions(**options))

    def resume(self, state: SessionState, **options: Any) -> Generation:
        """Take a session over from its exported state."""
        return self._started(self._core.resume, state, GenerateOptions(**options))

    def offers(self) -> tuple[Offer, ...]:
        """What the swarm offers."""
        return self._portal.call(self._core.offers)

    def status(self) -> list[dict[str, Any]]:
        """Each node's own account."""
        return self._portal.call(self._core.status)

    def _started(self, start: Callable[..., Awaitable[Stream]], *args: Any) -> Generation:
        return Generation(self._portal, self._portal.call(start, *args))
