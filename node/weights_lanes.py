"""The lanes of one fetch: at most one from each peer, listened to until the fetch ends.

Knows lanes and links' peers. Refuses to know blocks and plans. Every peer gets one try for as long as its link lives:
where no lane comes about, or one breaks, its pieces come on the link as if there were no lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from paceline.net.lane import KEY_BYTES, Lanes
from paceline.wire.errors import PacelineError
from paceline.wire.ids import PeerId
from paceline.wire.messages import BlockPiece, PeerAddress

DIAL_S = 3.0
"""What dialling a lane may take, before a peer is asked on its link."""

OnPiece = Callable[[PeerId, BlockPiece, memoryview], None]
OnPeer = Callable[[PeerId], None]


@dataclass(slots=True)
class _Lane:
    """A peer's lane, from its key on; `settled` once it is up, or will never be."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    settled: bool = False


class Listening:
    """`lanes` None: there are none. `on_settled`: the peer may be asked now. `on_broken`: what it was asked is lost."""

    def __init__(self, lanes: Lanes | None, on_piece: OnPiece, on_settled: OnPeer, on_broken: OnPeer) -> None:
        self._lanes = lanes
        self._on_piece = on_piece
        self._on_settled = on_settled
        self._on_broken = on_broken
        self._of: dict[PeerId, _Lane] = {}

    def wanted(self, at: PeerAddress) -> bool:
        """Whether to ask this peer for a lane."""
        return self._lanes is not None and bool(at.data) and at.peer not in self._of

    def settled(self, peer: PeerId) -> bool:
        """Whether it is known how pieces of this peer will come: nothing is asked of it before."""
        lane = self._of.get(peer)
        return lane is None or lane.settled

    def begin(self, nursery: trio.Nursery, at: PeerAddress, key: bytes) -> None:
        """A peer has given a key, or an empty one for none."""
        if len(key) == KEY_BYTES and self.wanted(at):
            lane = self._of[PeerId(at.peer)] = _Lane()
            nursery.start_soon(self._listen, at, key, lane)

    def lost(self, peer: PeerId) -> None:
        """The peer's link fell: its lane goes, and a new one may be asked for."""
        if (lane := self._of.pop(peer, None)) is not None:
            lane.scope.cancel()

    async def _listen(self, at: PeerAddress, key: bytes, lane: _Lane) -> None:
        peer = PeerId(at.peer)
        assert self._lanes is not None
        with lane.scope:
            try:
                inner = await self._lanes.dial(at, key, DIAL_S)
                try:
                    lane.settled = True
                    self._on_settled(peer)
                    while True:
                        request, total, data = await inner.receive()
                        self._on_piece(peer, BlockPiece(request, total), data)
                finally:
                    await inner.aclose()
            except PacelineError:
                # Whatever was to come on it is asked for again, on the link.
                self._on_broken(peer)
        lane.settled = True
        self._on_settled(peer)
