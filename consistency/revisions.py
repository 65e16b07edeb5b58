"""The version frontier of a model's name, and what a request may accept of it. Pure.

A frontier is a map from revision to the highest rank under which a publisher released it. It merges by the maximum of
each entry: commutative, associative, idempotent (property tests), so it spreads by any gossip and needs no coordinator.
Only verified and trusted releases may be put in; this file checks no signature. Ranks of one name are totally ordered.

The newest release of all may be a canary: a share of new sessions, drawn by their own ids, may try its revision. *Full*
below is what is released for everybody. What was only ever a canary and is none any more is taken by pinned only.

==============  ================================================================================================
level           a new session runs on
==============  ================================================================================================
pinned(r)       revision r, and nothing else
strong          the newest full revision known here, never a canary
bounded(k)      the canary, where drawn and complete; else the newest full one that a complete ring serves, if it is
                at most k releases behind the newest full one known here
available       the same without the bound; unreleased ones come last
==============  ================================================================================================

No level mixes revisions: a session is pinned to the one that was chosen for it. "Known here" is all that anybody can
have without a coordinator: whoever is cut off from the news is strong about what it has heard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from paceline.wire.errors import InvalidRequest, LevelUnmet
from paceline.wire.releases import Release

Rank = tuple[int, bytes, float]
"""Sequence, publisher and share of new sessions (1: for everybody)."""

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
            found = found.merge(cls({release.revision: (release.sequence, release.publisher, release.share)}))
        return found

    def merge(self, other: Frontier) -> Frontier:
        """Both: the maximum of each entry."""
        ranks = dict(self.ranks)
        for revision, rank in other.ranks.items():
            ranks[revision] = max(rank, ranks.get(revision, rank))
        return Frontier(ranks)

    @property
    def newest(self) -> bytes | None:
        """The revision with the highest rank, a canary or not."""
        return max(self.ranks, key=self._order, default=None)

    @property
    def full(self) -> bytes | None:
        """The newest revision that is for everybody."""
        return max(filter(self.is_full, self.ranks), key=self._order, default=None)

    @property
    def canary(self) -> bytes | None:
        """The revision that a share of new sessions may try: the newest of all, where that is a canary."""
        newest = self.newest
        return None if newest is None or self.is_full(newest) else newest

    def is_full(self, revision: bytes) -> bool:
        """Whether the newest release of this revision is for everybody."""
        return revision in self.ranks and self.ranks[revision][2] >= 1.0

    def drawn(self, key: bytes) -> bool:
        """Whether the session of this key tries the canary. The same for everybody who knows the same releases; who was
        drawn stays drawn while the share grows.
        """
        canary = self.canary
        return canary is not None and lot(canary, key) < self.ranks[canary][2]

    def behind(self, revision: bytes) -> int | None:
        """How many releases a revision is behind the newest full one; None where it was never released.

        Counted by sequence numbers, so a release that nobody here has heard of counts, too. A canary that runs is not
        behind; one that was taken back is.
        """
        full = self.full
        if revision not in self.ranks:
            return None
        if revision in (full, self.canary) or full is None:
            return 0
        # Two publishers may have used one sequence: the older one is still behind.
        return max(1, self.ranks[full][0] - self.ranks[revision][0])

    def newer(self, a: bytes, b: bytes) -> bool:
        """Whether `a` is newer than `b`."""
        return self._order(a) > self._order(b)

    def _order(self, revision: bytes) -> tuple[int, bytes, bytes]:
        sequence, publisher, _ = self.ranks.get(revision, (0, b"", 0.0))
        return sequence, publisher, revision


def lot(revision: bytes, key: bytes) -> float:
    """What a session draws for a canary: from 0 up to 1, uniform over keys, and another for each canary."""
    return int.from_bytes(sha256(b"paceline/canary/1\x00" + revision + key).digest()[:6], "big") / (1 << 48)


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


def choose(level: Level, frontier: Frontier, complete: Sequence[bytes], key: bytes | None = None) -> bytes:
    """The revision for a new session. `complete`: revisions that a full ring serves, the preferred first where the
    frontier says nothing. `key`: what the session draws by, None: it tries no canary. Raises LevelUnmet.
    """
    if level.kind == "pinned":
        if level.revision in complete:
            return level.revision
        raise _unmet(level, "no complete ring serves it")
    canary = frontier.canary
    if level.kind != "strong" and canary in complete and key is not None and frontier.drawn(key):
        assert canary is not None
        return canary
    best = _newest(frontier, complete)
    if best is None:
        raise _unmet(level, "no revision has a complete ring" if not complete else "only a canary has a complete ring")
    if level.kind == "available":
        return best
    behind = frontier.behind(best)
    if behind is None:
        raise _unmet(level, "no trusted release of what is served is known")
    if behind > level.k:
        raise _unmet(level, f"the newest complete ring is {behind} releases behind")
    return best


def _newest(frontier: Frontier, complete: Sequence[bytes]) -> bytes | None:
    """The newest full one, else the first that nobody released; a canary never."""
    full = [revision for revision in complete if frontier.is_full(revision)]
    if full:
        newest = full[0]
        for revision in full[1:]:
            newest = revision if frontier.newer(revision, newest) else newest
        return newest
    return next((revision for revision in complete if revision not in frontier.ranks), None)


def _unmet(level: Level, why: str) -> LevelUnmet:
    return LevelUnmet(f"{level.kind} cannot be met: {why}", cure="wait, or ask for a weaker level: available")
