"""A directory inside one process, for tests and simulations: virtual time, the real rules.

All members of a `MemorySwarm` share one book, so what one announces, the others see at once. Offers are signed,
verified and expired as over a network; only the spreading is missing. `cut` takes a peer off the swarm as a crash
would.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from paceline.dht import offers, stretches
from paceline.dht.stretches import Want
from paceline.dht.view import CAPACITY, OfferBook
from paceline.net.dialback import is_direct
from paceline.net.identity import Identity
from paceline.wire.errors import PeerUnavailable
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Offer

Clock = Callable[[], float]


class MemorySwarm:
    """What the directories of one test share. `clock`: unix seconds, trio's clock unless told otherwise."""

    def __init__(self, *, clock: Clock = trio.current_time, capacity: int = CAPACITY) -> None:
        self.clock = clock
        self.book = OfferBook(capacity)
        self._cut: set[str] = set()

    def cut(self, peer: str) -> None:
        """From now on nothing that the peer announces or withdraws arrives, and it sees nothing new."""
        self._cut.add(peer)

    def mend(self, peer: str) -> None:
        """The peer is back."""
        self._cut.discard(peer)

    def reaches(self, peer: str) -> bool:
        """Whether the peer is part of the swarm now."""
        return peer not in self._cut


class MemoryDirectory:
    """`Directory` over a MemorySwarm."""

    def __init__(
        self, swarm: MemorySwarm, identity: Identity, *, holds: Callable[[str], bool] = lambda peer: True
    ) -> None:
        """`holds`: whom the view has room for; others are found by their layers only, as in a large swarm."""
        self.asked: list[str] = []
        """Stretches that were asked for."""
        self._holds = holds
        self._found: set[str] = set()
        self._swarm = swarm
        self._identity = identity
        self._own: Offer | None = None

    def run(self) -> AbstractAsyncContextManager[None]:
        """Raises PeerUnavailable where the peer has been cut off."""
        return self._run()

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        if not self._swarm.reaches(self._identity.peer):
            raise PeerUnavailable("cut off from the swarm", peer=self._identity.peer)
        await trio.lowlevel.checkpoint()
        yield

    async def announce(self, offer: Offer) -> None:
        """Raises OfferRejected where no other peer could accept it."""
        await trio.lowlevel.checkpoint()
        signed = offers.sign(self._identity, offer)
        offers.verify(signed, self._swarm.clock())
        self._own = offer
        if self._swarm.reaches(self._identity.peer):
            self._swarm.book.accept(signed, self._swarm.clock())

    async def withdraw(self) -> None:
        """Nothing where nothing was announced."""
        last, self._own = self._own, None
        if last is not None:
            gone = offers.withdrawal(last, self._swarm.clock())
            if self._swarm.reaches(self._identity.peer):
                self._swarm.book.accept(offers.sign(self._identity, gone), self._swarm.clock())
        await trio.lowlevel.checkpoint()

    async def offers(self, model: str | None = None) -> Sequence[Offer]:
        """Everything live; a peer that is cut off sees nobody."""
        await trio.lowlevel.checkpoint()
        if not self._swarm.reaches(self._identity.peer):
            return []
        live = self._swarm.book.live(self._swarm.clock(), model)
        return [it for it in live if it.peer in self._found or self._holds(it.peer)]

    async def cover(self, revision: bytes, layers: int, missing: Sequence[int]) -> int:
        """Finds all that hold a layer of the missing ones' stretches."""
        await trio.lowlevel.checkpoint()
        live = self._swarm.book.live(self._swarm.clock())
        strange = [it for it in live if it.peer not in self._found and not self._holds(it.peer)]
        if not strange or not self._swarm.reaches(self._identity.peer):
            return 0
        before = len(self._found)
        for number in stretches.touched(layers, missing):
            self.asked.append(stretches.text(revision, number))
            part = stretches.span(layers, number)
            want = Want(revision, part.start, part.end)
            self._found |= {it.peer for it in strange if want.overlap(it)}
        return len(self._found) - before

    def everybody(self) -> list[PeerAddress]:
        """Whoever has a live offer and an address."""
        if not self._swarm.reaches(self._identity.peer):
            return []
        live = self._swarm.book.live(self._swarm.clock())
        return [it.at for it in live if it.peer != self._identity.peer and is_direct(it.at)]

    def statistics(self) -> dict[str, int]:
        """The shared book's counters."""
        return self._swarm.book.statistics(self._swarm.clock())
