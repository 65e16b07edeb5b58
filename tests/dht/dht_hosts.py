"""libp2p hosts on loopback, for this folder's few tests with real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.net.transport import Channel


@asynccontextmanager
async def loopback(who: Identity, *, listens: bool = True) -> AsyncIterator[Libp2pTransport]:
    """A running host without a data port."""
    transport = Libp2pTransport(who, NetConfig(listens=listens, data=False))
    async with transport.run(_no_channels):
        yield transport


def way_in(transport: Libp2pTransport) -> tuple[str, ...]:
    """The host's addresses as bootstrap addresses."""
    return tuple(f"{address}/p2p/{transport.peer}" for address in transport.address.control)


async def _no_channels(channel: Channel) -> None:
    await channel.aclose()
