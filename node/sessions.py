"""All sessions of a node: which machine a message belongs to, and what its effects do to KV and links.

Knows machines, shards and holds; knows no clock, thread or socket. It is called between two engine steps only, so KV
operations never race with a forward pass.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from paceline.consistency.effects import CropKv, FreeKv, Send, StageEffect, Violation
from paceline.consistency.fences import Fences
from paceline.consistency.journal import Spill
from paceline.consistency.stage import Drawn, Input, StageMachine
from paceline.engine.shard import Activations, Output, Paged, SampleRequest, Work
from paceline.node.gathering import Gathering
from paceline.node.grammar import GrammarState
from paceline.node.precedence import Standing, ordered
from paceline.node.services import LoadedService, serving
from paceline.node.tracing import Tracing
from paceline.wire import limits
from paceline.wire.codec import Buffer
from paceline.wire.errors import Draining, Overloaded, PacelineError, Refused, WrongRevision
from paceline.wire.ids import Epoch, PeerId, Span, epoch_number, trace_id
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

_log = logging.getLogger("paceline.node")

StageKey = tuple[bytes, int]
"""(session, first layer): stable over changes of route."""


@dataclass(frozen=True, slots=True)
class Held:
    """A message whose epoch this node has not been configured for yet."""

    peer: PeerId
    message: SessionMessage
    payload: Buffer


@dataclass(slots=True)
class Holds:
    """Bounded: the oldest are dropped, and the protocol asks for them again (invariant 7)."""

    most: int = limits.MAX_HELD_FRAMES
    most_bytes: int = limits.MAX_HELD_BYTES
    dropped: int = 0
    _held: deque[Held] = field(default_factory=deque)
    _bytes: int = 0

    def keep(self, held: Held) -> None:
        """Hold one message, dropping the oldest where there is no room."""
        self._held.append(held)
        self._bytes += len(held.payload)
        while len(self._held) > self.most or self._bytes > self.most_bytes:
            self._bytes -= len(self._held.popleft().payload)
            self.dropped += 1

    def release(self, session: bytes) -> list[Held]:
        """Take out all that is held for a session, oldest first."""
        mine = [held for held in self._held if held.message.session == session]
        if mine:
            self._held = deque(held for held in self._held if held.message.session != session)
            self._bytes = sum(len(held.payload) for held in self._held)
        return mine


@dataclass(slots=True)
class Riding:
    """One machine with its shard."""

    machine: StageMachine
    service: LoadedService
    grammar: GrammarState | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine step: works of one shard, and whose they are."""

    service: LoadedService
    riders: tuple[tuple[StageKey, Riding, Input], ...]
    works: tuple[Work, ...]


