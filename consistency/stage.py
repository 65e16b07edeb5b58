"""One stage's part in one session, as a pure state machine.

Inputs: messages with their sender, links that fall and return, results of the engine. Outputs: effects. It knows no
clock, socket, tensor or thread. The shell (node/) feeds it between two steps of its engine, performs the effects, and
runs what `take` hands out. KV length here and in the shard are the same number (invariant 2).

Legal life: created by an OpenStage → open (any number of epochs, each greater) → closed. A closed machine does nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from paceline.consistency.clock import Clock
from paceline.consistency.decision import Case, Claim, Standing, decide
from paceline.consistency.effects import CropKv, FreeKv, Send, StageEffect, Violation
from paceline.consistency.invariants import require
from paceline.consistency.journal import Journal
from paceline.wire.codec import Buffer
from paceline.wire.ids import REVISION_TAG_BYTES, Branch, Epoch, PeerId, Revision, SessionId
from paceline.wire.messages import (
    CloseStage,
    Dtype,
    FencedBy,
    Finish,
    Frame,
    Nack,
    NextToken,
    OpenStage,
    PeerAddress,
    Prompt,
    SessionMessage,
    Stage,
    StageError,
    StageOpened,
    TokenEvent,
)

EVENTS_KEPT = 256
"""Token events a tail keeps for an owner whose link broke."""


@dataclass(frozen=True, slots=True)
class Input:
    """Accepted positions ``[start, start + n)``: token ids at a head, rows of activations elsewhere.

    `sample`: the token after the last position is wanted (tail).
    """

    epoch: int
    branch: int
    start: int
    n: int
    ids: tuple[int, ...] = ()
    rows: Buffer = b""
    dtype: Dtype = "f32"
    sample: bool = False

    @property
    def end(self) -> int:
        return self.start + self.n

    def part(self, skip: int, take: int) -> Input:
        """Positions ``[start + skip, start + skip + take)`` of this input."""
        if self.ids:
            return replace(self, start=self.start + skip, n=take, ids=self.ids[skip : skip + take])
        row = len(self.rows) // self.n
        rows = memoryview(self.rows)[skip * row : (skip + take) * row]
        return replace(self, start=self.start + skip, n=take, rows=rows)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tail's result: what goes into the token event."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class StageMachine:
    """See the module's docstring. `layer`: first layer of the span; `hidden`: width of activation rows."""

    def __init__(self, me: PeerId, first: OpenStage, hidden: int, journal_bytes: int) -> None:
        self.me = me
        self.session = SessionId(first.session)
        self.revision = Revision(first.revision)
        self.layer = first.route[first.index].start
        self.end = first.route[first.index].end
        self.hidden = hidden
        self.closed = False
        self.orphan = False
        self.length = 0
        self.clock = Clock(self.revision, Epoch(0), Branch(0), ())
        self.config = first
        self.owner = PeerId("")
        self.journal = Journal(journal_bytes)
        self.history: list[int] = []
        self._queue: deque[Input] = deque()
        self._running: Input | None = None
        self._dtype: Dtype = "f32"
        self._cursors: dict[str, int] = {}
        self._events: deque[TokenEvent] = deque(maxlen=EVENTS_KEPT)
        self._withheld: NextToken | None = None
        self._nacked_at = -1
        self._unsure: set[str] = set()
        self._short = False
        self._installed = False

    # --- where it stands ------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.clock.epoch

    @property
    def branch(self) -> int:
        return self.clock.branch

    @property
    def is_head(self) -> bool:
        return self.config.index == 0

    @property
    def is_tail(self) -> bool:
        return self.config.index == len(self.config.route) - 1

    @property
    def expected(self) -> int:
        """The next position this stage can accept."""
        last = self._queue[-1] if self._queue else self._running
        return self.length if last is None else last.end

    @property
    def has_work(self) -> bool:
        return bool(self._queue) and self._running is None

    def standing(self) -> Standing:
        """For `decide`."""
        tag = self.revision[:REVISION_TAG_BYTES]
        return Standing(tag, self.epoch, self.branch, self.expected, self.config.known)

    # --- messages -------------------------------------------------------------------------------------------

    def handle(self, sender: PeerId, message: SessionMessage, payload: Buffer = b"") -> list[StageEffect] | None:
        """Effects of one message. None: hold it until the epoch it belongs to has been installed."""
        if self.closed:
            return []
        match message:
            case OpenStage():
                return self._install(sender, message)
            case CloseStage():
                return self._close(sender, message)
            case Frame():
                return self._frame(sender, message, payload)
            case Prompt():
                return self._prompt(sender, message)
            case NextToken():
                return self._next_token(sender, message)
            case Nack():
                return self._nack(sender, message)
            case FencedBy():
                return []
            case _:
                return [Violation(sender, f"a stage is not sent {type(message).__name__}")]

    def _install(self, sender: PeerId, m: OpenStage) -> list[StageEffect]:
        if m.epoch < self.epoch or (m.epoch == self.epoch and sender != self.owner and self._installed):
            return [Send(sender, FencedBy(self.session, self.epoch))]
        if m.epoch == self.epoch and self._installed:
            return [self._opened()]
        mine = m.route[m.index] if m.index < len(m.route) else None
        if m.revision != self.revision:
            return [self._error(sender, m.epoch, "wrong_revision", "this stage serves another revision")]
        if mine is None or mine.start != self.layer or len(m.lengths) != len(m.route):
            return [Violation(sender, "OpenStage that does not fit its own route")]
        effects: list[StageEffect] = []
        if self._installed and sender != self.owner:
            effects.append(Send(self.owner, FencedBy(self.session, m.epoch)))
        effects += self._crop(0 if mine.end != self.end else min(self.length, m.lengths[m.index]))
        self._adopt(sender, m, mine)
        return [*effects, self._opened(), *self._pump()]

    def _adopt(self, sender: PeerId, m: OpenStage, mine: Stage) -> None:
        self.end = mine.end
        self.config, self.owner, self._installed, self.orphan = m, sender, True, False
        lengths = (*m.lengths[: m.index], self.length, *m.lengths[m.index + 1 :])
        self.clock = Clock(self.revision, Epoch(m.epoch), Branch(m.branch), lengths)
        self._queue.clear()
        self._running = None
        self._events.clear()
        self._unsure.clear()
        self._withheld = None
        self._nacked_at = -1
        self._short = False
        del self.history[m.known :]
        self._cursors = {}
        if not self.is_tail and not m.shadow:
            for target in self._downstream():
                self._cursors[target.peer] = m.lengths[m.index + 1]

    def _close(self, sender: PeerId, m: CloseStage) -> list[StageEffect]:
        if m.epoch < self.epoch:
            return [Send(sender, FencedBy(self.session, self.epoch))]
        if m.epoch == self.epoch and sender != self.owner:
            return [Violation(sender, "CloseStage from somebody who does not own the session")]
        return self.free()

    def free(self) -> list[StageEffect]:
        """End the session here: closed by its owner, or abandoned by it."""
        self.closed = True
        self._queue.clear()
        self.journal.restart(0)
        return [FreeKv()]

    def _frame(self, sender: PeerId, m: Frame, payload: Buffer) -> list[StageEffect] | None:
        claim = Claim(m.revision_tag, m.epoch, m.branch, m.start, m.n)
        case = decide(self.standing(), claim)
        if case in (Case.HOLD, Case.FENCED, Case.WRONG_REVISION):
            return self._outsider(case, sender, m.epoch)
        if self.is_head or sender not in self._peers_of(self.config.index - 1):
            return [Violation(sender, f"frame for layer {m.layer} from somebody who is not upstream")]
        if m.hidden != self.hidden:
            return [Violation(sender, f"frame of width {m.hidden}, the model's is {self.hidden}")]
        if m.branch == self.branch:
            self.clock = self.clock.with_deltas(m.start + m.n, m.lengths[: self.config.index])
        given = Input(m.epoch, m.branch, m.start, m.n, rows=payload, dtype=m.dtype)
        return self._accept(case, sender, given)

    def _prompt(self, sender: PeerId, m: Prompt) -> list[StageEffect] | None:
        case = decide(self.standing(), Claim(None, m.epoch, m.branch, m.start, len(m.ids)))
        if case in (Case.HOLD, Case.FENCED):
            return self._outsider(case, sender, m.epoch)
        if sender != self.owner:
            return [Violation(sender, "Prompt from somebody who does not own the session")]
        if self.is_tail and m.start <= len(self.history):
            self.history[m.start :] = m.ids
        if not self.is_head:
            return []
        return self._accept(case, sender, Input(m.epoch, m.branch, m.start, len(m.ids), ids=m.ids))

    def _next_token(self, sender: PeerId, m: NextToken) -> list[StageEffect] | None:
        case = decide(self.standing(), Claim(None, m.epoch, m.branch, m.index, 1))
        if case in (Case.HOLD, Case.FENCED):
            return self._outsider(case, sender, m.epoch)
        if not self.is_head or sender not in self._peers_of(len(self.config.route) - 1):
            return [Violation(sender, "NextToken outside the ring")]
        return self._accept(case, sender, Input(m.epoch, m.branch, m.index, 1, ids=(m.token,)))

    def _outsider(self, case: Case, sender: PeerId, epoch: int) -> list[StageEffect] | None:
        if case is Case.HOLD:
            return None
        if case is Case.FENCED:
            return [Send(sender, FencedBy(self.session, self.epoch))]
        message = "frame of another revision"
        return [Violation(sender, message), self._error(self.owner, epoch, "wrong_revision", message, accused=sender)]

    def _accept(self, case: Case, sender: PeerId, given: Input) -> list[StageEffect]:
        if case is Case.GAP:
            return self._ask_again()
        if case is Case.BAD_ROLLBACK:
            return [Violation(sender, "rollback of committed positions")]
        effects: list[StageEffect] = []
        if case is Case.ROLLBACK:
            while self._queue and self._queue[-1].end > given.start:
                last = self._queue.pop()
                if last.start < given.start:
                    self._queue.append(last.part(0, given.start - last.start))
            if not self._queue:
                self._running = None
                effects = self._crop(given.start)
            self.clock = replace(self.clock, branch=Branch(given.branch))
        elif case is Case.OVERLAP:
            skip = self.expected - given.start
            given = given.part(skip, given.n - skip)
        elif case is not Case.APPLY:
            return effects
        require(2, given.start == self.expected, f"input at {given.start}, expected {self.expected}")
        self._nacked_at = -1
        self._queue.append(given)
        return effects

    def _ask_again(self) -> list[StageEffect]:
        """A gap: ask the producer, once for each place where we wait."""
        if self._nacked_at == self.expected:
            return []
        self._nacked_at = self.expected
        return [self._send_nack()]

    def _send_nack(self) -> Send:
        route = self.config.route
        upstream = self.config.index - 1
        to: PeerAddress | PeerId = self.owner if self.is_head else route[upstream].at
        layer = 0 if self.is_head else route[upstream].start
        return Send(to, Nack(self.session, layer, self.epoch, self.branch, self.expected))

    def _nack(self, sender: PeerId, m: Nack) -> list[StageEffect] | None:
        if m.epoch != self.epoch:
            return self._outsider(Case.HOLD if m.epoch > self.epoch else Case.FENCED, sender, m.epoch)
        if m.branch != self.branch:
            return []
        if self.is_tail:
            return self._resend_tokens(sender, m.have)
        if sender not in self._cursors:
            return [Violation(sender, "Nack from somebody who is not downstream")]
        self._cursors[sender] = m.have
        return self._pump()

    def _resend_tokens(self, sender: PeerId, have: int) -> list[StageEffect]:
        if sender == self.owner:
            self.orphan = False
            effects: list[StageEffect] = [Send(self.owner, event) for event in self._events if event.index >= have]
            return effects + self._release()
        last = self._events[-1] if self._events else None
        if sender in self._peers_of(0) and last is not None and last.index == have and not last.finish:
            token = NextToken(self.session, self.epoch, self.branch, last.index, last.token)
            return [Send(target, token) for target in self._heads() if target.peer == sender]
        return []

    def _release(self) -> list[StageEffect]:
        token, self._withheld = self._withheld, None
        return [] if token is None else [Send(target, token) for target in self._heads()]

    # --- links ----------------------------------------------------------------------------------------------

    def link_lost(self, peer: PeerId) -> list[StageEffect]:
        """A link fell. Only the owner reroutes: a stage names whom it lost."""
        if self.closed:
            return []
        if peer == self.owner:
            self.orphan = True
            return []
        neighbours = self._neighbours()
        if peer in neighbours:
            self._unsure.add(peer)
            if self.config.shadow:
                return []
            return [self._error(self.owner, self.epoch, "peer_unavailable", f"lost {neighbours[peer]}", accused=peer)]
        self._cursors.pop(peer, None)
        return []

    def link_up(self, peer: PeerId) -> list[StageEffect]:
        """A link that had fallen is back: what was in flight on it may be lost, so ask for it again."""
        if self.closed or peer not in self._unsure:
            return []
        self._unsure.discard(peer)
        route = self.config.route
        if self.is_head and peer == route[-1].at.peer:
            return [Send(route[-1].at, Nack(self.session, route[-1].start, self.epoch, self.branch, self.expected))]
        if not self.is_head and peer == route[self.config.index - 1].at.peer:
            return [self._send_nack()]
        return []

    # --- the engine -------------------------------------------------------------------------------------------

    def take(self) -> Input | None:
        """The next input to run, at most `chunk` positions; its result comes back through `done` or `failed`."""
        if not self._queue or self._running is not None:
            return None
        given = self._queue[0]
        if given.n > self.config.chunk:
            self._queue[0] = given.part(self.config.chunk, given.n - self.config.chunk)
            given = given.part(0, self.config.chunk)
        else:
            self._queue.popleft()
        require(2, given.start == self.length, f"taking {given.start} at length {self.length}")
        wanted = self.is_tail and not self.config.shadow and given.end >= self.config.known
        self._running = replace(given, sample=wanted)
        return self._running

    def done(self, given: Input, rows: Buffer, dtype: Dtype, drawn: Drawn | None) -> list[StageEffect]:
        """The engine applied `given`. `rows`: activations for the next stage; `drawn`: the tail's token."""
        if self.closed:
            return []
        if given is not self._running:
            return [CropKv(self.length)]  # the route changed while the engine ran: the result belongs to the past
        self._running = None
        self.length = given.end
        self.clock = self.clock.grown(self.config.index, given.end)
        if self.is_tail:
            return self._drawn(given, drawn)
        self._dtype = dtype
        self.journal.append(given.start, given.n, rows)
        return self._pump(rows, given)

    def failed(self, given: Input, detail: str) -> list[StageEffect]:
        """The engine could not apply `given` (unusable activations from upstream): nothing of it was kept."""
        if self.closed:
            return []
        if given is not self._running:
            return [CropKv(self.length)]
        self._running = None
        self._queue.clear()
        effects: list[StageEffect] = [CropKv(self.length)]
        accused = "" if self.is_head else self.config.route[self.config.index - 1].at.peer
        code = "protocol_violation" if accused else "internal_error"
        return [*effects, self._error(self.owner, self.epoch, code, detail, accused=accused)]

    def _drawn(self, given: Input, drawn: Drawn | None) -> list[StageEffect]:
        if drawn is None:
            return []
        index = given.end
        require(3, not self._events or self._events[-1].index < index, f"index {index} was drawn before")
        finish: Finish = ""
        if drawn.token in self.config.sampling.stop_ids:
            finish = "stop"
        elif index + 1 >= self.config.max_positions:
            finish = "length"
        lengths = self.clock.deltas(index)
        event = TokenEvent(
            self.session, self.epoch, self.branch, index, drawn.token, finish, lengths, drawn.logprob, drawn.top
        )
        self._events.append(event)
        if len(self.history) == index:
            self.history.append(drawn.token)
        effects: list[StageEffect] = []
        if not finish:
            self._withheld = NextToken(self.session, self.epoch, self.branch, index, drawn.token)
            if not self.orphan:
                effects = self._release()
        return [*effects, Send(self.owner, event)]

    # --- sending ----------------------------------------------------------------------------------------------

    def _pump(self, rows: Buffer = b"", fresh: Input | None = None) -> list[StageEffect]:
        """Send each downstream target what it lacks: fresh rows as they are, older ones from the journal."""
        effects: list[StageEffect] = []
        for target in self._downstream() if self._cursors else ():
            cursor = self._cursors.get(target.peer)
            while cursor is not None and cursor < self.clock.lengths[self.config.index]:
                if fresh is not None and cursor == fresh.start:
                    n, data = fresh.n, memoryview(rows)
                elif cursor >= self.journal.first and cursor < self.journal.end:
                    n, data = self.journal.read(cursor, self.config.chunk)
                else:
                    effects += self._journal_short(cursor)
                    break
                effects.append(Send(target, self._frame_out(cursor, n), data))
                cursor += n
            if cursor is not None:
                self._cursors[target.peer] = cursor
        return effects

    def _frame_out(self, start: int, n: int) -> Frame:
        lengths = self.clock.deltas(start + n, self.config.index + 1)
        tag = self.revision[:REVISION_TAG_BYTES]
        return Frame(self.session, self.end, tag, self.epoch, self.branch, start, n, self._dtype, self.hidden, lengths)

    def _journal_short(self, wanted: int) -> list[StageEffect]:
        if self._short:
            return []
        self._short = True
        detail = f"journal holds [{self.journal.first}, {self.journal.end}), {wanted} was wanted"
        return [self._error(self.owner, self.epoch, "journal_short", detail)]

    # --- small things -----------------------------------------------------------------------------------------

    def _crop(self, length: int) -> list[StageEffect]:
        if length >= self.length:
            return []
        self.length = length
        self.journal.crop(length)
        lengths = self.clock.lengths
        if self.config.index < len(lengths):
            cut = [min(held, length) if k == self.config.index else held for k, held in enumerate(lengths)]
            self.clock = replace(self.clock, lengths=tuple(cut))
        self._cursors = {peer: min(cursor, length) for peer, cursor in self._cursors.items()}
        return [CropKv(length)]

    def _opened(self) -> Send:
        m = self.config
        return Send(self.owner, StageOpened(self.session, self.layer, m.epoch, self.length, m.shadow))

    def _error(self, to: PeerId, epoch: int, code: str, message: str, accused: str = "") -> Send:
        return Send(to, StageError(self.session, self.layer, epoch, code, message, accused))

    def _downstream(self) -> tuple[PeerAddress, ...]:
        following = self.config.route[self.config.index + 1]
        return (following.at, *following.standbys)

    def _heads(self) -> tuple[PeerAddress, ...]:
        head = self.config.route[0]
        return (head.at, *head.standbys)

    def _peers_of(self, index: int) -> set[str]:
        return {self.config.route[index].at.peer}

    def _neighbours(self) -> dict[str, str]:
        route, index = self.config.route, self.config.index
        near = {route[index - 1].at.peer: "the stage upstream"}
        if len(route) > 1:
            near[route[(index + 1) % len(route)].at.peer] = "the stage downstream"
        near.pop(self.me, None)
        return near
