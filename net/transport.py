"""The network's narrow seam: authenticated channels of whole messages between peers.

Implementations: `net.host` (libp2p for the control plane, the direct data channel for frames) and `net.memory`
(in-process, virtual time, faults on demand). Both pass tests/net/test_transport_contract.py. A transport moves bytes;
it does not know what a message means (`net.links` decodes).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from paceline.net.dialback import Doors
from paceline.net.lane import Lanes
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress

ChannelKind = Literal["direct", "stream", "relayed", "memory"]


class Channel(Protocol):
    """A duplex, ordered, authenticated channel of whole messages to one peer. Confidential on real networks.

    All errors are `PeerUnavailable` (gone, silent, closed) or `ProtocolViolation` (garbage, oversize); after either
    the channel is dead. One task sends, one task receives; both are cancel-safe: a cancelled `send` either put
    nothing on the wire or killed the channel.
    """

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proved by its key."""
        ...

    @property
    def kind(self) -> ChannelKind: ...

    @property
    def dialer(self) -> bool:
        """True on the side that opened the channel."""
        ...

    @property
    def bytes_heard(self) -> int:
        """Bytes that have arrived so far, those of unfinished messages included: a peer that sends one long message
        over a slow link is not silent.
        """
        ...

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages (each ≤ wire.limits.MAX_MESSAGE_BYTES), coalesced into as few writes as possible."""
        ...

    async def receive(self) -> list[bytes | bytearray | memoryview]:
        """All whole messages that have arrived, at least one; waits for it. Raises PeerUnavailable at the end."""
        ...

    async def aclose(self) -> None:
        """Close at once, without waiting for the peer. Idempotent; wakes both tasks with PeerUnavailable."""
        ...


ChannelHandler = Callable[[Channel], Awaitable[None]]
"""Called in its own task for each inbound channel; the channel is closed when it returns or raises."""


class Transport(Protocol):
    """One process's place on the network."""

    @property
    def lanes(self) -> Lanes | None:
        """Connections for bulk beside links; None: there are none, and bulk goes over links."""
        ...

    @property
    def doors(self) -> Doors | None:
        """What decides which addresses are told; None: there is nothing to decide."""
        ...

    @property
    def address(self) -> PeerAddress:
        """Own peer id and the addresses others can dial (empty lists for a pure client)."""
        ...

    async def dial(self, to: PeerAddress, *, timeout_s: float) -> Channel:
        """A new channel to a peer: its data addresses first, then a libp2p stream over its control addresses, each
        address tried with backoff. Raises PeerUnavailable that names what was tried, within `timeout_s`.
        """
        ...

    def statistics(self) -> dict[str, int]:
        """What was refused, by kind (``refused_…``), and open channels, by kind (``channels_…``)."""
        ...

    def run(self, handler: ChannelHandler) -> AbstractAsyncContextManager[None]:
        """Listen (if configured to) and serve inbound channels with `handler` for the time of the block.

        On leaving, all channels and listening sockets are closed.
        """
        ...
