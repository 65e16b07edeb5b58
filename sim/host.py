"""A simulated node: what node/sessions.py does around the real stage machines, with toy shards and no threads.

Mirrors the shell's rules: machines keyed by (session, first layer), made by an OpenStage; what a machine cannot place
yet is held, bounded, and offered again after the session's next OpenStage; effects are performed in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.consistency.effects import CropKv, FreeKv, Send, StageEffect
from paceline.consistency.fences import Fences
from paceline.consistency.stage import Drawn, Input, StageMachine
from paceline.engine.shard import Activations, Output, SampleRequest, Work
from paceline.engine.toy import HIDDEN
from paceline.sim.reference import CheckedShard
from paceline.sim.spill import SPILLING, SmallSpill
from paceline.wire.codec import Buffer
from paceline.wire.ids import PeerId, Revision
from paceline.wire.limits import MAX_HELD_FRAMES
from paceline.wire.messages import (
    CloseStage,
    FencedBy,
    Frame,
    Nack,
    NextToken,
    OpenStage,
    Prompt,
    SessionMessage,
    StageError,
)

StageKey = tuple[bytes, int]


@dataclass(eq=False, slots=True)
class Step:
    """A work that the engine runs: its result is computed, and not told yet."""

    key: StageKey
    machine: StageMachine
    given: Input
    output: Output


class Host:
    """See the module's docstring. `send` takes each Send effect."""

    machine_type: type[StageMachine] = StageMachine

    def __init__(self, me: PeerId, revision: Revision, journal: int, send: Callable[[PeerId, Send], None]) -> None:
        self.me = me
        self.revision = revision
        self.machines: dict[StageKey, StageMachine] = {}
        self.shard = CheckedShard(revision)
        self.held: deque[tuple[PeerId, SessionMessage, Buffer]] = deque()
        self.fences = Fences()
        self.violations = 0
        self._journal = journal
        self._send = send
        self._turn = 0

    # --- messages -------------------------------------------------------------------------------------------

    def handle(self, peer: PeerId, message: SessionMessage, payload: Buffer = b"") -> None:
        """One message, as the node's table handles it."""
        if isinstance(message, OpenStage):
            self._open(peer, message)
        elif isinstance(message, CloseStage):
            for key in [key for key in self.machines if key[0] == message.session]:
                self._deliver(key, peer, message, payload)
            if not any(key[0] == message.session for key in self.machines):
                self.fences.note(message.session, message.epoch, closed=True)
        elif isinstance(message, NextToken):
            self._deliver((message.session, 0), peer, message, payload)
        elif isinstance(message, Frame | Prompt | Nack):
            self._deliver((message.session, message.layer), peer, message, payload)
        elif not isinstance(message, FencedBy):
            self.violations += 1

    def _deliver(self, key: StageKey, peer: PeerId, message: SessionMessage, payload: Buffer) -> None:
        machine = self.machines.get(key)
        effects = None if machine is None else machine.handle(peer, message, payload)
        if machine is None or effects is None:
            self.held.append((peer, message, payload))
            if len(self.held) > MAX_HELD_FRAMES:
                self.held.popleft()
        else:
            self._perform(key, machine, effects)

    def _open(self, peer: PeerId, m: OpenStage) -> None:
        mine = m.route[m.index]
        key = (m.session, mine.start)
        fence = self.fences.over(m.session, m.epoch)
        if fence is not None:
            self._send(self.me, Send(peer, FencedBy(m.session, fence)))
            return
        machine = self.machines.get(key)
        if machine is not None and machine.end != mine.end and m.epoch > machine.epoch:
            self._perform(key, machine, machine.free())
            machine = None
        if machine is None:
            if m.revision != self.revision:
                self._send(self.me, Send(peer, StageError(m.session, mine.start, m.epoch, "wrong_revision", "")))
                return
            self.shard.open(key, m.max_positions, mine.span)
            spill = SmallSpill() if self._journal == SPILLING else None
            machine = self.machines[key] = self.machine_type(self.me, m, HIDDEN, self._journal, spill)
        self._perform(key, machine, machine.handle(peer, m) or [])
        self.fences.note(m.session, machine.epoch)
        mine_held = [held for held in self.held if held[1].session == m.session]
        if mine_held:
            self.held = deque(held for held in self.held if held[1].session != m.session)
            for sender, message, payload in mine_held:
                self.handle(sender, message, payload)

    # --- links ----------------------------------------------------------------------------------------------

    def link_lost(self, peer: PeerId) -> None:
        """A link fell."""
        for key, machine in list(self.machines.items()):
            self._perform(key, machine, machine.link_lost(peer))

    def link_up(self, peer: PeerId) -> None:
        """A link is back."""
        for key, machine in list(self.machines.items()):
            self._perform(key, machine, machine.link_up(peer))

    def abandon(self, key: StageKey, machine: StageMachine) -> None:
        """The owner did not come back."""
        if self.machines.get(key) is machine and machine.orphan:
            self._perform(key, machine, machine.free())

    # --- the engine -----------------------------------------------------------------------------------------

    def begin(self) -> Step | None:
        """Take and compute one work, of the machines in turn."""
        keys = list(self.machines)
        for offset in range(len(keys)):
            key = keys[(self._turn + offset) % len(keys)]
            machine = self.machines[key]
            given = machine.take() if machine.has_work else None
            if given is not None:
                self._turn += offset + 1
                return Step(key, machine, given, self.shard.step([_work(key, machine, given)])[0])
        return None

    def complete(self, step: Step) -> None:
        """The engine's result has come."""
        machine, output = step.machine, step.output
        if output.error:
            effects = machine.failed(step.given, output.error)
        elif output.activations is not None:
            effects = machine.done(step.given, output.activations.data, output.activations.dtype, None)
        else:
            drawn = output.sampled
            effects = machine.done(step.given, b"", "i64", None if drawn is None else Drawn(drawn.token))
        self._perform(step.key, machine, effects)

    def _perform(self, key: StageKey, machine: StageMachine, effects: Sequence[StageEffect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(self.me, effect)
                case CropKv(length):
                    if self.machines.get(key) is machine and length < self.shard.length(key):
                        self.shard.crop(key, length)
                case FreeKv():
                    self.shard.close(key)
                    self.machines.pop(key, None)
                case _:
                    self.violations += 1


def _work(key: StageKey, machine: StageMachine, given: Input) -> Work:
    sample = None
    if given.sample:
        params = machine.config.sampling
        history = tuple(machine.history) if params.needs_history else ()
        sample = SampleRequest(params, given.end, history, machine.config.prompt_length)
    if given.ids:
        return Work(key, given.start, ids=given.ids, sample=sample)
    return Work(key, given.start, activations=Activations(given.n, HIDDEN, "i64", given.rows), sample=sample)
