"""A running node takes up newer releases of the models it serves, beside the old ones, without a seam.

Knows the node, its weights and a way to load. When to do what is `consistency.upgrading`'s to say; what is news comes
in with every offer that is heard (the frontier), and from this machine's own store. Sessions in flight end on the
revision that they began with; a failure on the way leaves the node where it was. A canary is taken up in the same way,
by some of the nodes, and the old revision stays beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from paceline.consistency.upgrading import Holder, Move, Patience, Standing, aim, decide
from paceline.node.node import Node
from paceline.node.services import LoadedService, end
from paceline.node.weights import Weights
from paceline.store.errors import StoreError
from paceline.store.manifest import Manifest
from paceline.wire.errors import PacelineError
from paceline.wire.ids import Revision
from paceline.wire.offers import Offer
from paceline.wire.releases import Release

_log = logging.getLogger("paceline.node")

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
    """What is remembered of one release: of a canary's growth and promotion each anew."""

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
        self.weights = weights
        self._load = load
        self._config = config or UpgradeConfig()
        self._seen: dict[Release, _Seen] = {}
        self._quiet_since: dict[int, float] = {}

    async def run(self) -> None:
        """Look every `look_s`, until cancelled."""
        while True:
            await trio.sleep(self._config.look_s)
            offers = await self._node.directory.offers()
            if self.weights.absorb(offers):
                await self._node.offering.announce()
            for service in list(self._node.table.services):
                await self._look(service, offers)
            self._hold()

    def _hold(self) -> None:
        """The store keeps what is served here and what a name that is followed means now, to everybody or as a canary;
        the rest may go.
        """
        served = self._node.table.services
        standing = [release for it in served for release in self.weights.releases.standing(it.model)]
        wanted = {it.revision for it in served} | {Revision(it.revision) for it in standing if it is not None}
        try:
            self.weights.store.lease.hold_exactly(wanted)
        except StoreError as error:
            self.trouble["store"] = f"{error.code}: {error}"
        else:
            self.trouble.pop("store", None)

    async def _look(self, service: LoadedService, offers: Sequence[Offer]) -> None:
        new = aim(service.revision, *self.weights.releases.standing(service.model))
        if new is None or not new.full:
            await self._keep(service)
        if new is None or self._node.table.draining:
            return
        seen = self._seen.setdefault(new, _Seen(trio.current_time()))
        holders = _holders(offers, service.model)
        fresh = {it.peer for it in holders if it.revision == new.revision} - seen.holders
        if fresh:
            seen.holders |= fresh
            seen.last_at = trio.current_time()
        move = decide(self._standing(service, new, seen), holders, self._config.patience)
        if move is Move.TAKE and trio.current_time() >= seen.not_before:
            await self._take(service, Revision(new.revision), seen)
        elif move is Move.QUIET:
            self._quiet_since[id(service)] = trio.current_time()
            self._node.unannounced.append(service)
            self._tell("revision quiet", service.model, service.revision)
            await self._node.offering.announce()
        elif move is Move.DROP:
            await self._drop(service)

    async def _keep(self, service: LoadedService) -> None:
        """What was to go is wanted again: its publisher went back before it was dropped."""
        if self._quiet_since.pop(id(service), None) is not None:
            self._node.unannounced = [it for it in self._node.unannounced if it is not service]
            await self._node.offering.announce()

    def _standing(self, service: LoadedService, new: Release, seen: _Seen) -> Standing:
        now, node = trio.current_time(), self._node
        span = service.shard.span
        since = self._quiet_since.get(id(service))
        return Standing(
            me=node.me,
            layers=service.shard.shape.layers,
            span=span,
            old=service.revision,
            new=new.revision,
            has_new=any(it.revision == new.revision and it.shard.span.covers(span) for it in node.table.services),
            sessions=node.table.of_service(service),
            known_s=now - seen.known_at,
            last_s=now - seen.last_at,
            quiet_s=None if since is None else now - since,
            share=new.share,
        )

    async def _take(self, service: LoadedService, new: Revision, seen: _Seen) -> None:
        assert self._node.fetcher is not None
        began = trio.current_time()
        self._tell("revision begun", service.model, new)
        try:
            manifest = await self.weights.manifest(new, self._node.fetcher, self._node.directory.offers)
            if len(manifest.layers) != service.shard.shape.layers:
                self.trouble[service.model] = f"{new.hex()[:12]} has {len(manifest.layers)} layers: start nodes for it"
                seen.not_before = float("inf")
                return
            fresh = await self._load(manifest, service)
        except PacelineError as error:
            self.trouble[service.model] = f"{error.code}: {error}"
            seen.not_before = trio.current_time() + self._config.again_s
            self._tell("revision failed", service.model, new, code=error.code)
            return
        self.trouble.pop(service.model, None)
        self.upgraded.append(new.hex())
        self._node.table.services.append(fresh)
        self._tell("revision taken up", service.model, new, seconds=round(trio.current_time() - began, 3))
        await self._node.offering.announce()

    async def _drop(self, service: LoadedService) -> None:
        self._quiet_since.pop(id(service), None)
        self._node.unannounced = [it for it in self._node.unannounced if it is not service]
        self._node.table.services = [it for it in self._node.table.services if it is not service]
        await end(service)
        self._tell("revision dropped", service.model, service.revision)

    def _tell(self, event: str, model: str, revision: bytes, **facts: object) -> None:
        _log.info(event, {"node": self._node.me, "model": model, "revision": revision.hex(), **facts})

    def account(self) -> dict[str, object]:
        """For the node's status: what it took up, what it is about to, what failed; how far others are behind."""
        return {
            "upgraded": self.upgraded,
            "canaries": {
                it.model: it.revision.hex()
                for it in self._node.table.services
                if (canary := self.weights.releases.standing(it.model)[1]) and canary.revision == it.revision
            },
            "quiet": [it.revision.hex() for it in self._node.unannounced],
            "trouble": dict(self.trouble),
            "stale": self.weights.stale,
        }


def _holders(offers: Sequence[Offer], model: str) -> list[Holder]:
    return [
        Holder(offer.peer, it.revision, it.span, offer.state == "serving")
        for offer in offers
        for it in offer.services
        if it.model == model
    ]
