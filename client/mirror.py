"""Mirrored traffic: a share of finished answers is asked for again on another revision, and the two are compared.

Afterwards, one at a time, at the lowest priority, and never charged to anybody: the user's own answer is over when its
mirror begins, and knows nothing of how that ends. No text is kept, nor told. Knows a client and its results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import trio

from paceline.client.agreement import Agreement
from paceline.client.core import ClientCore
from paceline.client.options import GenerateOptions
from paceline.client.results import Result
from paceline.consistency.revisions import lot
from paceline.wire.errors import InvalidRequest, PacelineError

WAITING = 4
"""Answers whose mirrors wait for their turn; further ones are passed over."""

Outcome = Literal["equal", "differs", "skipped", "failed", "incomparable"]
Tell = Callable[[Outcome, Result, Agreement | None], None]
"""What became of an answer's mirror; the agreement where both sides ended."""


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """`share`: of finished answers, drawn by session id. `to`: the revision to ask, None: the other side of the canary
    that runs, or nobody. `patience_s`: how long one mirror may take.
    """

    share: float
    to: bytes | None = None
    patience_s: float = 120.0

    @classmethod
    def parse(cls, share: float, to: str = "") -> MirrorConfig:
        """Of a user's words. Raises InvalidRequest."""
        if not 0.0 < share <= 1.0:
            raise InvalidRequest(f"a share of {share:g} cannot be mirrored", cure="above 0, at most 1")
        try:
            revision = bytes.fromhex(to) if to else None
        except ValueError:
            revision = b""
        if revision is not None and len(revision) != 32:
            raise InvalidRequest(f"{to!r} is no revision", cure="64 hexadecimal digits: see paceline models")
        return cls(share, revision)


class Mirror:
    """Run `run` beside whatever offers answers."""

    def __init__(self, core: ClientCore, config: MirrorConfig, tell: Tell) -> None:
        self._core = core
        self._config = config
        self._tell = tell
        self._send, self._receive = trio.open_memory_channel[tuple[Result, GenerateOptions, bytes]](WAITING)

    def offer(self, result: Result, options: GenerateOptions) -> None:
        """An answer is over. Never waits, never fails."""
        if result.finish_reason == "cancelled" or lot(b"mirror", result.state.session) >= self._config.share:
            return
        used = bytes.fromhex(result.revision)
        other = self._config.to or self._core.frontiers.other_side(result.model, used)
        if other is None or other == used:
            return
        try:
            self._send.send_nowait((result, options, other))
        except trio.WouldBlock:
            self._tell("skipped", result, None)

    async def run(self) -> None:
        """One mirror after another, until cancelled."""
        async for result, options, other in self._receive:
            self._tell(*await self._mirrored(result, options, other))

    async def _mirrored(
        self, result: Result, options: GenerateOptions, other: bytes
    ) -> tuple[Outcome, Result, Agreement | None]:
        quiet = replace(options, priority=-1, shadows=False, trace=False, avoid_stragglers=False)
        try:
            with trio.fail_after(self._config.patience_s):
                if not await self._core.same_tokens(result.state, other):
                    return "incomparable", result, None
                stream = await self._core.repeat(result.state, other, quiet)
                try:
                    while await stream.receive() is not None:
                        pass
                finally:
                    stream.cancel()
        except (PacelineError, trio.TooSlowError):
            return "failed", result, None
        found = Agreement.of(result, stream.result())
        return ("equal" if found.same else "differs"), result, found