class SessionTable:
    """See the module's docstring. `send` performs a Send effect and never blocks; `spill`: a journal's room on disk."""

    def __init__(
        self,
        me: PeerId,
        services: Sequence[LoadedService],
        send: Callable[[Send], None],
        journal_bytes: int,
        *,
        spill: Callable[[], Spill] | None = None,
        shared_prefixes: bool = False,
    ) -> None:
        self.me = me
        self.waiting = False
        """True where sessions have work that the last `next_batch` left for later."""
        self._shared_prefixes = shared_prefixes
        self.services = list(services)
        self.counters: Counter[str] = Counter()
        self.holds = Holds()
        self.draining = False
        self._send = send
        self._journal_bytes = journal_bytes
        self._spill = spill
        self._riding: dict[StageKey, Riding] = {}
        self._turn: deque[StageKey] = deque()
        self._fences = Fences()

    def __len__(self) -> int:
        return len(self._riding)

    def of_service(self, service: LoadedService) -> int:
        """Sessions that ride this service."""
        return sum(riding.service is service for riding in self._riding.values())

    def journal_bytes(self) -> int:
        """Held by all journals together."""
        return sum(riding.machine.journal.nbytes for riding in self._riding.values())

    def owners(self) -> dict[StageKey, PeerId]:
        """Who owns each session here."""
        return {key: riding.machine.owner for key, riding in self._riding.items()}

    # --- messages -------------------------------------------------------------------------------------------

    def handle(self, peer: PeerId, message: SessionMessage, payload: Buffer = b"") -> None:
        """One message of a session, from an authenticated peer."""
        if isinstance(message, OpenStage):
            self._open(peer, message)
        elif isinstance(message, CloseStage):
            for key in [key for key in self._riding if key[0] == message.session]:
                self._deliver(key, peer, message, payload)
            if all(session != message.session for session, _ in self._riding):
                self._fences.note(message.session, message.epoch, closed=True)
        elif isinstance(message, NextToken):
            self._deliver((message.session, 0), peer, message, payload)
        elif isinstance(message, Frame | Prompt | Nack):
            self._deliver((message.session, message.layer), peer, message, payload)
        elif not isinstance(message, FencedBy):
            self.counters["violations"] += 1  # what only owners are sent

    def _deliver(self, key: StageKey, peer: PeerId, message: SessionMessage, payload: Buffer) -> None:
        riding = self._riding.get(key)
        if riding is not None and isinstance(message, Prompt) and (wrong := _unknown(message, riding)):
            self._try_send(Send(peer, StageError(key[0], key[1], message.epoch, "invalid_request", wrong)))
            return
        effects = None if riding is None else riding.machine.handle(peer, message, payload)
        if riding is None or effects is None:
            self.holds.keep(Held(peer, message, payload))
        else:
            self._perform(key, riding, effects)

    def _open(self, peer: PeerId, m: OpenStage) -> None:
        mine = m.route[m.index] if m.index < len(m.route) else None
        if mine is None or mine.end <= mine.start:
            self.counters["violations"] += 1
            return
        if (newest := self._fences.over(m.session, m.epoch)) is not None:
            self._try_send(Send(peer, FencedBy(m.session, newest)))
            return
        key = (m.session, mine.start)
        riding = self._riding.get(key)
        if riding is not None and riding.machine.end != mine.end and m.epoch > riding.machine.epoch:
            self._perform(key, riding, riding.machine.free())
            riding = None
        if riding is None:
            try:
                riding = self._admit(key, m, mine.span, peer)
            except PacelineError as error:
                _log.info("session refused", self._facts(m.session, owner=peer, span=str(mine.span), code=error.code))
                refusal = StageError(m.session, mine.start, m.epoch, error.code, error.message)
                self._send(Send(peer, refusal))
                return
        self._perform(key, riding, riding.machine.handle(peer, m) or [])
        self._fences.note(m.session, riding.machine.epoch)
        for held in self.holds.release(m.session):
            self.handle(held.peer, held.message, held.payload)

    def _admit(self, key: StageKey, m: OpenStage, span: Span, owner: PeerId) -> Riding:
        service = serving(self.services, m.revision, span)
        if service is None:
            raise self._why_not(m.revision, span)
        if self.draining:
            raise Draining("this node is leaving and takes no new sessions")
        draws = span.end == service.shard.shape.layers
        grammar = service.begin_grammar(m.sampling.grammar) if draws and m.sampling.grammar else None
        service.shard.open(key, m.max_positions, span)
        if isinstance(service.shard, Paged):
            # By default an owner reuses only his own: how long a prompt takes would tell him what others asked.
            service.shard.share(key, b"" if self._shared_prefixes else owner.encode())
        spill = self._spill() if self._spill else None
        machine = StageMachine(self.me, m, service.shard.shape.hidden, self._journal_bytes, spill)
        riding = Riding(machine, service, grammar)
        self._riding[key] = riding
        self._turn.append(key)
        _log.info(
            "session opened", self._facts(m.session, owner=owner, span=str(span), epoch=epoch_number(Epoch(m.epoch)))
        )
        return riding

    def _facts(self, session: bytes, **more: object) -> dict[str, object]:
        """For the log: a session goes by its trace, since who knows its id may take it over."""
        return {"node": self.me, "trace": trace_id(session), **more}

    def _why_not(self, revision: bytes, span: Span) -> PacelineError:
        if any(s.revision == revision for s in self.services):
            return Refused(f"layers {span} are not served here")
        return WrongRevision(f"revision {revision.hex()[:12]} is not served here")

    # --- links --------------------------------------------------------------------------------------------------

    def link_lost(self, peer: PeerId) -> None:
        """A link fell: each machine that cares says so to its owner."""
        for key, riding in list(self._riding.items()):
            self._perform(key, riding, riding.machine.link_lost(peer))

    def link_up(self, peer: PeerId) -> None:
        """A link is back."""
        for key, riding in list(self._riding.items()):
            self._perform(key, riding, riding.machine.link_up(peer))

    def orphans(self) -> set[StageKey]:
        """Sessions whose owner's link is down."""
        return {key for key, riding in self._riding.items() if riding.machine.orphan}

    def abandon(self, keys: Iterable[StageKey]) -> None:
        """Free sessions whose owner did not come back."""
        for key in keys:
            riding = self._riding.get(key)
            if riding is not None:
                self.counters["abandoned"] += 1
                _log.info("owner lost", self._facts(key[0]))
                self._perform(key, riding, riding.machine.free())

    def send_away(self) -> None:
        """Tell every owner that this node is leaving: they reroute, and this stage's journal helps them."""
        for (session, layer), riding in self._riding.items():
            machine = riding.machine
            leaving = StageError(session, layer, machine.epoch, "draining", "this node is leaving")
            self._send(Send(machine.owner, leaving))

    # --- gathering ------------------------------------------------------------------------------------------------

    def hold_until(self, gathering: Gathering, now: float) -> float:
        """Until when it is better to wait for more sessions; not later than `now` where there is other work."""
        ready = [(key, riding) for key, riding in self._riding.items() if riding.machine.has_work]
        if not ready or len(ready) == len(self._riding) or not all(layer == 0 for (_, layer), _ in ready):
            return now
        if any(riding.machine.length < riding.machine.config.known for _, riding in ready):
            return now
        measured = ready[0][1].service.measured
        full = 1 + int(measured.decode_s / max(measured.decode_extra_s, 1e-9))
        return gathering.hold_until([session for (session, _), _ in ready], full, now)

    # --- the engine -----------------------------------------------------------------------------------------------

    def next_batch(self, most_positions: int) -> Batch | None:
        """Works of one shard, sessions in turn, those that decode first; at most `most_positions`, but one work."""
        ready = [key for key in self._turn if self._riding[key].machine.has_work]
        self.waiting = bool(ready)
        for service in dict.fromkeys(id(self._riding[key].service) for key in ready):
            mine = [key for key in ready if id(self._riding[key].service) == service]
            riders = self._take(self._runnable(mine), most_positions)
            if riders:
                works = tuple(_work(key, riding, given) for key, riding, given in riders)
                return Batch(riders[0][1].service, tuple(riders), works)
        return None

    def _runnable(self, keys: Sequence[StageKey]) -> list[StageKey]:
        """Of one shard's sessions, those that have their KV in memory now; a decode step never waits for a prompt."""
        shard = self._riding[keys[0]].service.shard
        if isinstance(shard, Paged):
            now = set(shard.turn(keys))
            keys = [key for key in keys if key in now]
        machines = [self._riding[key].machine for key in keys]
        return ordered(keys, [Standing(m.owner, m.length < m.config.known, m.config.priority) for m in machines])

    def _take(self, keys: Sequence[StageKey], most_positions: int) -> list[tuple[StageKey, Riding, Input]]:
        riders: list[tuple[StageKey, Riding, Input]] = []
        positions = 0
        for key in keys:
            riding = self._riding[key]
            given = riding.machine.take()
            if given is None:
                continue
            self._turn.remove(key)
            self._turn.append(key)
            riders.append((key, riding, given))
            positions += given.n
            if positions >= most_positions:
                break
        return riders

    @property
    def untidy(self) -> list[Paged]:
        """Shards with something to put away."""
        return [s.shard for s in self.services if isinstance(s.shard, Paged) and s.shard.untidy]

    def complete(self, batch: Batch, outputs: Sequence[Output], tracing: Tracing, began_us: int) -> None:
        """Results of a step that began at `began_us` (`tracing`'s clock), in the batch's order."""
        for (key, riding, given), output in zip(batch.riders, outputs, strict=True):
            machine = riding.machine
            if output.error:
                self.counters["failed_works"] += 1
                effects = machine.failed(given, output.error)
                if riding.grammar is not None and riding.grammar.error:
                    wrong = f"grammar: {riding.grammar.error}"  # the user's own words: not for the log
                    effects = [Send(machine.owner, StageError(*key, machine.epoch, "invalid_request", wrong))]
                else:
                    _log.warning("step failed", self._facts(key[0], error=output.error))
            elif output.activations is not None:
                effects = machine.done(given, output.activations.data, output.activations.dtype, None)
            else:
                drawn = output.sampled
                told = None if drawn is None else Drawn(drawn.token, drawn.logprob, drawn.top)
                effects = machine.done(given, b"", "f32", told)
            if machine.config.trace:
                effects = tracing.stamped((*key, given.end), began_us, effects)
            self._perform(key, riding, effects)

    # --- effects --------------------------------------------------------------------------------------------------

    def _perform(self, key: StageKey, riding: Riding, effects: Sequence[StageEffect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._try_send(effect)
                case CropKv(length):
                    if length < riding.service.shard.length(key):
                        riding.service.shard.crop(key, length)
                case FreeKv():
                    _log.info("session over", self._facts(key[0], positions=riding.service.shard.length(key)))
                    riding.service.shard.close(key)
                    self._riding.pop(key, None)
                    self._turn = deque(k for k in self._turn if k != key)
                case Violation():
                    self.counters["violations"] += 1

    def _try_send(self, effect: Send) -> None:
        try:
            self._send(effect)
        except Overloaded:
            self.counters["outbox_full"] += 1  # the receiver will miss it and ask, or the owner's deadline repairs


def _unknown(prompt: Prompt, riding: Riding) -> str:
    """What is wrong with the ids of `prompt`, or ``""``: a user's mistake, and no reason to look for another ring."""
    vocabulary, highest = riding.service.shard.shape.vocab, max(prompt.ids)
    return f"token id {highest} is not one of the {vocabulary}" if highest >= vocabulary else ""


def _work(key: StageKey, riding: Riding, given: Input) -> Work:
    machine, sample = riding.machine, None
    if given.sample:
        params, prompt = machine.config.sampling, machine.config.prompt_length
        history = tuple(machine.history) if params.needs_history else ()
        allowed = None if riding.grammar is None else partial(riding.grammar.allowed, history[prompt:])
        sample = SampleRequest(params, given.end, history, prompt, allowed)
    if given.ids:
        return Work(key, given.start, ids=given.ids, sample=sample)
    rows = Activations(given.n, machine.hidden, given.dtype, given.rows)
    return Work(key, given.start, activations=rows, sample=sample)
