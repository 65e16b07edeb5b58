"""Whether what a node serves is behind what its publishers have released, and for how long: log, status, metrics.

Runs in every node, also in one that follows nothing: that is the one nobody would notice. Knows the node, its weights
and a clock; what is behind is `consistency.staleness`'s to say.
"""

from __future__ import annotations

import logging

import trio

from paceline.consistency.staleness import STALE_S, Staleness
from paceline.node.node import Node
from paceline.node.weights import Weights

LOOK_S = 5.0

_log = logging.getLogger("paceline.node")


class Watch:
    """One node's. `patience_s`: how long a revision may be behind before the log says so."""

    def __init__(self, node: Node, weights: Weights, patience_s: float = STALE_S) -> None:
        self._node = node
        self._weights = weights
        self._staleness = Staleness(patience_s)
        self._account: list[dict[str, object]] = []

    async def run(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            if self._weights.absorb(await self._node.directory.offers()):
                await self._node.offering.announce()
            self.look()

    def look(self) -> None:
        """What is served now, against what is known now. What only waits for its last riders does not count."""
        node, now = self._node, trio.current_time()
        served = [it for it in node.table.services if not any(it is other for other in node.unannounced)]
        models = {it.model for it in served}
        self._staleness.forget(self._staleness.models - models)
        for model in sorted(models):
            used = [it.revision for it in served if it.model == model]
            for lag in self._staleness.look(model, used, self._weights.known(model), now):
                _log.warning("revision behind", {"node": node.me, **lag.facts()})
        self._account = [lag.facts() for lag in self._staleness.lags(now)]

    def account(self) -> list[dict[str, object]]:
        """Of each revision served, as of the last look. From any thread."""
        return self._account
