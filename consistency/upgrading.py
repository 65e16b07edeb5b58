"""When a node takes up a newer revision, stops offering the old one, and lets it go. Pure; no coordinator.

Nodes go one after another: those first whose layers have the fewest holders of the new revision, so that a first
complete ring of it appears early; each decides alone, from the same offers. Whoever does not come forward in its turn
is passed over after a while.

=========  ====================================================  =================================================
a node     does so when                                          and then
=========  ====================================================  =================================================
TAKE       a newer release is known, and it is its turn          fetches and loads it beside the old, offers both
QUIET      everybody who held the old one has the new one, or    no longer offers the old one; who rides, rides on
           a ring of the new one is complete and enough waited
DROP       it is quiet, nobody rides, and every view that        frees the old one's memory
           still showed it has expired
=========  ====================================================  =================================================

A canary is only ever taken up, beside the old one, by as many nodes as its share of the old one's holders asks for, at
least one for each layer. Nobody is quiet about the old one, or drops it, before the canary is for everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import ceil

from paceline.wire.ids import Span
from paceline.wire.releases import Release


class Move(Enum):
    """What to do now."""

    WAIT = "wait"
    TAKE = "take"
    QUIET = "quiet"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Holder:
    """One service of one live offer. `serving`: not of a node that joins or leaves."""

    peer: str
    revision: bytes
    span: Span
    serving: bool = True


@dataclass(frozen=True, slots=True)
class Standing:
    """A node's own old service, and how it stands with the new one. Times in seconds.

    `sessions`: that ride the old one here. `known_s`: since the newer release is known here. `last_s`: since another
    node was first seen to hold it. `quiet_s`: since the old one is no longer offered, None while it is. `share`: of new
    sessions that the new one is for; below 1 it is a canary.
    """

    me: str
    layers: int
    span: Span
    old: bytes
    new: bytes
    has_new: bool
    sessions: int
    known_s: float
    last_s: float = float("inf")
    quiet_s: float | None = None
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """`pace_s`: between two nodes' loads, which cost sessions speed. `turn_s`: how long each node that comes first is
    waited for. `views_s`: until no view shows what is no longer offered. `laggards_s`: how long old holders without the
    new revision are waited for once a ring of it is complete.
    """

    pace_s: float = 3.0
    turn_s: float = 60.0
    views_s: float = 20.0
    laggards_s: float = 300.0


def aim(held: bytes, full: Release | None, canary: Release | None) -> Release | None:
    """What a service of revision `held` is to be replaced by, or to stand beside (a canary); None where nothing is.

    `full`, `canary`: as `wire.releases.standing` gives them.
    """
    if canary is not None and held == canary.revision:
        return None
    return canary if full is None or held == full.revision else full


def decide(at: Standing, holders: Sequence[Holder], patience: Patience) -> Move:
    """The table above."""
    if at.share < 1.0:
        return (
            Move.TAKE
            if not at.has_new and _lacking(at, at.span, holders) and _its_turn(at, holders, patience)
            else Move.WAIT
        )
    if at.quiet_s is not None:
        return Move.DROP if at.sessions == 0 and at.quiet_s >= patience.views_s else Move.WAIT
    if not at.has_new:
        return Move.TAKE if _its_turn(at, holders, patience) else Move.WAIT
    if not complete(at.new, at.layers, holders):
        return Move.WAIT
    behind = _without(at, holders)
    return Move.QUIET if not behind or at.known_s >= patience.laggards_s else Move.WAIT


def complete(revision: bytes, layers: int, holders: Sequence[Holder]) -> bool:
    """Whether every layer of a revision has a serving holder."""
    return min(replicas(revision, Span(0, layers), holders), default=0) > 0


def replicas(revision: bytes, span: Span, holders: Sequence[Holder]) -> list[int]:
    """Serving holders of each layer of a span."""
    spans = [it.span for it in holders if it.revision == revision and it.serving]
    return [sum(layer in held for held in spans) for layer in range(span.start, span.end)]


def _without(at: Standing, holders: Sequence[Holder]) -> set[str]:
    """Serving peers that hold the old revision and not the new one."""
    new = {it.peer for it in holders if it.revision == at.new}
    return {it.peer for it in holders if it.revision == at.old and it.serving} - new - {at.me}


def _lacking(at: Standing, span: Span, holders: Sequence[Holder]) -> bool:
    """Whether some layer of a span has fewer holders of a canary than its share of the old one's asks for."""
    old, new = (replicas(revision, span, holders) for revision in (at.old, at.new))
    return any(have < max(1, ceil(at.share * of)) for have, of in zip(new, old, strict=True))


def _its_turn(at: Standing, holders: Sequence[Holder], patience: Patience) -> bool:
    return at.known_s >= patience.turn_s * _ahead(at, holders) and at.last_s >= patience.pace_s


def _ahead(at: Standing, holders: Sequence[Holder]) -> int:
    """How many other nodes come first: layers with the fewest holders of the new revision, then the smaller peer id.

    Of a canary, only those whose layers lack it.
    """
    without = _without(at, holders)
    spans = {it.peer: it.span for it in holders if it.revision == at.old and it.peer in without}
    mine = (min(replicas(at.new, at.span, holders)), at.me)
    return sum(
        (min(replicas(at.new, span, holders)), peer) < mine
        for peer, span in spans.items()
        if at.share >= 1.0 or _lacking(at, span, holders)
    )
