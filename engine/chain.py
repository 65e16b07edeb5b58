"""What a session was fed, as a chain of hashes: one digest for every block of positions, over all that came before.

A stage's KV is a function of the rows it was given, so the rows themselves are what its prefixes are named by: token
ids at a head, activations elsewhere, as they came. Nobody is asked what a prefix is called, so nobody can lie about it.
Knows bytes and positions; no tensors, no sessions.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256

from paceline.wire.codec import Buffer

BLOCK = 32
"""Positions that share one digest: what is reused is a multiple of this."""


def seed(*parts: object) -> bytes:
    """Where a chain begins: two chains with different seeds share nothing."""
    return sha256(repr(parts).encode()).digest()


def id_bytes(ids: Sequence[int]) -> bytes:
    """Token ids as the chain counts them."""
    return array("q", ids).tobytes()


class Chain:
    """`digests[k]` names the input of positions ``[0, (k + 1) × BLOCK)``."""

    def __init__(self, first: bytes) -> None:
        self.digests: list[bytes] = []
        self._first = first
        self._kind = ""
        self._open = sha256(first)
        self._rows: list[bytes] = []
        """Input of the positions behind the last whole block."""
        self._lost = False
        """The chain was cut inside a block whose bytes are gone: it cannot go on."""

    @property
    def length(self) -> int:
        """Positions that the chain knows."""
        return len(self.digests) * BLOCK + len(self._rows)

    def extend(self, start: int, n: int, data: Buffer, kind: str) -> None:
        """Positions ``[start, start + n)`` with their input: `n` equal rows of `kind`, which tells what the same bytes
        mean and is one for the whole chain. Ignored where they do not follow."""
        if not self.length and not self._kind:
            self._kind = kind
            self._first = sha256(self._first + kind.encode()).digest()
            self._open = sha256(self._first)
        self._lost = self._lost or kind != self._kind
        if self._lost or start != self.length or not n:
            return
        view = memoryview(data).cast("B")
        row = len(view) // n
        at = 0
        while at < n:
            take = min(BLOCK - len(self._rows), n - at)
            part = view[at * row : (at + take) * row]
            self._open.update(part)
            at += take
            if len(self._rows) + take == BLOCK:
                digest = self._open.digest()
                self.digests.append(digest)
                self._rows.clear()
                self._open = sha256(digest)
            else:
                self._rows += [bytes(part[k * row : (k + 1) * row]) for k in range(take)]

    def crop(self, length: int) -> None:
        """Forget positions from `length` on. Inside a whole block the chain ends at the block's beginning, for good."""
        if length >= self.length:
            return
        whole, rest = divmod(length, BLOCK)
        if whole < len(self.digests):
            del self.digests[whole:]
            self._rows.clear()
            self._lost = self._lost or rest > 0
        else:
            del self._rows[rest:]
        self._open = sha256(self.digests[-1] if self.digests else self._first)
        for part in self._rows:
            self._open.update(part)
