"""The engine's narrow seam: a `Shard` runs one span of one revision for many sessions, without any network.

Two implementations: `engine.torch_shard` (transformers' layers) and `engine.toy` (exact integers, no torch). Both pass
tests/engine/test_shard_contract.py. The seam speaks bytes: nobody outside the engine needs torch or numpy to move
activations. A shard is used by one thread at a time and knows no clock, epoch or peer; what may be applied was
decided before it is asked (consistency).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from paceline.wire.ids import Span
from paceline.wire.messages import Dtype
from paceline.wire.sampling import SamplingParams

Weights = Literal["f32", "bf16", "int8", "int4", "fp8"]
"""The form of a shard's linear weights: part of its numerics class. On a CPU: engine.linear, on a GPU:
engine.cuda_matrix, where ``f32`` stands for "as they are"."""

Key = Hashable
"""What the caller names a session's KV by."""


@dataclass(frozen=True, slots=True)
class Activations:
    """`n × hidden` numbers, row-major, little-endian, as they travel in a Frame's payload."""

    n: int
    hidden: int
    dtype: Dtype
    data: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Sample the token after the work's last position (tail only).

    `index` is the log index of the token to draw; `history` the log's tokens ``[0, index)`` where penalties need
    them (else empty), of which the last ``index - prompt_length`` were generated.
    """

    params: SamplingParams
    index: int
    history: Sequence[int] = ()
    prompt_length: int = 0
    allowed: Callable[[], bytes] | None = None
    """With a grammar: which tokens may come, a bit each, the least significant of a byte first. Called where the step
    runs; empty where no token may come."""


@dataclass(frozen=True, slots=True)
class Work:
    """Apply positions ``[start, start + n)`` of session `key`. `start` equals the KV's length.

    `ids` at a head (n = len(ids)), `activations` elsewhere: exactly one is set. `sample` at a tail, where the last
    position's token is wanted.
    """

    key: Key
    start: int
    ids: Sequence[int] | None = None
    activations: Activations | None = None
    sample: SampleRequest | None = None

    @property
    def n(self) -> int:
        if self.ids is not None:
            return len(self.ids)
        assert self.activations is not None
        return self.activations.n


@dataclass(frozen=True, slots=True)
class Sampled:
    """A drawn token; `logprob` is natural-log, under the raw distribution (before temperature and filters)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """Result of one Work: activations for the next stage, or (at the tail) the sampled token if one was asked for.

    At a tail without `sample` both are None: the KV was filled and nothing needs to travel. `error` is set instead
    where this one work failed and the others did not (for example non-finite activations from upstream).
    """

    key: Key
    activations: Activations | None = None
    sampled: Sampled | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What routing and the protocol need to know of a model."""

    layers: int
    hidden: int
    vocab: int
    max_context: int
    eos_ids: tuple[int, ...] = field(default=())


class Shard(Protocol):
    """One span of one revision, loaded."""

    @property
    def shape(self) -> ModelShape: ...

    @property
    def span(self) -> Span: ...

    @property
    def numerics(self) -> str:
        """Numerics class, for example ``cpu-f32``."""
        ...

    @property
    def dtype(self) -> Dtype:
        """Of the activations this shard emits."""
        ...

    @property
    def kv_free(self) -> int:
        """Positions that can still be reserved."""
        ...

    def open(self, key: Key, max_positions: int, span: Span | None = None) -> None:
        """Reserve KV for a session. Raises Overloaded where there is no room, ContextOverflow past the model's.

        `span`: the part of the shard's span that this session uses (None: all of it); layers outside it are not run,
        and embedding, norm and LM head only where it begins at 0 or ends at the last layer. Raises ValueError where
        it is not inside the shard's span.
        """
        ...

    def close(self, key: Key) -> None:
        """Free a session's KV. Unknown keys are fine."""
        ...

    def length(self, key: Key) -> int:
        """Positions in a session's KV. Raises KeyError for a session that is not open."""
        ...

    def crop(self, key: Key, length: int) -> None:
        """Forget positions from `length` on. Raises ValueError where `length` is over the KV's length."""
        ...

    def step(self, batch: Sequence[Work]) -> list[Output]:
        """Run one ragged batch: at most one Work per session, any mix of decode steps and prefill chunks.

        Outputs stand in the order of the batch. Blocking and CPU/GPU-bound: callers run it on their engine thread.
        """
        ...


@runtime_checkable
class Spread(Protocol):
    """What a shard offers beside `Shard` that other processes of this machine compute along with."""

    def check(self) -> None:
        """Raises WorkerLost where one of them is known to be gone. Quick, from any thread."""
        ...

    def end(self) -> None:
        """End them. The shard computes no more."""
        ...


@runtime_checkable
class Paged(Protocol):
    """What a shard may offer beside `Shard`: more sessions than memory holds, and prefixes computed once.

    A caller that uses neither loses nothing but speed: `step` runs whatever it is given.
    """

    def share(self, key: Key, scope: bytes) -> None:
        """Let an open session that is still empty reuse what others of the same `scope` computed from the same input,
        and leave its own to them. Sessions of different scopes learn nothing of each other, not even by time."""
        ...

    def turn(self, wanting: Sequence[Key]) -> list[Key]:
        """Those sessions, of all that have work, whose work to take now; the others had better wait. None of them,
        where room is about to become free: ask again in a moment. Quick; nothing is moved before `step`."""
        ...

    def account(self) -> dict[str, int | float]:
        """For people: what was moved and reused since the start, and what is held; bytes, positions, seconds."""
        ...

    @property
    def untidy(self) -> bool:
        """True where `tidy` has something to do."""
        ...

    def tidy(self) -> None:
        """Put away what closed sessions left behind. On the engine's thread; `step` does it, too."""
        ...
