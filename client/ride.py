"""The shell around one session's owner: its messages in, its effects out, its deadlines kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from paceline.client.chooser import Chooser
from paceline.client.pace import Pace, saved_s
from paceline.client.swarm import Arrived, SessionEvent, Swarm
from paceline.consistency.effects import Emit, Ended, NeedRoute, OwnerEffect, Send
from paceline.consistency.owner import Owner, Phase
from paceline.wire.errors import PacelineError
from paceline.wire.ids import PeerId
from paceline.wire.messages import Stage, TokenEvent


class Ride:
    """Runs one owner to its end. `on_token` gets every token, in order, once; it must not block."""

    def __init__(self, swarm: Swarm, owner: Owner, chooser: Chooser, on_token: Callable[[TokenEvent], None]) -> None:
        self.owner = owner
        self.chooser = chooser
        self._swarm = swarm
        self._on_token = on_token
        self._ended: Ended | None = None
        self._pace = Pace()

    @property
    def hedged(self) -> None:
        """One ring has run it (`client.hedge` has two)."""

    @property
    def numerics(self) -> str:
        """The class that tokens are computed in."""
        return self.chooser.numerics

    async def run(self, lost: frozenset[PeerId] = frozenset(), route: Sequence[Stage] = ()) -> Ended:
        """Until the session has ended. Cancelling it closes the session at every stage.

        `lost`: peers that a resumed session must not use. `route`: the chooser's first ring, if it is chosen already.
        """
        async with self._swarm.subscribe(self.owner.request.session) as inbox:
            try:
                ridden = self.owner.route
                if not route:
                    route = await (self.chooser.again(ridden, lost) if ridden else self.chooser.first())
                await self._install(route)
                while self._ended is None:
                    await self._next(inbox)
            finally:
                if len(self.owner.log) > len(self.owner.request.prompt):
                    self.chooser.computed(self.owner.log, self.owner.route)
                if self.owner.phase is not Phase.ENDED:
                    self._send_all(self.owner.cancel())
        return self._ended

    async def _next(self, inbox: trio.MemoryReceiveChannel[SessionEvent]) -> None:
        event: SessionEvent | None = None
        with trio.move_on_at(self.owner.next_deadline()):
            event = await inbox.receive()
        now = trio.current_time()
        if event is None:
            await self._perform(self.owner.tick(now))
        elif isinstance(event, Arrived):
            await self._perform(self.owner.handle(event.peer, event.message, now))
            if isinstance(event.message, TokenEvent) and event.message.timings:
                await self._mind_the_pace(event.message, now)
        else:
            await self._perform(self.owner.link_lost(event.peer, now))

    async def _perform(self, effects: Sequence[OwnerEffect]) -> None:
        self._send_all(effects)
        for effect in effects:
            match effect:
                case Emit(event):
                    self._on_token(event)
                case Ended():
                    self._ended = effect
                case NeedRoute():
                    await self._reroute(effect)

    def _send_all(self, effects: Sequence[OwnerEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._swarm.send(effect.to, effect.message)

    async def _reroute(self, need: NeedRoute) -> None:
        try:
            route = await self.chooser.without(need.lost)
        except PacelineError as error:
            await self._perform(self.owner.route_failed(error, trio.current_time()))
        else:
            await self._install(route)

    async def _install(self, route: Sequence[Stage]) -> None:
        if self.chooser.plan is not None:
            self._pace.begin(self.chooser.plan)
        await self._perform(self.owner.install(route, trio.current_time()))

    async def _mind_the_pace(self, token: TokenEvent, now: float) -> None:
        """Leave a rider behind who has been slower than he offered, where a ring without him pays for the move."""
        owner = self.owner
        if token.epoch != owner.epoch or owner.phase is not Phase.RIDING:
            return
        self._pace.note(token.timings)
        slow = self._pace.slow(now)
        if not slow:
            return
        done, left = len(owner.log), owner.request.max_positions - len(owner.log)
        self._pace.moved(now)
        token_s = self._pace.token_s()
        route = await self.chooser.around(slow, lambda old, new: saved_s(old, new, slow, token_s, done, left))
        if route is not None and self.chooser.plan is not None:
            names = ", ".join(peer[-8:] for peer in slow)
            self._pace.begin(self.chooser.plan)
            await self._perform(owner.migrate(route, f"slower than offered: {names}", trio.current_time()))
