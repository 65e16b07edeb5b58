"""What every shard does before it computes: room for KV, and the checks of one work. No torch, no arithmetic.

Two kinds of refusal. A work that upstream or the user made wrong fails alone (`Output.error`). A work that our own
caller made wrong (unknown key, `start` that is not the KV's length) raises, before anything of the batch is applied.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.engine.shard import Key, ModelShape, Work
from paceline.wire.errors import ContextOverflow, Overloaded
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype

DTYPE_BYTES: dict[Dtype, int] = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "i64": 8}


class Reservations:
    """Positions promised to sessions, out of a fixed number."""

    def __init__(self, positions: int, max_context: int) -> None:
        self._total = positions
        self._max_context = max_context
        self._held: dict[Key, int] = {}
        self.free = positions

    def reserve(self, key: Key, positions: int) -> None:
        """Raises Overloaded, ContextOverflow, or ValueError for a key that is open or a size below 1."""
        if key in self._held or positions < 1:
            raise ValueError(f"session {key!r} is already open, or asks for {positions} positions")
        if positions > self._max_context:
            raise ContextOverflow(
                f"{positions} positions asked for, the model holds {self._max_context}",
                cure="shorten the prompt or ask for fewer tokens",
            )
        if positions > self.free:
            raise Overloaded(f"no KV room: {positions} positions asked for, {self.free} of {self._total} free")
        self._held[key] = positions
        self.free -= positions

    def release(self, key: Key) -> None:
        """Unknown keys are fine."""
        self.free += self._held.pop(key, 0)

    def held(self, key: Key) -> int:
        """Positions reserved for `key`. Raises KeyError."""
        return self._held[key]


def check_caller(batch: Sequence[Work], lengths: Sequence[int]) -> None:
    """Raise ValueError where the caller broke the seam's rules; `lengths` are the KV lengths, in the batch's order."""
    if len({work.key for work in batch}) != len(batch):
        raise ValueError("a batch holds at most one work per session")
    for work, length in zip(batch, lengths, strict=True):
        if (work.ids is None) == (work.activations is None):
            raise ValueError("exactly one of ids and activations must be set")
        if work.start != length:
            raise ValueError(f"session {work.key!r}: work starts at {work.start}, the KV holds {length} positions")


def refusal(work: Work, shape: ModelShape, span: Span, reserved: int, accepts: Sequence[Dtype]) -> str:
    """Why this work cannot run, or ``""``. `reserved`: positions its session may use."""
    if work.n < 1:
        return "no positions"
    if work.start + work.n > reserved:
        return f"{work.start + work.n} positions, the session reserved {reserved}"
    if work.sample is not None and span.end != shape.layers:
        return "only the tail samples"
    if work.ids is not None:
        if span.start != 0:
            return "token ids sent to a stage that does not embed"
        if min(work.ids) < 0 or max(work.ids) >= shape.vocab:
            return f"token id outside the vocabulary of {shape.vocab}"
        return ""
    assert work.activations is not None
    came = work.activations
    if span.start == 0:
        return "activations sent to the head, which wants token ids"
    if came.dtype not in accepts:
        return f"activations of dtype {came.dtype}, this shard takes {', '.join(accepts)}"
    if came.hidden != shape.hidden:
        return f"activations of width {came.hidden}, the model has {shape.hidden}"
    if len(came.data) != came.n * came.hidden * DTYPE_BYTES[came.dtype]:
        return f"{len(came.data)} bytes for {came.n} × {came.hidden} {came.dtype}"
    return ""
