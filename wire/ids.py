"""Identifiers that cannot be mixed up, and the span.

Knows how ids look. Refuses to know how they are made from keys (net) or from weights (store).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import NewType

PeerId = NewType("PeerId", str)
"""libp2p peer id, base58 text (``12D3Koo…``): the identity of a process."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes: one generation."""

Revision = NewType("Revision", bytes)
"""32 bytes, SHA-256 of the canonical manifest: one immutable version of a model."""

Epoch = NewType("Epoch", int)
"""u64. High 32 bits count route changes, low 32 bits are the owner's tag, so that two owners never share one."""

Branch = NewType("Branch", int)
"""u32. Grows with every rollback inside an epoch."""

Position = NewType("Position", int)
"""Index of a token in a session's token log. A stage's KV length counts positions."""

SESSION_ID_BYTES = 16
REVISION_BYTES = 32
REVISION_TAG_BYTES = 4
"""Frames carry this many leading bytes of the revision; stages were opened with the whole of it."""


def epoch_after(previous: Epoch, owner_tag: int) -> Epoch:
    """The next epoch for an owner: greater than `previous`, distinct from any other owner's next.

    ``owner_tag`` is 32 bits that every owner draws for itself.
    """
    return Epoch(((previous >> 32) + 1) << 32 | (owner_tag & 0xFFFFFFFF))


def same_owner(one: Epoch, other: Epoch) -> bool:
    """Whether one owner made both: two owners may live in one process, under one peer id."""
    return (one ^ other) & 0xFFFFFFFF == 0


def epoch_number(epoch: Epoch) -> int:
    """How many route changes the session has seen: what people are shown."""
    return epoch >> 32


def trace_id(session: bytes) -> str:
    """What logs, spans and headers call a session, 32 hexadecimal digits: whoever knows the session id itself may take
    the session over, so that is never written down.
    """
    return blake2b(session, digest_size=16, person=b"paceline.trace").hexdigest()


def revision_hex(revision: Revision) -> str:
    """Full lower-case hexadecimal of a revision."""
    return revision.hex()


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Contiguous decoder layers ``[start, end)`` of one model revision."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"span [{self.start}, {self.end}) is empty or negative")

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, int) and self.start <= layer < self.end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    def covers(self, other: Span) -> bool:
        """True where every layer of `other` is in this span."""
        return self.start <= other.start and other.end <= self.end

    @classmethod
    def parse(cls, text: str) -> Span:
        """``"10:20"`` → ``Span(10, 20)``. Raises ValueError with the expected form."""
        start, colon, end = text.partition(":")
        if not colon or not start.strip().isdigit() or not end.strip().isdigit():
            raise ValueError(f"{text!r} is not a span; write START:END, for example 0:10")
        return cls(int(start), int(end))
