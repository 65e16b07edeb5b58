"""A simulated client: what client/ride.py and client/chooser.py do around the real owner machine.

The chooser is trivial where routing is clever: any candidate will do. What it mirrors are the rules that the protocol
feels: survivors stay, the lost are banned, bans lift where nobody else is left and the banned answer again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.consistency.effects import Emit, Ended, NeedRoute, OwnerEffect, Send
from paceline.consistency.owner import Owner, Phase
from paceline.sim.chance import Chance
from paceline.sim.checks import Broken
from paceline.sim.reference import Reference
from paceline.wire.errors import NoRoute, PacelineError
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress, SessionMessage, Stage


@dataclass(frozen=True)
class Tile:
    """One place in a ring, and who could take it."""

    start: int
    end: int
    candidates: tuple[PeerId, ...]


class Chooser:
    """Routes over tiles. `answers` says whether a peer can be reached now; `shadows`: how often a stage gets one."""

    def __init__(self, tilings: Sequence[Sequence[Tile]], chance: Chance, answers: Callable[[PeerId], bool]) -> None:
        self.tiles = tilings[0]
        self.shadows = 0.0
        self.retile = 0.0
        self._tilings = tilings
        self._chance = chance
        self._answers = answers
        self._gone: set[PeerId] = set()

    def choose(self, now: Sequence[Stage], lost: frozenset[PeerId]) -> tuple[Stage, ...]:
        """A ring without the lost. Raises NoRoute."""
        self._gone |= lost
        if self.retile and self._chance.yes(self.retile):
            self.tiles = self._chance.pick(self._tilings)
        try:
            return self._built(now)
        except NoRoute:
            back = {peer for peer in self._gone if self._answers(peer)}
            if not back:
                raise
            self._gone -= back
            return self._built(now)

    def _built(self, now: Sequence[Stage]) -> tuple[Stage, ...]:
        before = {(stage.start, stage.end): stage for stage in now}
        return tuple(self._stage(tile, before.get((tile.start, tile.end))) for tile in self.tiles)

    def _stage(self, tile: Tile, before: Stage | None) -> Stage:
        free = [peer for peer in tile.candidates if peer not in self._gone]
        if not free:
            raise NoRoute(f"nobody for {tile.start}:{tile.end}")
        standing = [PeerId(at.peer) for at in before.standbys if at.peer in free] if before else []
        if before is not None and before.at.peer in free:
            rider = PeerId(before.at.peer)
        else:
            rider = standing[0] if standing else self._chance.pick(free)
        others = [peer for peer in free if peer != rider]
        keep = [peer for peer in standing if peer != rider]
        if not keep and others and self.shadows and self._chance.yes(self.shadows):
            keep = [self._chance.pick(others)]
        return Stage(PeerAddress(rider), tile.start, tile.end, tuple(PeerAddress(peer) for peer in keep[:1]))


class Rider:
    """One owner and its user. `wake` is told when a route has been asked for, and answers by `routed`, later."""

    def __init__(self, me: PeerId, owner: Owner, chooser: Chooser, reference: Reference, now: float) -> None:
        self.me = me
        self.owner = owner
        self.chooser = chooser
        self.reference = reference
        self.ended: Ended | None = None
        self.wants_route: frozenset[PeerId] | None = None
        self.emitted = 0
        self.first = len(owner.log)
        self.since = self.ended_at = now
        self.epochs = 0

    def begin(self, now: float) -> list[Send]:
        """Ask for the first route."""
        return self.routed(now, frozenset())

    def handle(self, sender: PeerId, message: SessionMessage, now: float) -> list[Send]:
        """A message."""
        return self._perform(self.owner.handle(sender, message, now), now)

    def link_lost(self, peer: PeerId, now: float) -> list[Send]:
        """A link fell."""
        return self._perform(self.owner.link_lost(peer, now), now)

    def tick(self, now: float) -> list[Send]:
        """A deadline came."""
        return self._perform(self.owner.tick(now), now)

    def cancel(self, now: float) -> list[Send]:
        """The user leaves."""
        return self._perform(self.owner.cancel(), now)

    def migrate(self, now: float) -> list[Send]:
        """A better ring was found: one rider is given up without being lost."""
        route = self.owner.route
        if self.owner.phase is not Phase.RIDING or not route:
            return []
        given_up = frozenset({PeerId(route[self.chooser._chance.below(len(route))].at.peer)})
        try:
            fresh = self.chooser.choose(route, given_up)
        except NoRoute:
            return []
        return self._perform(self.owner.migrate(fresh, "straggler", now), now)

    def routed(self, now: float, lost: frozenset[PeerId]) -> list[Send]:
        """The chooser's answer."""
        self.wants_route = None
        try:
            route = self.chooser.choose(self.owner.route, lost)
        except PacelineError as error:
            return self._perform(self.owner.route_failed(error, now), now)
        self.epochs += 1
        return self._perform(self.owner.install(route, now), now)

    def _perform(self, effects: Sequence[OwnerEffect], now: float) -> list[Send]:
        sends = []
        for effect in effects:
            match effect:
                case Send():
                    sends.append(effect)
                case Emit(event):
                    self._emit(event.index, event.token, event.finish, now)
                case NeedRoute():
                    self.wants_route = effect.lost
                case Ended():
                    self._end(effect)
                    self.ended_at = now
        return sends

    def _emit(self, index: int, token: int, finish: str, now: float) -> None:
        log = self.reference.log
        if index != self.first + self.emitted:
            raise Broken(3, f"{self.me} emits index {index} after {self.emitted} tokens behind {self.first}")
        if index >= len(log) or log[index] != token:
            wanted = log[index] if index < len(log) else "nothing"
            raise Broken(5, f"{self.me} emits token {token} at {index}, undisturbed it is {wanted}")
        last = index == len(log) - 1
        if finish != (self.reference.finish if last else ""):
            raise Broken(5, f"{self.me} is told {finish!r} at {index}")
        if self.ended is not None:
            raise Broken(3, f"{self.me} emits after its end")
        self.emitted += 1
        self.since = now

    def _end(self, ended: Ended) -> None:
        if self.ended is not None:
            raise Broken(6, f"{self.me} ends twice")
        self.ended = ended
        whole = len(self.owner.log) == len(self.reference.log)
        if ended.finish in ("stop", "length") and (not whole or ended.finish != self.reference.finish):
            raise Broken(6, f"{self.me} ends {ended.finish!r} after {len(self.owner.log)} of {len(self.reference.log)}")
        if not ended.finish and ended.error is None:
            raise Broken(6, f"{self.me} ends without a reason")
