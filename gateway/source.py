"""Where one choice's tokens come from: live from the library, or resumed where a stream was cut off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import msgspec
import trio

from paceline.client.results import Hedged, Piece, Result
from paceline.client.stream import Stream
from paceline.gateway.replies import FailoverAccount, HedgeAccount, RideAccount, StageAccount
from paceline.wire.session import SessionState


class Source(Protocol):
    """What `client.stream.Stream` is, as far as a delivery cares."""

    async def receive(self) -> Piece | None:
        """The next piece, None after the last. Raises the PacelineError that ended the answer early."""
        ...

    def cancel(self) -> None:
        """Stop; frees the session at every stage."""
        ...

    def result(self) -> Result:
        """The account so far."""
        ...

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever the ring does."""
        ...

    @property
    def stages(self) -> list[str]:
        """The ring's stages by name, head first."""
        ...


class LiveSource:
    """A running generation."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.receive = stream.receive
        self.cancel = stream.cancel
        self.result = stream.result

    @property
    def version(self) -> tuple[int, int]:
        """Epoch, and repairs so far."""
        owner = self._stream.ride.owner
        return owner.epoch, len(owner.failovers)

    @property
    def stages(self) -> list[str]:
        """The ring's stages by name, head first."""
        return [f"{stage.start}:{stage.end} {stage.at.peer[-8:]}" for stage in self._stream.ride.owner.route]


class ResumedSource:
    """Replays `pieces`, then goes on with `stream`; without one, `last` is the account of the whole answer."""

    def __init__(self, pieces: Sequence[Piece], stream: Stream | None, last: Result) -> None:
        self._replay = list(reversed(pieces))
        self._stream = stream
        self._last = last

    async def receive(self) -> Piece | None:
        """See Source."""
        if self._replay:
            await trio.lowlevel.checkpoint()  # others run too while a long answer is said again
            return self._replay.pop()
        return None if self._stream is None else await self._stream.receive()

    def cancel(self) -> None:
        """See Source."""
        if self._stream is not None:
            self._stream.cancel()

    def result(self) -> Result:
        """See Source."""
        return self._last if self._stream is None else self._stream.result()

    @property
    def version(self) -> tuple[int, int]:
        """See Source."""
        return LiveSource(self._stream).version if self._stream is not None else (0, 0)

    @property
    def stages(self) -> list[str]:
        """See Source."""
        return LiveSource(self._stream).stages if self._stream is not None else []


def continuable(state: SessionState, made: int) -> SessionState:
    """The first `made` answer tokens as a session of its own: the cancelled one's stages have forgotten it, and shall
    not be asked. What follows is the same as it was, since a draw depends on seed and index alone.
    """
    log = state.log[: state.prompt_length + made]
    return msgspec.structs.replace(state, session=os.urandom(16), epoch=0, route=(), log=log)


def account(result: Result) -> RideAccount:
    """A ride, as the API tells it."""
    return RideAccount(
        revision=result.revision,
        numerics=result.numerics,
        seed=result.seed,
        epochs=result.epochs,
        route=[StageAccount(rider.peer, rider.start, rider.end) for rider in result.route],
        failovers=[
            FailoverAccount(f.index - result.prompt_tokens, list(f.lost), f.reason, f.tier.value, f.stall_s)
            for f in result.failovers
        ],
        hedge=_hedge(result.hedged),
    )


def _hedge(hedged: Hedged | None) -> HedgeAccount | None:
    if hedged is None:
        return None
    return HedgeAccount(hedged.won, hedged.rings, list(hedged.lost_ring), hedged.lost_with, hedged.extra_positions)


def headers(results: Sequence[Result]) -> dict[str, str]:
    """The answer's ride in headers: the first choice's route, and repairs of all choices so far."""
    first = results[0]
    return {
        "x-paceline-route": ",".join(f"{rider.peer}:{rider.start}-{rider.end}" for rider in first.route),
        "x-paceline-revision": first.revision,
        "x-paceline-trace": first.trace,
        "x-paceline-failovers": str(sum(len(result.failovers) for result in results)),
    }
