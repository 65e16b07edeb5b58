"""A node's stage loop: receive, decide, batch, run, send. It owns the session table; nobody else touches it.

Messages are queued by `post` and looked at between two steps of the engine, all of those that have come, so that
sessions whose frames arrive together leave together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from paceline.node.engine_thread import Engine
from paceline.node.gathering import Gathering
from paceline.node.sessions import Batch, SessionTable, StageKey
from paceline.node.tracing import Tracing
from paceline.wire.codec import Buffer
from paceline.wire.errors import InternalError
from paceline.wire.ids import PeerId
from paceline.wire.messages import NextToken, SessionMessage

TURN_S = 0.05
"""How long sessions wait for a place in memory before they are looked at again."""

MOST_PAUSE_S = 2.0
"""The longest pause of a throttled node between two steps: far below what its neighbours take for a failure."""

REST_AFTER_S = 0.5
"""How long a node without sessions waits before it tidies up."""


@dataclass(slots=True)
class StepStatistics:
    """Since the start: engine steps, works (sessions × steps), positions, and seconds in the engine."""

    steps: int = 0
    works: int = 0
    positions: int = 0
    busy_s: float = 0.0


class StageLoop:
    """See the module's docstring. `orphan_s`: how long a session outlives its owner's link. `on_rest` runs on the
    engine's thread when the last session has ended and none has come for a moment: to give back memory.
    """

    def __init__(
        self,
        table: SessionTable,
        engine: Engine,
        *,
        most_positions: int = 512,
        orphan_s: float = 10.0,
        tracing: Tracing,
        on_rest: Callable[[], None] = lambda: None,
    ) -> None:
        self.table = table
        self.statistics = StepStatistics()
        self.gathering = Gathering()
        self.tracing = tracing
        self.pace = 1.0
        """Share of the time that the engine may work; less than 1 where its owner has throttled it."""
        self._engine = engine
        self._on_rest = on_rest
        self._tired = False
        self._most_positions = most_positions
        self._orphan_s = orphan_s
        self._inbox: deque[Callable[[], None]] = deque()
        self._bell = trio.Event()
        self._orphan_since: dict[StageKey, float] = {}

    def post(self, peer: PeerId, message: SessionMessage, payload: Buffer) -> None:
        """A message has arrived."""
        if isinstance(message, NextToken):
            self.gathering.came(message.session, trio.current_time())
        self.tracing.arrived(message)
        self._soon(partial(self.table.handle, peer, message, payload))

    def link_lost(self, peer: PeerId) -> None:
        """A link fell."""
        self._soon(partial(self.table.link_lost, peer))

    def link_up(self, peer: PeerId) -> None:
        """A link came up."""
        self._soon(partial(self.table.link_up, peer))

    def send_away(self) -> None:
        """Ask all owners to go on without this node."""
        self._soon(self.table.send_away)

    def forget(self) -> None:
        """Lose every session, as a crash would."""
        self._soon(lambda: self.table.abandon(list(self.table.owners())))

    def _soon(self, call: Callable[[], None]) -> None:
        self._inbox.append(call)
        self._bell.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while self._inbox:
                self._inbox.popleft()()
            now = trio.current_time()
            self._sweep(now)
            if (until := self.table.hold_until(self.gathering, now)) > now:
                await self._wait(until - now)
                continue
            batch = self.table.next_batch(self._most_positions)
            if batch is not None:
                await self._step(batch)
                continue
            if untidy := self.table.untidy:
                await self._engine.run(untidy[0].tidy)
                continue
            if self._tired and not len(self.table) and not await self._wait(REST_AFTER_S):
                self._tired = False
                await self._engine.run(self._on_rest)
                continue
            await self._wait(TURN_S if self.table.waiting else self._orphan_s / 4)

    async def _wait(self, seconds: float) -> bool:
        """Until something arrives, or `seconds` have passed; whether something has."""
        if not self._inbox:
            self._bell = trio.Event()
            with trio.move_on_after(seconds):
                await self._bell.wait()
        return bool(self._inbox)

    async def _step(self, batch: Batch) -> None:
        began, began_us = trio.current_time(), self.tracing.now_us()
        outputs = await self._engine.run(batch.service.shard.step, batch.works)
        if len(outputs) != len(batch.works):
            raise InternalError(f"the shard answered {len(outputs)} of {len(batch.works)} works")
        self._tired = True
        self.statistics.steps += 1
        self.statistics.works += len(batch.works)
        self.statistics.positions += sum(work.n for work in batch.works)
        self.statistics.busy_s += trio.current_time() - began
        self.table.complete(batch, outputs, self.tracing, began_us)
        if self.pace < 1.0:
            await trio.sleep(min(MOST_PAUSE_S, (trio.current_time() - began) * (1.0 / self.pace - 1.0)))
        self._note_left(batch)

    def _note_left(self, batch: Batch) -> None:
        for (session, layer), riding, given in batch.riders:
            if layer == 0 and given.n == 1:
                self.gathering.left(session, riding.machine.seat.ring, trio.current_time())

    def _sweep(self, now: float) -> None:
        self.gathering.keep({session for session, _ in self.table.owners()})
        orphans = self.table.orphans()
        self._orphan_since = {key: self._orphan_since.get(key, now) for key in orphans}
        self.table.abandon([key for key, since in self._orphan_since.items() if now - since >= self._orphan_s])
