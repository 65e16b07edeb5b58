"""Where one choice's tokens come from: live from the library, or resumed where a stream was cut off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from paceline.client.results import Piece, Result
from paceline.client.stream import Stream
from paceline.client.text import StopMatcher
from paceline.client.tokenizer import Tokenizer
from paceline.gateway.replies import FailoverAccount, RideAccount, StageAccount
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


class ResumedSource:
    """Replays `pieces`, then goes on with `stream`, whose text is decoded here: a decoder that begins in the middle of
    an answer would lose the characters, spaces and stop strings that lie across the seam.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        stream: Stream | None,
        last: Result,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
    ) -> None:
        self._replay = list(reversed(pieces))
        self._stream = stream
        self._last = last
        self._decoder = tokenizer.stream() if tokenizer else None
        self._matcher = StopMatcher(stops)
        self._stopped = False
        self._ended = len(pieces) > len(last.tokens)
        for token in last.tokens[: len(pieces)]:
            self._text(token)

    async def receive(self) -> Piece | None:
        """See Source."""
        if self._replay:
            return self._replay.pop()
        if self._stream is None or self._stopped or self._ended:
            self.cancel()
            return None
        piece = await self._stream.receive()
        if piece is None:
            return self._rest()
        text = self._text(piece.token)
        if self._stopped:
            self._stream.cancel()
        return replace(piece, text=text)

    def _text(self, token: int) -> str:
        if self._decoder is None:
            return ""
        text, self._stopped = self._matcher.feed(self._decoder.feed(token))
        return text

    def _rest(self) -> Piece | None:
        """Text that waited for more, as a piece without a token of its own."""
        self._ended = True
        if self._decoder is None:
            return None
        text, self._stopped = self._matcher.feed(self._decoder.flush())
        text += self._matcher.flush()
        result = self.result()
        return Piece(len(result.tokens), result.tokens[-1], text) if text else None

    def cancel(self) -> None:
        """See Source."""
        if self._stream is not None:
            self._stream.cancel()

    def result(self) -> Result:
        """See Source. Where a stop string has ended the answer, it says so."""
        if self._stream is None:
            return self._last
        result = self._stream.result()
        return replace(result, finish_reason="stop") if self._stopped else result

    @property
    def version(self) -> tuple[int, int]:
        """See Source."""
        return LiveSource(self._stream).version if self._stream is not None else (0, 0)


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
    )


def headers(results: Sequence[Result]) -> dict[str, str]:
    """The answer's ride in headers: the first choice's route, and repairs of all choices so far."""
    first = results[0]
    return {
        "x-paceline-route": ",".join(f"{rider.peer}:{rider.start}-{rider.end}" for rider in first.route),
        "x-paceline-revision": first.revision,
        "x-paceline-failovers": str(sum(len(result.failovers) for result in results)),
    }
