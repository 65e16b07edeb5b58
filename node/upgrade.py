"""A running node takes up newer releases of the models it serves, beside the old ones, without a seam.

Knows the node, its weights and a way to load. When to do what is `consistency.upgrading`'s to say; what is news comes
in with every offer that is heard (the frontier), and from this machine's own store. Sessions in flight end on the
revision that they began with; a failure on the way leaves the node where it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from paceline.consistency.upgrading import Holder, Move, Patience, Standing, decide
from paceline.node.node import Node
from paceline.node.services import LoadedService, end
from paceline.node.weights import Weights
from paceline.store.manifest import Manifest
from paceline.wire.errors import PacelineError
from paceline.wire.ids import Revision
from paceline.wire.offers import Offer

LoadBeside = Callable[[Manifest, LoadedService], Awaitable[LoadedService]]
"""Fetch what lacks of a manifest for the span of a running service, and load it without stopping that service."""


@dataclass(frozen=True, slots=True)
class UpgradeConfig:
    """Seconds. `again_s`: after a failure, before the same revision is tried again."""

    look_s: float = 1.0
    again_s: float = 30.0
    patience: Patience = field(default_factory=Patience)


@dataclass(slots=True)
class _Seen:
    """What is remembered of one newer revision."""

    known_at: float
    not_before: float = 0.0
    holders: set[str] = field(default_factory=set)
    last_at: float = float("-inf")
    """When a holder of it was first seen, most recently."""


class Upgrader:
    """One node's. `trouble` keeps the last failure, by model, for the status."""

    def __init__(self, node: Node, weights: Weights, load: LoadBeside, config: UpgradeConfig | None = None) -> None:
        self.trouble: dict[str, str] = {}
        self.upgraded: list[str] = []
        """Revisions taken up since the start, oldest first."""
        self._node = node
        self._weights = weights
        self._load = load
        self._config = config or UpgradeConfig()
        self._seen: dict[bytes, _Seen] = {}
        self._quiet_since: dict[int, float] = {}

    async def run(self) -> None:
        """Look every `look_s`, until cancelled."""
        while True:
            await trio.sleep(self._config.look_s)
            offers = await self._node.directory.offers()
            if self._weights.absorb(offers):
                await self._node.offering.announce()
            for service in list(self._node.table.services):
                await self._look(service, offers)

    async def _look(self, service: LoadedService, offers: Sequence[Offer]) -> None:
        new = self._weights.releases.resolve(service.model)
        if new is None or new == service.revision or self._node.table.draining:
            return
        seen = self._seen.setdefault(new, _Seen(trio.current_time()))
        holders = _holders(offers, service.model)
        fresh = {it.peer for it in holders if it.revision == new} - seen.holders
        if fresh:
            seen.holders |= fresh
            seen.last_at = trio.current_time()
        move = decide(self._standing(service, new, seen), holders, self._config.patience)
        if move is Move.TAKE and trio.current_time() >= seen.not_before:
            await self._take(service, new, seen)
        elif move is Move.QUIET:
            self._quiet_since[id(service)] = trio.current_time()
            self._node.unannounced.append(service)
            await self._node.offering.announce()
        elif move is Move.DROP:
            await self._drop(service)

    def _standing(self, service: LoadedService, new: Revision, seen: _Seen) -> Standing:
        now, node = trio.current_time(), self._node
        span = service.shard.span
        since = self._quiet_since.get(id(service))
        return Standing(
            me=node.me,
            layers=service.shard.shape.layers,
            span=span,
            old=service.revision,
            new=new,
            has_new=any(it.revision == new and it.shard.span.covers(span) for it in node.table.services),
            sessions=node.table.of_service(service),
            known_s=now - seen.known_at,
            last_s=now - seen.last_at,
            quiet_s=None if since is None else now - since,
        )

    async def _take(self, service: LoadedService, new: Revision, seen: _Seen) -> None:
        assert self._node.fetcher is not None
        try:
            manifest = await self._weights.manifest(new, self._node.fetcher, self._node.directory.offers)
            if len(manifest.layers) != service.shard.shape.layers:
                self.trouble[service.model] = f"{new.hex()[:12]} has {len(manifest.layers)} layers: start nodes for it"
                seen.not_before = float("inf")
                return
            fresh = await self._load(manifest, service)
        except PacelineError as error:
            self.trouble[service.model] = f"{error.code}: {error}"
            seen.not_before = trio.current_time() + self._config.again_s
            return
        self.trouble.pop(service.model, None)
        self.upgraded.append(new.hex())
        self._node.table.services.append(fresh)
        await self._node.offering.announce()

    async def _drop(self, service: LoadedService) -> None:
        self._quiet_since.pop(id(service), None)
        self._node.unannounced = [it for it in self._node.unannounced if it is not service]
        self._node.table.services = [it for it in self._node.table.services if it is not service]
        await end(service)

    def account(self) -> dict[str, object]:
        """For the node's status: what it took up, what it is about to, what failed; how far others are behind."""
        return {
            "upgraded": self.upgraded,
            "quiet": [it.revision.hex() for it in self._node.unannounced],
            "trouble": dict(self.trouble),
            "stale": self._weights.stale,
        }


def _holders(offers: Sequence[Offer], model: str) -> list[Holder]:
    return [
        Holder(offer.peer, it.revision, it.span, offer.state == "serving")
        for offer in offers
        for it in offer.services
        if it.model == model
    ]
