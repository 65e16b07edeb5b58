"""A stage's decision about one input: pure and total. The table is the documentation and the test.

=====================================  ==============  ========================================================
input, against the stage's clock       case            effect
=====================================  ==============  ========================================================
another revision                       WRONG_REVISION  refuse, typed
epoch older                            FENCED          drop; tell the sender the newer epoch
epoch newer (or not configured)        HOLD            keep, bounded, until the owner's OpenStage
branch older                           STALE_BRANCH    drop
branch newer, start > expected         GAP             ask for the missing positions
branch newer, start < known, expected  BAD_ROLLBACK    refuse: committed positions are never rolled back
branch newer                           ROLLBACK        crop KV to start, adopt the branch, apply
start == expected                      APPLY           queue for the engine
start < expected < start + n           OVERLAP         queue the new part
start + n ≤ expected                   DUPLICATE       nothing
start > expected                       GAP             ask for the missing positions
=====================================  ==============  ========================================================

`expected` is the KV's length plus what is queued behind it. `known` is the committed watermark.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Case(Enum):
    """What a stage does with one input."""

    WRONG_REVISION = "wrong revision"
    FENCED = "fenced"
    HOLD = "hold"
    STALE_BRANCH = "stale branch"
    BAD_ROLLBACK = "rollback of committed positions"
    ROLLBACK = "rollback"
    APPLY = "apply"
    OVERLAP = "overlap"
    DUPLICATE = "duplicate"
    GAP = "gap"


class Standing(NamedTuple):
    """Where a stage stands: the part of its state that a decision needs."""

    revision_tag: bytes
    epoch: int
    branch: int
    expected: int
    known: int


class Claim(NamedTuple):
    """What an input claims. Inputs of token ids carry no tag: `revision_tag` None matches."""

    revision_tag: bytes | None
    epoch: int
    branch: int
    start: int
    n: int


def decide(at: Standing, claim: Claim) -> Case:
    """The table above."""
    if claim.revision_tag is not None and claim.revision_tag != at.revision_tag:
        return Case.WRONG_REVISION
    if claim.epoch != at.epoch:
        return Case.FENCED if claim.epoch < at.epoch else Case.HOLD
    if claim.branch < at.branch:
        return Case.STALE_BRANCH
    if claim.start > at.expected:
        return Case.GAP
    if claim.branch > at.branch:
        return Case.BAD_ROLLBACK if claim.start < min(at.known, at.expected) else Case.ROLLBACK
    if claim.start == at.expected:
        return Case.APPLY
    return Case.OVERLAP if claim.start + claim.n > at.expected else Case.DUPLICATE
