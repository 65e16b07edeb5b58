"""One generation as its user sees it: pieces of text in order, then the result, or a typed error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import trio
from msgspec.structs import replace

from paceline.client.results import FinishReason, Hedged, Piece, Result, Rider, TokenLogprob
from paceline.client.text import StopMatcher
from paceline.client.tokenizer import Tokenizer
from paceline.consistency.effects import Ended
from paceline.consistency.owner import Owner
from paceline.wire.errors import PacelineError
from paceline.wire.ids import PeerId, epoch_number
from paceline.wire.messages import TokenEvent
from paceline.wire.session import SessionState


class Riding(Protocol):
    """`ride.Ride`, or two of them (`hedge.Hedge`)."""

    @property
    def owner(self) -> Owner:
        """Who has the log."""
        ...

    @property
    def numerics(self) -> str:
        """The class that its tokens are computed in."""
        ...

    @property
    def hedged(self) -> Hedged | None:
        """For the result."""
        ...

    async def run(self, lost: frozenset[PeerId] = frozenset()) -> Ended:
        """See Ride."""
        ...


class Stream:
    """Trio only; `client.aio` and `client.sync` carry it elsewhere. One consumer."""

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str]) -> None:
        self.ride: Riding
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream() if tokenizer else None
        self._matcher = StopMatcher(stops)
        self._scope = trio.CancelScope()
        self._send, self._receive = trio.open_memory_channel[Piece](math.inf)
        self._text: list[str] = []
        self._times: list[float] = []
        self._began = trio.current_time()
        self._stopped = False
        self._ended: Ended | None = None
        self._error: PacelineError | None = None
        self._over = trio.Event()

    # --- the user's side ----------------------------------------------------------------------------------------

    async def receive(self) -> Piece | None:
        """The next piece, None after the last. Raises what ended the session early."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            await self._over.wait()
            if self._error is not None:
                raise self._error from None
            return None

    def cancel(self) -> None:
        """Stop generating. Pieces so far stay; the result says "cancelled"."""
        self._scope.cancel()

    async def finished(self) -> None:
        """Wait until nothing more happens for this generation."""
        await self._over.wait()

    def state(self) -> SessionState:
        """What resumes this session in another process; meaningful at any moment."""
        return replace(self.ride.owner.export(), numerics=self.ride.numerics)

    def result(self) -> Result:
        """The account, complete once the pieces have ended."""
        owner = self.ride.owner
        route = tuple(Rider(stage.at.peer, stage.start, stage.end) for stage in owner.route)
        tokens = tuple(owner.log[len(owner.request.prompt) :])
        times = self._times
        return Result(
            text="".join(self._text),
            tokens=tokens,
            finish_reason=self._finish_reason(),
            prompt_tokens=len(owner.request.prompt),
            model=owner.request.model,
            revision=owner.request.revision.hex(),
            numerics=self.ride.numerics,
            seed=owner.request.sampling.seed,
            route=route,
            epochs=epoch_number(owner.epoch),
            failovers=tuple(owner.failovers),
            ttft_s=times[0] - self._began if times else 0.0,
            total_s=times[-1] - self._began if times else 0.0,
            intervals_s=tuple(b - a for a, b in pairwise(times)),
            state=self.state(),
            hedged=self.ride.hedged,
        )

    def _finish_reason(self) -> FinishReason:
        if self._stopped or (self._ended is not None and self._ended.finish == "stop"):
            return "stop"
        if self._ended is not None and self._ended.finish == "length":
            return "length"
        return "cancelled"

    # --- the session's side -------------------------------------------------------------------------------------

    async def run(self, ride: Riding, lost: frozenset[PeerId] = frozenset()) -> None:
        """Drive the session to its end; never raises what belongs to the user."""
        self.ride = ride
        if self._stopped:
            self._scope.cancel()  # resumed behind its stop string
        try:
            with self._scope:
                self._ended = await ride.run(lost)
                self._error = self._ended.error
        except PacelineError as error:
            self._error = error
        finally:
            self._flush()
            self._send.close()
            self._over.set()

    def remember(self, tokens: Sequence[int]) -> None:
        """The answer so far of a session that is resumed: text goes on where it was, across characters, spaces and
        stop strings that lie on the seam.
        """
        for token in tokens:
            if self._decoder is not None and not self._stopped:
                text, self._stopped = self._matcher.feed(self._decoder.feed(token))
                self._text.append(text)

    def on_token(self, event: TokenEvent) -> None:
        """For the ride: a token has arrived."""
        if self._stopped:
            return
        self._times.append(trio.current_time())
        text = self._text_of(event)
        index = event.index - len(self.ride.owner.request.prompt)
        self._send.send_nowait(Piece(index, event.token, text, self._logprob(event), event.timings))
        if self._stopped:
            self._scope.cancel()

    def _text_of(self, event: TokenEvent) -> str:
        if self._decoder is None:
            return ""
        text, self._stopped = self._matcher.feed(self._decoder.feed(event.token))
        if event.finish and not self._stopped:
            rest, self._stopped = self._matcher.feed(self._decoder.flush())
            text += rest + self._matcher.flush()
        self._text.append(text)
        return text

    def _flush(self) -> None:
        """A cut-off answer keeps the text that waited for a stop string."""
        if not self._stopped:
            self._text.append(self._matcher.flush())

    def _logprob(self, event: TokenEvent) -> TokenLogprob | None:
        if event.logprob is None:
            return None
        top = tuple((token, self._piece(token), logprob) for token, logprob in event.top)
        return TokenLogprob(event.token, self._piece(event.token), event.logprob, top)

    def _piece(self, token: int) -> str:
        return self._tokenizer.token_text(token) if self._tokenizer else ""
