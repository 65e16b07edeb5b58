"""The version frontier of a model's name, and what a request may accept of it. Pure.

A frontier is a map from revision to the highest rank under which a publisher released it. It merges by the maximum of
each entry: commutative, associative, idempotent (property tests), so it spreads by any gossip and needs no coordinator.
Only verified and trusted releases may be put in; this file checks no signature. Ranks of one name are totally ordered.

==============  ================================================================================================
level           a new session runs on
==============  ================================================================================================
pinned(r)       revision r, and nothing else
strong          the newest revision known here
bounded(k)      the newest that a complete ring serves, if it is at most k releases behind the newest known here
available       the newest that a complete ring serves, however old; unreleased ones come last
==============  ================================================================================================

No level mixes revisions: a session is pinned to the one that was chosen for it. "Known here" is all that anybody can
have without a coordinator: whoever is cut off from the news is strong about what it has heard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from paceline.wire.errors import InvalidRequest, LevelUnmet
from paceline.wire.releases import Release

Rank = tuple[int, bytes]
"""Sequence and publisher."""

Kind = Literal["pinned", "strong", "bounded", "available"]


@dataclass(frozen=True)
class Frontier:
    """What is known of one name's releases. Immutable."""

    ranks: Mapping[bytes, Rank] = field(default_factory=dict)

    @classmethod
    def of(cls, releases: Iterable[Release]) -> Frontier:
        """Of verified, trusted releases of one name."""
        found = cls()
        for release in releases:
            found = found.merge(cls({release.revision: (release.sequence, release.publisher)}))
        return found

    def merge(self, other: Frontier) -> Frontier:
        """Both: the maximum of each entry."""
        ranks = dict(self.ranks)
        for revision, rank in other.ranks.items():
            ranks[revision] = max(rank, ranks.get(revision, rank))
        return Frontier(ranks)

    @property
    def newest(self) -> bytes | None:
        """The revision with the highest rank."""
        return max(self.ranks, key=self._order, default=None)

    def behind(self, revision: bytes) -> int | None:
        """How many releases a revision is behind the newest; None where it was never released.

        Counted by sequence numbers, so a release that nobody here has heard of counts, too.
        """
        newest = self.newest
        if newest is None or revision not in self.ranks:
            return None
        if revision == newest:
            return 0
        # Two publishers may have used one sequence: the older one is still behind.
        return max(1, self.ranks[newest][0] - self.ranks[revision][0])

    def newer(self, a: bytes, b: bytes) -> bool:
        """Whether `a` is newer than `b`."""
        return self._order(a) > self._order(b)

    def _order(self, revision: bytes) -> tuple[int, bytes, bytes]:
        sequence, publisher = self.ranks.get(revision, (0, b""))
        return sequence, publisher, revision


@dataclass(frozen=True, slots=True)
class Level:
    """A consistency level. `k` for bounded, `revision` for pinned."""

    kind: Kind = "available"
    k: int = 0
    revision: bytes = b""

    @classmethod
    def parse(cls, text: str) -> Level:
        """``available``, ``strong``, ``bounded(2)``, ``pinned(<64 hex>)``. Raises InvalidRequest."""
        found = re.fullmatch(r"\s*(?:(available|strong)|bounded\((\d{1,6})\)|pinned\(([0-9a-fA-F]{64})\))\s*", text)
        if found is None:
            raise InvalidRequest(
                f"{text!r} is no consistency level", cure="write available, strong, bounded(2) or pinned(<revision>)"
            )
        plain, k, revision = found.groups()
        if k is not None:
            return cls("bounded", k=int(k))
        if revision is not None:
            return cls("pinned", revision=bytes.fromhex(revision))
        return cls("strong" if plain == "strong" else "available")

    def __str__(self) -> str:
        inner = {"bounded": f"({self.k})", "pinned": f"({self.revision.hex()})"}
        return self.kind + inner.get(self.kind, "")


def choose(level: Level, frontier: Frontier, complete: Sequence[bytes]) -> bytes:
    """The revision for a new session. `complete`: revisions that a full ring serves, the preferred first where the
    frontier says nothing. Raises LevelUnmet.
    """
    if level.kind == "pinned":
        if level.revision in complete:
            return level.revision
        raise _unmet(level, "no complete ring serves it")
    best = _newest(frontier, complete)
    if best is None:
        raise _unmet(level, "no revision has a complete ring")
    if level.kind == "available":
        return best
    behind = frontier.behind(best)
    if behind is None:
        raise _unmet(level, "no trusted release of what is served is known")
    if behind > level.k:
        raise _unmet(level, f"the newest complete ring is {behind} releases behind")
    return best


def _newest(frontier: Frontier, complete: Sequence[bytes]) -> bytes | None:
    released = [revision for revision in complete if revision in frontier.ranks]
    if released:
        newest = released[0]
        for revision in released[1:]:
            newest = revision if frontier.newer(revision, newest) else newest
        return newest
    return complete[0] if complete else None


def _unmet(level: Level, why: str) -> LevelUnmet:
    return LevelUnmet(f"{level.kind} cannot be met: {why}", cure="wait, or ask for a weaker level: available")
