"""The directory's narrow seam: who serves what, as signed, sequenced, expiring offers.

Implementations: `dht.kademlia` (over the libp2p host) and `dht.memory`. Both pass tests/dht/test_directory_contract.py.
A directory returns only offers that it has verified: signature by the peer named in them, not expired, not
superseded, within the limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Offer


class Directory(Protocol):
    """A view of the swarm that is fresh within an offer's short lifetime."""

    def run(self) -> AbstractAsyncContextManager[None]:
        """Join the swarm through the configured bootstrap members, and keep the view fresh during the block.

        Raises PeerUnavailable where bootstrap members were given and none answers within the deadline.
        """
        ...

    async def announce(self, offer: Offer) -> None:
        """Sign and publish the node's own newest offer; replaces the previous one, and is republished before it
        expires only by the next call (the node's announce loop owns the rhythm).
        """
        ...

    async def withdraw(self) -> None:
        """Publish that the node is gone, as far as it can be told within a second."""
        ...

    async def offers(self, model: str | None = None) -> Sequence[Offer]:
        """Verified live offers with a service of `model` (a model name, or a revision in hex), newest per peer.

        None: all. Served from a warm view where there is one; the first call of a fresh client asks its members.
        """
        ...

    async def cover(self, revision: bytes, layers: int, missing: Sequence[int]) -> int:
        """Look for nodes that hold `missing` ones of a revision's `layers`, in a swarm that is too large for one view:
        only what concerns these layers is asked for, and `offers` has it afterwards, for an offer's lifetime. How many
        were found; 0 at once where the view holds everybody.
        """
        ...

    def everybody(self) -> list[PeerAddress]:
        """Members that can be dialled, bootstrap members first, without those that did not answer last and those that
        are reached through a relay only. As far as the view goes: no message is sent.
        """
        ...

    def statistics(self) -> dict[str, int]:
        """Counters: offers known, accepted, and rejected by reason."""
        ...
