"""Which ring a session rides: at first what its objective asks for, and after a loss what keeps all survivors.

Stands between the owner's NeedRoute and routing. Bans lift where everybody would be banned: a peer that answers again
may ride again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import trio

from paceline.client.swarm import Swarm
from paceline.routing.prefixes import better_known
from paceline.routing.ring import RingPlan, RingRequest, chosen_ring, repriced, reroute, ridden, standbys
from paceline.routing.view import SwarmView
from paceline.wire.errors import ModelNotFound, NoRoute, PacelineError, PeerUnavailable
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress, Stage


class Chooser:
    """Routes for one session. `shadows`: put a standby beside every stage where one is offered. `prompt`: the tokens of
    a new session, whose beginning earlier riders may know.
    """

    def __init__(
        self, swarm: Swarm, model: str, request: RingRequest, *, shadows: bool = True, prompt: Sequence[int] = ()
    ) -> None:
        self.model = model
        self.plan: RingPlan | None = None
        self._swarm = swarm
        self._request = request
        self._shadows = shadows
        self._prompt = prompt
        self._standing: dict[int, PeerAddress] = {}
        self._gone: set[PeerId] = set()
        self.apart: frozenset[str] = frozenset()
        """Who may not ride for now: the other ring of a hedge."""

    async def first(self) -> tuple[Stage, ...]:
        """The ring that the objective asks for, if possible without peers whose link just fell. Raises NoRoute."""
        view = await self._swarm.view(self.model)
        shunned = self._swarm.fallen(view.offers)
        try:
            self.plan = chosen_ring(view, self._but(shunned))
        except NoRoute:
            self.plan = chosen_ring(view, self._but(frozenset()))
        if self._request.objective == "latency":
            earlier = self._swarm.prefixes.rings(self._request.revision, self._prompt)
            self.plan = better_known(view, self.plan, earlier) if earlier else self.plan
        return self._route(view, self.plan, shunned)

    @property
    def numerics(self) -> str:
        """The class that the session's tokens are computed in; what was asked for while there is no ring yet."""
        return self.plan.numerics if self.plan is not None else self._request.numerics or ""

    async def again(self, route: Sequence[Stage], lost: frozenset[PeerId]) -> tuple[Stage, ...]:
        """The ring of a session that rode `route` under another owner: its riders hold its KV. Raises NoRoute."""
        view = await self._swarm.view(self.model)
        silent: frozenset[str] = frozenset()
        if (found := ridden(view, self._but(frozenset()), route)) is not None:
            self.plan, silent = found
            self._standing = {index: stage.standbys[0] for index, stage in enumerate(route) if stage.standbys}
        return await self.without(lost | {PeerId(peer) for peer in silent})

    def computed(self, tokens: Sequence[int], route: Sequence[Stage]) -> None:
        """The riders of `route` have computed these tokens: later prompts that begin like them go there, if it pays."""
        self._swarm.prefixes.note(self._request.revision, tokens, route)

    async def without(self, lost: frozenset[PeerId]) -> tuple[Stage, ...]:
        """A ring without the peers in `lost`, nor those lost before; all others kept. Raises NoRoute."""
        self._swarm.losses.note(lost - self._gone)
        self._gone |= lost
        view = await self._swarm.view(self.model)
        riders = frozenset(self.plan.peers) if self.plan else frozenset()
        for gone in (self._gone | (self._swarm.fallen(view.offers) - riders), self._gone):
            try:
                return self._repaired(view, frozenset(gone))
            except NoRoute as error:
                no_route = error
        if await self._found_more(view, no_route):
            view = await self._swarm.view(self.model)
            with suppress(NoRoute):
                return self._repaired(view, frozenset(self._gone))
        back = {peer for peer in self._gone if await self._answers(view, peer)}
        if not back:
            raise no_route
        self._gone -= back
        return self._repaired(view, frozenset(self._gone))

    async def _found_more(self, view: SwarmView, no_route: NoRoute) -> bool:
        """Whether nodes beyond the view hold what is missing."""
        plan, revision = self.plan, self._request.revision
        lost = (
            [layer for it in plan.stages if it.peer in self._gone for layer in range(it.span.start, it.span.end)]
            if plan
            else []
        )
        layers = plan.layers if plan else 0
        return await self._swarm.cover(view, revision, no_route.missing or lost, layers)

    async def around(
        self, slow: Mapping[PeerId, float], saved_s: Callable[[RingPlan, RingPlan], float]
    ) -> tuple[Stage, ...] | None:
        """The ring without stragglers (`slow`: with their excess, seconds a token) that saves most by `saved_s(old,
        new)`; None where none saves anything. Either the others all stay, or everything begins anew elsewhere.

        They are not lost: later repairs may take them again, at their price.
        """
        self._swarm.stragglers.note(slow)
        view = await self._swarm.view(self.model)
        if self.plan is None:
            return None
        away = self._gone | (self._swarm.fallen(view.offers) - frozenset(self.plan.peers))
        old = replace(self.plan, request=self._but(frozenset(away)))
        now = repriced(view, old)
        rings = self._without(view, old, frozenset(slow))
        new = max(rings, key=lambda ring: saved_s(now, ring), default=None)
        if new is None or saved_s(now, new) <= 0.0:
            return None
        self.plan = new
        return self._route(view, new, frozenset(away | set(slow)))

    def _without(self, view: SwarmView, plan: RingPlan, slow: frozenset[PeerId]) -> list[RingPlan]:
        """Rings without the `slow`: the plan repaired, and another one of the same objective."""
        request = replace(plan.request, excluded=plan.request.excluded | slow)
        if not request.mix_numerics:
            request = replace(request, numerics=plan.numerics)
        found = []
        with suppress(NoRoute):
            found.append(self._promoted(plan, slow) or reroute(view, plan, slow))
        with suppress(NoRoute):
            found.append(replace(chosen_ring(view, request), request=plan.request))
        return found

    def _but(self, gone: frozenset[PeerId]) -> RingRequest:
        swarm = self._swarm
        terms = replace(
            self._request.terms, straggler_s=swarm.stragglers.excess_s(), failures_per_s=swarm.losses.per_s()
        )
        return replace(self._request, excluded=self._request.excluded | gone | self.apart, terms=terms)

    def _repaired(self, view: SwarmView, gone: frozenset[PeerId]) -> tuple[Stage, ...]:
        if self.plan is None:
            self.plan = chosen_ring(view, self._but(gone))
        else:
            plan = replace(self.plan, request=self._but(gone))
            self.plan = self._promoted(plan, gone) or reroute(view, plan, gone)
        return self._route(view, self.plan, gone)

    def _promoted(self, plan: RingPlan, lost: frozenset[PeerId]) -> RingPlan | None:
        """The same ring with the standbys of the lost stages in their places, if each has one."""
        stages = []
        for index, stage in enumerate(plan.stages):
            standby = self._standing.get(index)
            if stage.peer not in lost:
                stages.append(replace(stage, kept=True))
            elif standby is not None and standby.peer not in lost:
                stages.append(replace(stage, at=standby, kept=True))
            else:
                return None
        return replace(plan, stages=tuple(stages))

    def _route(self, view: SwarmView, plan: RingPlan, gone: frozenset[PeerId]) -> tuple[Stage, ...]:
        """`plan` with a standby beside every stage that has one, none of them among the `gone`."""
        without = replace(plan, request=self._but(gone))
        found = standbys(view, without) if self._shadows else ()
        self._standing = {index: stage.at for index, stage in enumerate(found) if stage is not None}
        return plan.route(self._standing)

    async def _answers(self, view: SwarmView, peer: PeerId) -> bool:
        at = next((offer.at for offer in view.offers if offer.peer == peer), None)
        if at is None:
            return False
        try:
            await self._swarm.links.connect(at, 0.5)
        except PacelineError:
            return False
        return True


