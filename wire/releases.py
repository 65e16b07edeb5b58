"""What a publisher says of a revision: its name, its place in the order of the name's revisions. Only the shape.

A revision is content and knows no order; a release gives it one, and can name the same revision again under a higher
sequence (a rollback). Signatures are made and checked in store.releases.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from paceline.wire.messages import RevisionBytes

MAX_RELEASE_BYTES = 512

ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
PublisherBytes = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""An Ed25519 public key."""

Sequence = Annotated[int, Meta(ge=1, lt=1 << 48)]


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

    @property
    def rank(self) -> tuple[int, bytes, bytes]:
        """Total order of one name's releases. A sequence used twice is ordered too, so that all agree."""
        return self.sequence, self.publisher, self.revision


class SignedRelease(Struct, frozen=True, array_like=True):
    """`body`: the encoded Release. `signature`: Ed25519 by its publisher over a domain tag and `body`."""

    body: Annotated[bytes, Meta(max_length=MAX_RELEASE_BYTES)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
