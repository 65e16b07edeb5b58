"""A first token asked of two rings: whoever draws it stays, the other is closed at once.

Two sessions of the same prompt, seed and sampling, with names of their own: to the protocol they have nothing to do
with each other, each has its own owner, epochs and log. A draw depends on seed and index alone, so both logs would be
the same; only one is ever told. Towards a Stream this is one ride (`stream.Riding`).

    ========  ==========================================  ==================================================
    state     means                                       may become
    ========  ==========================================  ==================================================
    racing    no token yet; `won` is None                 won, failed (all that ran have failed)
    won       `won` has drawn a token, the other is       (nothing: what befalls the winner now is its own)
              cancelled and heard no more
    failed    the first ring's error is the answer's      (nothing)
    ========  ==========================================  ==================================================

Knows rides and choosers. Refuses to know tokens' text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import trio

from paceline.client.chooser import Chooser
from paceline.client.results import Hedged
from paceline.client.ride import Ride
from paceline.client.swarm import Swarm
from paceline.consistency.effects import Ended
from paceline.consistency.owner import Owner
from paceline.routing.plan import RingPlan
from paceline.wire.errors import NoRoute, PacelineError
from paceline.wire.ids import PeerId
from paceline.wire.messages import Stage, TokenEvent

OnToken = Callable[[TokenEvent], None]


class Hedge:
    """`other`: makes the second ring's chooser, when the first ring is known. `on_token`: as a Ride's."""

    def __init__(
        self,
        swarm: Swarm,
        owners: tuple[Owner, Owner],
        chooser: Chooser,
        other: Callable[[RingPlan], Chooser],
        on_token: OnToken,
    ) -> None:
        self.won: int | None = None
        self._swarm = swarm
        self._owners = owners
        self._other = other
        self._on_token = on_token
        self._rides = [Ride(swarm, owners[0], chooser, partial(self._token, 0))]
        self._plans: list[tuple[str, ...]] = []
        """Peers of each ring that was begun, as they were chosen at first."""
        self._scopes = (trio.CancelScope(), trio.CancelScope())
        self._ended: list[Ended | None] = [None, None]
        self._errors: list[PacelineError | None] = [None, None]

    @property
    def owner(self) -> Owner:
        """The winner's, before there is one the first ring's."""
        return self._owners[self.won or 0]

    @property
    def numerics(self) -> str:
        """Of both rings."""
        return self._rides[0].numerics

    @property
    def hedged(self) -> Hedged:
        """What it has cost."""
        won = self.won or 0
        both = len(self._plans) == 2
        lost = self._plans[1 - won] if both else ()
        error = self._errors[1 - won]
        return Hedged(
            won=0 if self.won is None else won + 1,
            rings=len(self._plans),
            lost_ring=lost,
            shared=tuple(peer for peer in lost if peer in self._plans[won]),
            lost_with=error.code if error is not None else "",
            extra_positions=len(self.owner.request.prompt) if both else 0,
        )

    async def run(self, lost: frozenset[PeerId] = frozenset()) -> Ended:
        """As Ride.run. Raises the first ring's error where no ring could be begun, or none has drawn a token."""
        (first,) = self._rides
        route = await first.chooser.first()
        assert first.chooser.plan is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._first, first, route)
            nursery.start_soon(self._second, first.chooser.plan)
        if (ended := self._ended[self.won or 0]) is not None:
            return ended
        error = self._errors[self.won or 0]
        assert error is not None, "a ring ends, fails, or is cancelled with the whole"
        raise error

    async def _first(self, ride: Ride, route: Sequence[Stage]) -> None:
        with self._scopes[0]:
            await self._drive(0, ride, route)

    async def _second(self, plan: RingPlan) -> None:
        """The second ring, if there is another one. Its failure is its own."""
        with self._scopes[1]:
            chooser = self._other(plan)
            try:
                route = await _apart(chooser, plan)
            except PacelineError as error:
                self._errors[1] = error
                return
            if route is None:
                return
            ride = Ride(self._swarm, self._owners[1], chooser, partial(self._token, 1))
            self._rides.append(ride)
            await self._drive(1, ride, route)

    async def _drive(self, place: int, ride: Ride, route: Sequence[Stage]) -> None:
        self._plans.append(tuple(stage.at.peer for stage in route))
        try:
            ended = await ride.run(route=route)
        except PacelineError as error:
            self._errors[place] = error
        else:
            self._ended[place], self._errors[place] = ended, ended.error

    def _token(self, place: int, event: TokenEvent) -> None:
        if self.won is None:
            self.won = place
            self._scopes[1 - place].cancel()
            self._rides[place].chooser.apart = frozenset()
        if self.won == place:
            self._on_token(event)


async def _apart(chooser: Chooser, plan: RingPlan) -> tuple[Stage, ...] | None:
    """A ring without the peers of `plan`; where layers are then missing, with those who hold them. None: no other."""
    keep = set(plan.peers)
    while keep:
        chooser.apart = frozenset(keep)
        try:
            return await chooser.first()
        except NoRoute as error:
            holders = {it.peer for it in plan.stages if any(layer in it.span for layer in error.missing)}
            keep -= holders or keep
    return None
