"""What a generation gives its user: pieces of text as they come, and at the end an honest account of how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paceline.consistency.owner import Failover
from paceline.wire.ids import trace_id
from paceline.wire.messages import StageTime
from paceline.wire.session import SessionState

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of the token's probability under the model's raw distribution."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of the answer. `text` may be empty (an unfinished character, or text held back for a stop string)."""

    index: int
    """0 for the first generated token."""
    token: int
    text: str
    logprob: TokenLogprob | None = None
    timings: tuple[StageTime, ...] = ()
    """With tracing: hop, wait and compute of each stage, in µs (`wire.messages.StageTime`)."""


@dataclass(frozen=True, slots=True)
class Rider:
    """Who ran which layers."""

    peer: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hedged:
    """What a hedged first token cost. `won`: 1 or 2, the first ring being the cheapest; 0: no token yet. `rings`: how
    many were begun (1: there is no other). `lost_ring`: who rode in the other, `shared`: in both. `lost_with`: the code
    of the error by which the other ended; empty: it was cancelled. `extra_positions`: prompt run in vain, at most.
    """

    won: int
    rings: int
    lost_ring: tuple[str, ...]
    shared: tuple[str, ...]
    lost_with: str
    extra_positions: int


@dataclass(frozen=True, slots=True)
class Result:
    """A finished generation and its audit. Times in seconds.

    `route` is the last one; `failovers` name every change of it. `epochs` counts routes and re-openings. `state`
    resumes the session elsewhere, where it did not end by itself.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    model: str
    revision: str
    numerics: str
    seed: int
    route: tuple[Rider, ...]
    epochs: int
    failovers: tuple[Failover, ...]
    ttft_s: float
    total_s: float
    intervals_s: tuple[float, ...]
    state: SessionState
    hedged: Hedged | None = None
    """Where the first token was asked of two rings."""

    @property
    def trace(self) -> str:
        """The name of this generation in logs, spans and headers of all that took part."""
        return trace_id(self.state.session)

    @property
    def tokens_per_s(self) -> float:
        """Decode speed: tokens after the first, over the time they took."""
        spent = self.total_s - self.ttft_s
        return (len(self.tokens) - 1) / spent if len(self.tokens) > 1 and spent > 0 else 0.0
