"""The announce loop: what the node offers now, signed afresh well before the last offer expires."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from paceline.engine.shard import Spread
from paceline.wire.offers import Offer

if TYPE_CHECKING:
    from paceline.node.node import Node


class Offering:
    """`unix_time`: seconds since the epoch; offers are compared across machines."""

    def __init__(self, node: Node, unix_time: Callable[[], float]) -> None:
        self._node = node
        self._unix_time = unix_time
        self._sequence = 0

    def offer(self) -> Offer:
        """The present offer. Sequence numbers grow across restarts, since they follow the wall clock (µs)."""
        node = self._node
        now = self._unix_time()
        self._sequence = max(self._sequence + 1, int(now * 1e6))
        uplink = node.links.uplink_bytes_per_s()
        offered = [s for s in node.table.services if not any(s is other for other in node.unannounced)]
        return Offer(
            at=node.links.address,
            sequence=self._sequence,
            issued_at=now,
            expires_at=now + node.config.offer_s,
            services=tuple(s.offered(node.table.of_service(s), uplink) for s in offered) or node.planned,
            state="draining" if node.table.draining else "serving" if offered else "joining",
            rtts=node.surroundings.near(node.config.near_peers),
            agent=node.config.agent,
            frontier=node.frontier(),
            place=None if (found := node.surroundings.coordinate) is None else found.place,
            region=node.config.region,
        )

    async def announce(self) -> None:
        """Publish the present offer. Raises WorkerLost where a span lacks one of its processes."""
        for service in self._node.table.services:
            if isinstance(service.shard, Spread):
                service.shard.check()
        await self._node.directory.announce(self.offer())

    async def run(self) -> None:
        """Announce every `announce_s`, until cancelled."""
        while True:
            await trio.sleep(self._node.config.announce_s)
            await self.announce()
