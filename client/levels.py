"""Which revision a request runs on: the level that was asked for, against what the swarm's offers say.

Knows offers, releases and trust. Releases come inside the offers, signed by their publishers: no node can invent one.
What has been heard is kept for the client's life: an older release that a node repeats later changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import trio

from paceline.client.chooser import why_none
from paceline.client.swarm import Swarm
from paceline.consistency.revisions import Frontier, Level, choose
from paceline.consistency.staleness import STALE_S, Lag, Staleness
from paceline.routing.view import SwarmView
from paceline.store.releases import verify
from paceline.store.trust import Trust
from paceline.wire.errors import LevelUnmet, PacelineError, UnauthorisedPublisher
from paceline.wire.offers import Offer
from paceline.wire.releases import Release

_log = logging.getLogger("paceline.client")


class Frontiers:
    """`trust` None: whoever has released a name is believed, as long as it is one publisher. `stale_after_s`: how long
    new sessions may run on a revision that is behind before the log says so; pinned ones do not count.
    """

    def __init__(self, trust: Trust | None = None, stale_after_s: float = STALE_S) -> None:
        self._trust = trust
        self._staleness = Staleness(stale_after_s)
        self._releases: dict[str, set[Release]] = {}

    def absorb(self, offers: Iterable[Offer]) -> None:
        """Take in the releases inside offers; what is forged or not trusted is passed over."""
        for signed in {signed for offer in offers for signed in offer.frontier}:
            try:
                release = verify(signed)
            except PacelineError:
                continue
            if self._trust is None or self._trust.allows(release):
                self._releases.setdefault(release.name, set()).add(release)

    def frontier(self, name: str) -> Frontier:
        """What is known of a name."""
        return Frontier.of(self._releases.get(name, ()))

    def choose(self, name: str, level: Level, view: SwarmView, key: bytes | None = None) -> bytes:
        """`key`: what the session draws for a canary by. Raises LevelUnmet; UnauthorisedPublisher where several
        publishers speak for the name and none is named.
        """
        self.absorb(view.offers)
        publishers = {release.publisher for release in self._releases.get(name, ())}
        if self._trust is None and len(publishers) > 1 and level.kind in ("strong", "bounded"):
            raise UnauthorisedPublisher(
                f"{len(publishers)} publishers speak for {name!r}", cure="name the one you believe: paceline trust KEY"
            )
        frontier = self.frontier(name)
        chosen = choose(level, frontier, [coverage.revision for coverage in view.complete()], key)
        if level.kind != "pinned" and chosen != frontier.canary and (self._trust is not None or len(publishers) == 1):
            for lag in self._staleness.look(name, [chosen], frontier, trio.current_time()):
                _log.warning("revision behind", lag.facts())
        return chosen

    def other_side(self, name: str, revision: bytes) -> bytes | None:
        """Of a canary that runs: what it stands beside, for the canary, and the canary for that; else None."""
        frontier = self.frontier(name)
        sides = {frontier.full: frontier.canary, frontier.canary: frontier.full}
        return sides.get(revision) if frontier.canary is not None else None

    def lags(self) -> list[Lag]:
        """What sessions last ran on, of each model, and how far that is behind."""
        return self._staleness.lags(trio.current_time())

    async def revision(
        self, swarm: Swarm, name: str, level: Level, timeout_s: float, key: bytes | None = None
    ) -> tuple[SwarmView, bytes]:
        """The revision for a new session; waits up to `timeout_s` for a ring that the level allows.

        Raises ModelNotFound, NoRoute (layers are missing), LevelUnmet.
        """
        deadline = trio.current_time() + timeout_s
        while True:
            view = await swarm.view(name)
            try:
                return view, self.choose(name, level, view, key)
            except LevelUnmet as unmet:
                if not view.complete() and await swarm.complete(view):
                    continue
                if trio.current_time() >= deadline:
                    raise (unmet if view.complete() else await why_none(swarm, view, name)) from None
            await trio.sleep(0.1)