async def newest_revision(swarm: Swarm, model: str, timeout_s: float) -> tuple[SwarmView, bytes]:
    """A revision of `model` that some complete ring serves. Waits up to `timeout_s` for one to appear.

    Raises ModelNotFound where nobody offers the model, NoRoute where layers are missing.
    """
    deadline = trio.current_time() + timeout_s
    while True:
        view = await swarm.view(model)
        complete = view.complete()
        if complete:
            return view, complete[0].revision
        if await swarm.complete(view):
            continue
        if trio.current_time() >= deadline:
            raise await why_none(swarm, view, model)
        await trio.sleep(0.1)


async def why_none(swarm: Swarm, view: SwarmView, model: str) -> PacelineError:
    """The error that says why no ring of a model is complete."""
    if view.revisions:
        coverage = max((view.coverage(revision) for revision in view.revisions), key=lambda c: -len(c.missing))
        missing = coverage.missing
        layers = f"{missing[0]}–{missing[-1]}" if len(missing) > 1 else str(missing[0])
        return NoRoute(
            f"{len(missing)} of {coverage.layers} layers of {model} are served by nobody ({layers})",
            missing=missing,
            cure="wait for a node, or start one: paceline node",
        )
    names = sorted({service.model for offer in await swarm.offers() for service in offer.services})
    if not names:
        return PeerUnavailable("the swarm is empty: no node offers anything", cure="start a node: paceline node")
    return ModelNotFound(f"no node serves {model!r}", cure=f"served here: {', '.join(names)}")
