"""How far the others are: whom a node keeps links to so as to know, and its own network coordinate.

Knows links, the directory and `routing.coordinates`. A few random members and the few that seem nearest: far ones put
the node on the map, near ones put it right inside its city. Round trips once measured are remembered for a while after
their link has gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from paceline.routing.coordinates import Coordinate, located
from paceline.wire.offers import Offer

if TYPE_CHECKING:
    from paceline.node.node import Node

FAR, NEAR = 8, 8
"""Random members, and nearest ones, that are pinged."""

LOOK_S = 2.0
REMEMBER_S = 600.0

DIALS = 4
"""At one look."""


class Surroundings:
    """One node's."""

    def __init__(self, node: Node) -> None:
        self.coordinate: Coordinate | None = None
        """None before anything was measured."""
        self._node = node
        self._least: dict[str, tuple[float, float]] = {}
        """Least round trip of each peer lately, and when its link was last up."""
        self._tie_break = int.from_bytes(hashlib.sha256(node.me.encode()).digest()[:4])

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            self.look(await self._node.directory.offers(), trio.current_time())

    def look(self, offers: Sequence[Offer], now: float) -> None:
        """Take in what was measured since, and dial whom it is worth measuring."""
        links = self._node.links
        for peer in links.peers():
            if (least_s := links.rtt_min_s(peer)) is not None:
                self._least[peer] = least_s, now
        self._least = {peer: it for peer, it in self._least.items() if now - it[1] < REMEMBER_S}
        others = [offer for offer in offers if offer.peer != self._node.me]
        samples = [
            (Coordinate.of(offer.place), self._least[offer.peer][0])
            for offer in others
            if offer.place is not None and offer.peer in self._least
        ]
        if samples or self._least:
            own = self.coordinate or Coordinate()
            self.coordinate = located(samples, own, tie_break=self._tie_break)
        linked = set(links.peers())
        for offer in [offer for offer in self.targets(others) if offer.peer not in linked][:DIALS]:
            links.want(offer.at)

    def targets(self, others: Sequence[Offer]) -> list[Offer]:
        """Whom to measure: a lasting random choice, and whoever seems nearest."""
        reachable = [offer for offer in others if offer.at.control or offer.at.data]
        far = sorted(reachable, key=lambda offer: hashlib.sha256(f"{self._node.me}/{offer.peer}".encode()).digest())
        return far[:FAR] + sorted(far[FAR:], key=self._distance)[:NEAR]

    def _distance(self, offer: Offer) -> float:
        """Round trip as measured, else as predicted; those nobody knows anything of come last."""
        if offer.peer in self._least:
            return self._least[offer.peer][0]
        if self.coordinate is None or offer.place is None:
            return float("inf")
        return self.coordinate.rtt_to(Coordinate.of(offer.place))

    def near(self, most: int) -> tuple[tuple[str, float], ...]:
        """Round trips for the node's offer, nearest first: the least of a minute, so that load on a machine is not told
        as distance.
        """
        found = sorted(((peer, least_s) for peer, (least_s, _) in self._least.items()), key=lambda it: it[1])
        return tuple(found[:most])
