"""Which layers this machine holds: chosen from the directory where nobody said it, changed later where that is allowed.

Knows the node, its view of the swarm, and a way to load a span. What is best is routing's to say
(`routing.placement`); here is when it is asked, and how a move leaves no layer without a holder: the new span is loaded
beside the old one, the old one is offered no more, is taken back where another replica left at the same time, and ends
with its last session.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import trio

from paceline.node.node import Node
from paceline.node.services import LoadedService, end
from paceline.routing.flow import Held
from paceline.routing.placement import Device, Preview, choose_span, coverage, holders, should_move
from paceline.routing.view import swarm_view
from paceline.wire.errors import PacelineError
from paceline.wire.ids import Span
from paceline.wire.offers import Measured, Service

Load = Callable[[Span], Awaitable[LoadedService]]


@dataclass(frozen=True, slots=True)
class PlacingConfig:
    """Seconds. `jitter_s`: a newcomer looks at a random moment within it, so that a crowd sees one another's plans; 0
    where there is nobody.
    `look_s`: between two looks of a node that may move. `settle_s`: until others have heard what this node offers.
    """

    jitter_s: float = 2.0
    look_s: float = 60.0
    settle_s: float = 6.0


@dataclass(frozen=True, slots=True)
class Subject:
    """The model to serve, and what this machine can do with it. `blank`: a service of it without a span."""

    blank: Service
    device: Device

    def planned(self, span: Span) -> Service:
        """As announced before it is loaded: speed estimated, no room yet."""
        each_s = 1.0 / self.device.tokens_per_s(len(span))
        measured = Measured(decode_s=each_s, prefill_s_per_position=each_s)
        return msgspec.structs.replace(self.blank, start=span.start, end=span.end, measured=measured)


class Placing:
    """One node's. `load` fetches and loads a span; `unix_time` judges the age of offers."""

    def __init__(
        self,
        node: Node,
        subject: Subject,
        load: Load,
        unix_time: Callable[[], float],
        config: PlacingConfig | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._node = node
        self._subject = subject
        self._load = load
        self._unix_time = unix_time
        self._config = config or PlacingConfig()
        self._rng = rng or random.Random()
        self._tie_break = int.from_bytes(hashlib.sha256(node.me.encode()).digest()[:4])

    async def join(self) -> LoadedService:
        """Choose, tell the others, look again, load. The plan is announced from the choice on, the service after it."""
        await trio.sleep(self._rng.uniform(0.0, self._config.jitter_s))
        span = await self._plan(None)
        span = await self._plan(span)
        try:
            return await self._load(span)
        finally:
            self._node.planned = ()

    async def _plan(self, before: Span | None) -> Span:
        """The best span now, announced; `before` where that is nearly as good. Then wait until it has been heard."""
        others = await self._others()
        span = self.preview(others).span
        if before is not None and not self._better(others, before, span):
            return before
        self._node.planned = (self._subject.planned(span),)
        await self._node.offering.announce()
        if before is None:
            await trio.sleep(self._rng.uniform(0.5, 1.0) * self._config.jitter_s)
        return span

    def preview(self, others: Sequence[Held]) -> Preview:
        """What joining now would do."""
        return choose_span(self._subject.blank.layers, others, self._subject.device, tie_break=self._tie_break)

    async def keep_looking(self) -> None:
        """Until cancelled: every `look_s` or so, move where the swarm gains enough by it."""
        while True:
            await trio.sleep(self._rng.uniform(0.5, 1.5) * self._config.look_s)
            span = await self._wanted()
            if span is None:
                continue
            await trio.sleep(self._rng.uniform(0.0, 1.0) * self._config.look_s / 2.0)
            if await self._wanted() == span:
                await self.move(span)

    async def move(self, span: Span) -> bool:
        """Serve `span` instead of the present one. False where it could not be loaded, or others left meanwhile."""
        node, old = self._node, self._node.table.services[0]
        try:
            new = await self._load(span)
        except PacelineError:
            node.table.counters["moves_failed"] += 1
            return False
        if not await self._spared(old.shard.span, new.shard.span):
            await end(new)
            return False
        node.table.services.append(new)
        node.unannounced.append(old)
        await node.offering.announce()
        await trio.sleep(self._rng.uniform(1.0, 2.0) * self._config.settle_s)
        if not await self._spared(old.shard.span, new.shard.span):
            node.unannounced.remove(old)  # another replica left at the same time: hold both, and look again later
            await node.offering.announce()
            return False
        while node.table.of_service(old):
            await trio.sleep(0.5)
        node.table.services.remove(old)
        node.unannounced.remove(old)
        await end(old)
        node.table.counters["moves"] += 1
        return True

    async def _wanted(self) -> Span | None:
        """Where this node should move to, if anywhere. Nowhere while it serves more than one span."""
        if len(self._node.table.services) != 1 or self._node.table.draining:
            return None
        service = self._node.table.services[0]
        others, layers = await self._others(), self._subject.blank.layers
        device, current = self._measured(service), service.shard.span
        span = choose_span(layers, others, device, tie_break=self._tie_break).span
        return span if should_move(layers, others, device, current, span) else None

    def _measured(self, service: LoadedService) -> Device:
        """This machine, as fast as its present span has shown it to be."""
        each_s = service.measured.decode_s / len(service.shard.span)
        return Device(max(each_s, 1e-9), self._subject.device.capacity, service.measured.fixed_s)

    def _better(self, others: Sequence[Held], before: Span, span: Span) -> bool:
        return should_move(self._subject.blank.layers, others, self._subject.device, before, span)

    async def _spared(self, old: Span, new: Span) -> bool:
        """Whether others hold all of `old` that `new` does not."""
        now = coverage(self._subject.blank.layers, await self._others())
        return all(now[layer] > 0.0 or layer in new for layer in range(old.start, old.end))

    async def _others(self) -> list[Held]:
        """What the other nodes hold or plan, of this revision."""
        blank = self._subject.blank
        offers = await self._node.directory.offers(blank.model)
        view = swarm_view(blank.model, offers, now=self._unix_time())
        return holders(view.table(blank.revision), without=self._node.me)
