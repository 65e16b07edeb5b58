"""The numbered invariants of docs/protocol.md, asserted by number where the code relies on them."""

from __future__ import annotations

INVARIANTS = {
    1: "version purity: a stage applies only frames of the session's pinned revision",
    2: "prefix consistency: positions are applied in order, without holes, on one branch",
    3: "exactly once: a position is applied once per incarnation, an index reaches the client once, in order",
    4: "fencing: nothing of an older epoch or branch has an effect",
    5: "exact failover: the token log of a disturbed run is that of the undisturbed one",
    6: "progress: an owner either waits for something with a deadline or has ended",
    7: "bounded memory: journals, holds and caches stay within their limits",
    8: "one owner: an epoch is installed by one owner only",
}


class InvariantBroken(AssertionError):
    """Our bug: a numbered invariant does not hold. Never caught, never retried."""

    def __init__(self, number: int, detail: str) -> None:
        super().__init__(f"invariant {number} ({INVARIANTS[number]}): {detail}")
        self.number = number


def require(number: int, holds: bool, detail: str) -> None:
    """Raise InvariantBroken unless `holds`."""
    if not holds:
        raise InvariantBroken(number, detail)
