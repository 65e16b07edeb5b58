"""What a publisher says of a revision: its name, its place in the order of the name's revisions. Only the shape.

A revision is content and knows no order; a release gives it one, and can name the same revision again under a higher
sequence (a rollback). A release whose `share` is below 1 is a canary: that share of new sessions may try its revision,
beside the newest full release (docs/adr/0021-canaries.md). Signatures are made and checked in store.releases.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct

from paceline.wire.messages import RevisionBytes

MAX_RELEASE_BYTES = 512

ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
PublisherBytes = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""An Ed25519 public key."""

Sequence = Annotated[int, Meta(ge=1, lt=1 << 48)]

Share = Annotated[float, Meta(gt=0.0, le=1.0)]
"""Of new sessions."""


class Release(Struct, frozen=True, array_like=True):
    """`sequence` grows with every release of the name; `parent` is the revision that was newest before.
    `published_at`: unix seconds, for people only: no decision depends on it.
    """

    name: ModelName
    revision: RevisionBytes
    sequence: Sequence
    publisher: PublisherBytes
    parent: RevisionBytes | None = None
    published_at: Annotated[float, Meta(ge=0.0, le=1e11)] = 0.0
    share: Share = 1.0

    @property
    def rank(self) -> tuple[int, bytes, bytes, float]:
        """Total order of one name's releases. A sequence used twice is ordered too, so that all agree."""
        return self.sequence, self.publisher, self.revision, self.share

    @property
    def full(self) -> bool:
        """Whether it is for everybody."""
        return self.share >= 1.0


def standing(releases: Iterable[Release]) -> tuple[Release | None, Release | None]:
    """``(full, canary)`` of one name's verified releases: the newest for everybody, and the canary that runs, if any.

    What counts of a revision is its newest release. A canary runs until any newer release: its promotion, another
    canary, or the old revision's return.
    """
    latest: dict[bytes, Release] = {}
    for release in sorted(releases, key=lambda it: it.rank):
        latest[release.revision] = release
    newest = max(latest.values(), key=lambda it: it.rank, default=None)
    full = max((it for it in latest.values() if it.full), key=lambda it: it.rank, default=None)
    return full, newest if newest is not None and not newest.full else None


class SignedRelease(Struct, frozen=True, array_like=True):
    """`body`: the encoded Release. `signature`: Ed25519 by its publisher over a domain tag and `body`."""

    body: Annotated[bytes, Meta(max_length=MAX_RELEASE_BYTES)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
