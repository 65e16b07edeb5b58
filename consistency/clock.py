"""The versioned vector clock of a session: ``(revision, epoch, branch, lengths)``.

`lengths[k]` is how many positions stage k of the epoch's route holds in its KV; an index names one incarnation of a
stage, because every change of route begins a new epoch. Within one (epoch, branch) components only grow. The laws
(merge is commutative, associative, idempotent; it is an upper bound of both) are property tests.
Source: Lamport 1978, Fidge/Mattern 1988; the leading version components are ours (docs/protocol.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import zip_longest

from paceline.wire.ids import Branch, Epoch, Revision


class Order(Enum):
    """How two clocks of one session relate."""

    BEFORE = "before"
    AFTER = "after"
    EQUAL = "equal"
    CONCURRENT = "concurrent"


@dataclass(frozen=True, slots=True)
class Clock:
    """A point in a session's history. Missing trailing lengths count as 0."""

    revision: Revision
    epoch: Epoch
    branch: Branch
    lengths: tuple[int, ...]

    @property
    def version(self) -> tuple[int, int]:
        """What is compared first: (epoch, branch)."""
        return (self.epoch, self.branch)

    def merge(self, other: Clock) -> Clock:
        """Component-wise maximum within the same (epoch, branch), else the greater (epoch, branch).

        Raises ValueError for clocks of different revisions: their histories share nothing.
        """
        if self.revision != other.revision:
            raise ValueError("clocks of different revisions cannot be merged")
        if self.version != other.version:
            return self if self.version > other.version else other
        return self._of(_greater(self.lengths, other.lengths))

    def compare(self, other: Clock) -> Order:
        """BEFORE, AFTER, EQUAL or CONCURRENT. Clocks of different revisions are CONCURRENT."""
        if self.revision != other.revision:
            return Order.CONCURRENT
        if self.version != other.version:
            return Order.BEFORE if self.version < other.version else Order.AFTER
        pairs = list(zip_longest(self.lengths, other.lengths, fillvalue=0))
        behind = any(a < b for a, b in pairs)
        ahead = any(a > b for a, b in pairs)
        if behind and ahead:
            return Order.CONCURRENT
        if behind:
            return Order.BEFORE
        return Order.AFTER if ahead else Order.EQUAL

    def grown(self, index: int, length: int) -> Clock:
        """The clock after stage `index` has reached `length` positions (never shrinks)."""
        lengths = list(self.lengths) + [0] * (index + 1 - len(self.lengths))
        lengths[index] = max(lengths[index], length)
        return self._of(tuple(lengths))

    def cut(self, branch: Branch, length: int) -> Clock:
        """The clock of a new branch, which replaces all positions from `length` on."""
        return replace(self, branch=branch, lengths=tuple(min(held, length) for held in self.lengths))

    def deltas(self, base: int, upto: int | None = None) -> tuple[int, ...]:
        """Wire form: the first `upto` lengths as differences to `base`, a byte each when stages are in step."""
        return tuple(length - base for length in self.lengths[:upto])

    def with_deltas(self, base: int, deltas: Sequence[int]) -> Clock:
        """This clock merged with lengths that came as differences to `base`; negative results count as 0."""
        return self._of(_greater(self.lengths, tuple([max(0, base + delta) for delta in deltas])))

    def _of(self, lengths: tuple[int, ...]) -> Clock:
        """The same version, other lengths: what `replace` does, at a fraction of its price, which each frame pays."""
        return Clock(self.revision, self.epoch, self.branch, lengths)


def _greater(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The component-wise maximum."""
    if len(one) < len(other):
        one, other = other, one
    return (*map(max, one, other), *one[len(other) :])
