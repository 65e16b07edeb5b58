"""One stage's part in one session, as a pure state machine.

Inputs: messages with their sender, links that fall and return, results of the engine. Outputs: effects. It knows no
clock, socket, tensor or thread. The shell (node/) feeds it between two steps of its engine, performs the effects, and
runs what `take` hands out. KV length here and in the shard are the same number (invariant 2).

Legal life: created by an OpenStage → open (any number of epochs, each greater) → closed. A closed machine does nothing.
"""

from __future__ import annotations

from paceline.consistency.clock import Clock
from paceline.consistency.decision import Case, Claim, Standing, decide
from paceline.consistency.effects import CropKv, FreeKv, Send, StageEffect, Violation
from paceline.consistency.inputs import Drawn, Inbox, Input
from paceline.consistency.journal import Spill
from paceline.consistency.outbox import Outbox, Piece
from paceline.consistency.recovery import kept
from paceline.consistency.seat import Asked, Seat
from paceline.consistency.tail import TailLog
from paceline.wire.codec import Buffer
from paceline.wire.ids import REVISION_TAG_BYTES, Branch, Epoch, PeerId, Revision, SessionId, same_owner
from paceline.wire.messages import (
    CloseStage,
    Dtype,
    FencedBy,
    Frame,
    Nack,
    NextToken,
    OpenStage,
    PeerAddress,
    Prompt,
    SessionMessage,
    StageError,
    StageOpened,
)

__all__ = ["Drawn", "Input", "StageMachine"]


class StageMachine:
    """See the module's docstring. `layer`: first layer of the span; `hidden`: width of activation rows; `budget`,
    `spill`: of the `journal`, which is what it sent. `history`, at a tail: the log as far as it is known there.
    """

    def __init__(self, me: PeerId, first: OpenStage, hidden: int, budget: int, spill: Spill | None = None) -> None:
        self.me = me
        self.session = SessionId(first.session)
        self.revision = Revision(first.revision)
        self.layer = first.route[first.index].start
        self.end = first.route[first.index].end
        self.hidden = hidden
        self.closed = self.orphan = self._installed = False
        self.clock = Clock(self.revision, Epoch(0), Branch(0), ())
        self.config = first
        self.seat = Seat(first, me)
        self.owner = PeerId("")
        self._inbox = Inbox()
        self._outbox = Outbox(budget, spill)
        self.journal = self._outbox.journal
        self._dtype: Dtype = "f32"
        self._tail = TailLog()
        self.history = self._tail.history
        self._cut, self._asked = 0, Asked()

    # --- where it stands ------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return self.clock.epoch

    @property
    def branch(self) -> int:
        return self.clock.branch

    @property
    def length(self) -> int:
        """Positions in the KV."""
        return self._inbox.length

    @property
    def expected(self) -> int:
        """The next position this stage can accept."""
        return self._inbox.expected

    @property
    def has_work(self) -> bool:
        """True where `take` gives something."""
        given = self._inbox.peek()
        return given is not None and not self.closed and not self._lacks_history(given)

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
        return [Violation(sender, f"a stage is not sent {type(message).__name__}")]

    def _install(self, sender: PeerId, m: OpenStage) -> list[StageEffect]:
        if m.epoch < self.epoch or (m.epoch == self.epoch and sender != self.owner and self._installed):
            return [Send(sender, FencedBy(self.session, self.epoch))]
        if m.epoch == self.epoch and self._installed:
            return [self._opened()]
        if m.revision != self.revision:
            return [self._error(sender, m.epoch, "wrong_revision", "this stage serves another revision")]
        if m.route[m.index].start != self.layer:
            return [Violation(sender, "OpenStage for another stage")]
        other = self._installed and (sender != self.owner or not same_owner(Epoch(m.epoch), Epoch(self.epoch)))
        fenced = [Send(self.owner, FencedBy(self.session, m.epoch))] if other else []
        length = kept(m, self.end, self.journal.first, draws=self._draws(m))
        self._inbox.clear(length)
        cropped = self._crop(length)
        self._adopt(sender, m)
        again = self._tail.begin(m, self.length, self.clock.deltas(m.known))
        said = [] if again is None else [Send(sender, again), *self._release()]
        return [*fenced, *cropped, self._opened(), *said, *self._pump()]

    def _draws(self, m: OpenStage) -> bool:
        """True where the token that the owner of a new epoch waits for was drawn here, or is being drawn."""
        drawn = self._tail.drew(m.known) or self._inbox.draws(m.known)
        return drawn and not m.shadow and m.sampling == self.config.sampling

    def _adopt(self, sender: PeerId, m: OpenStage) -> None:
        self.end = m.route[m.index].end
        self.config, self.seat = m, Seat(m, self.me)
        self.owner, self._installed, self.orphan = sender, True, False
        lengths = (*m.lengths[: m.index], self.length, *m.lengths[m.index + 1 :])
        self.clock = Clock(self.revision, Epoch(m.epoch), Branch(m.branch), lengths)
        self._cut, self._asked = 0, Asked()
        silent = self.seat.is_tail or m.shadow
        self._outbox.begin(() if silent else self.seat.downstream, 0 if silent else m.lengths[m.index + 1])

    def _close(self, sender: PeerId, m: CloseStage) -> list[StageEffect]:
        if m.epoch < self.epoch:
            return [Send(sender, FencedBy(self.session, self.epoch))]
        if m.epoch == self.epoch and sender != self.owner:
            return [Violation(sender, "CloseStage from somebody who does not own the session")]
        return self.free()

    def free(self) -> list[StageEffect]:
        """End the session here: closed by its owner, or abandoned by it."""
        self.closed = True
        self._inbox.clear()
        self.journal.clear()
        return [FreeKv()]

    def _frame(self, sender: PeerId, m: Frame, payload: Buffer) -> list[StageEffect] | None:
        claim = Claim(m.revision_tag, m.epoch, m.branch, m.start, m.n)
        case = decide(self.standing(), claim)
        if case in (Case.HOLD, Case.FENCED, Case.WRONG_REVISION):
            return self._outsider(case, sender, m.epoch)
        if self.seat.is_head or not self.seat.feeds_me(sender):
            return [Violation(sender, f"frame for layer {m.layer} from somebody who is not upstream")]
        if m.hidden != self.hidden:
            return [Violation(sender, f"frame of width {m.hidden}, the model's is {self.hidden}")]
        given = Input(m.epoch, m.branch, m.start, m.n, rows=payload, dtype=m.dtype)
        effects = self._accept(case, sender, given)
        if m.branch == self.branch:
            self.clock = self.clock.with_deltas(m.start + m.n, m.lengths[: self.config.index])
        return effects

    def _prompt(self, sender: PeerId, m: Prompt) -> list[StageEffect] | None:
        case = decide(self.standing(), Claim(None, m.epoch, m.branch, m.start, len(m.ids)))
        if case in (Case.HOLD, Case.FENCED):
            return self._outsider(case, sender, m.epoch)
        if sender != self.owner:
            return [Violation(sender, "Prompt from somebody who does not own the session")]
        if self.seat.is_tail and case is not Case.STALE_BRANCH:
            self._tail.learn(m.start, m.ids)
        if not self.seat.is_head:
            return []
        return self._accept(case, sender, Input(m.epoch, m.branch, m.start, len(m.ids), ids=m.ids))

    def _next_token(self, sender: PeerId, m: NextToken) -> list[StageEffect] | None:
        case = decide(self.standing(), Claim(None, m.epoch, m.branch, m.index, 1))
        if case in (Case.HOLD, Case.FENCED):
            return self._outsider(case, sender, m.epoch)
        if not self.seat.is_head or not self.seat.feeds_me(sender):
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
        if case in (Case.STALE_BRANCH, Case.DUPLICATE):
            return []
        if case is Case.OVERLAP:
            skip = self.expected - given.start
            given = given.part(skip, given.n - skip)
        effects = self._roll_back(given) if case is Case.ROLLBACK else []
        self._asked.missing_from = -1
        self._inbox.push(given)
        return effects + self._ask_history()

    def _roll_back(self, given: Input) -> list[StageEffect]:
        """A new branch begins at `given`: what it replaces was never committed."""
        self._cut = given.start
        effects = self._crop(given.start)
        self.clock = self.clock.cut(Branch(given.branch), given.start)
        self._tail.roll_back(given.start)
        return effects

    def _ask_again(self) -> list[StageEffect]:
        """A gap: ask the producer, once for each place where we wait."""
        if self._asked.missing_from == self.expected:
            return []
        self._asked.missing_from = self.expected
        # Of a head, the owner: it has every token that the tail drew, and the tail may be gone.
        return [self._please(self.owner, 0, self.expected) if self.seat.is_head else self._ask_upstream()]

    def _ask_upstream(self) -> Send:
        return self._please(self.seat.upstream.at, self.seat.upstream.start, self.expected)

    def _please(self, to: PeerAddress | PeerId, layer: int, have: int) -> Send:
        return Send(to, Nack(self.session, layer, self.epoch, self.branch, have))

    def _nack(self, sender: PeerId, m: Nack) -> list[StageEffect] | None:
        if m.epoch != self.epoch:
            return self._outsider(Case.HOLD if m.epoch > self.epoch else Case.FENCED, sender, m.epoch)
        if self.seat.is_tail:
            return self._resend_tokens(sender, m.have)
        if self.seat.shadow or sender not in self.seat.downstream:
            return [Violation(sender, "Nack from somebody who is not downstream")]
        if m.branch > self.branch:
            return []
        self._outbox.rewind(sender, m.have if m.branch == self.branch else min(m.have, self._cut))
        return self._pump()

    def _lacks_history(self, given: Input) -> bool:
        """A tail with penalties draws nothing before it knows the whole log (invariant 5)."""
        return self._samples(given) and self.config.sampling.needs_history and len(self.history) < given.end

    def _ask_history(self) -> list[StageEffect]:
        given = self._inbox.peek()
        if given is None or self._asked.history or not self._lacks_history(given):
            return []
        self._asked.history = True
        return [self._please(self.owner, self.layer, len(self.history))]

    def _resend_tokens(self, sender: PeerId, have: int) -> list[StageEffect]:
        if sender == self.owner:
            return self._owner_is_back(have)
        token, to = self._tail.token_at(have), self.seat.heads.get(sender)
        return [] if to is None or token is None else [Send(to, token)]

    def _owner_is_back(self, have: int) -> list[StageEffect]:
        self.orphan = False
        return [*(Send(self.owner, event) for event in self._tail.events_from(have)), *self._release()]

    def _release(self) -> list[StageEffect]:
        """The token that the head waits for; withheld while nobody would hear the ring's tokens."""
        token = None if self.orphan else self._tail.release()
        return [] if token is None else [Send(target, token) for target in self.seat.heads.values()]

    # --- links ----------------------------------------------------------------------------------------------

    def link_lost(self, peer: PeerId) -> list[StageEffect]:
        """A link fell. Only the owner reroutes: a stage names whom it lost."""
        if self.closed:
            return []
        if peer == self.owner:
            self.orphan = True
            return []
        near = self.seat.neighbours.get(peer)
        if near is None:
            self._outbox.forget(peer)
            return []
        self._asked.unsure.add(peer)
        if self.seat.shadow:
            return []
        return [self._error(self.owner, self.epoch, "peer_unavailable", f"lost {near}", accused=peer)]

    def link_up(self, peer: PeerId) -> list[StageEffect]:
        """A link that had fallen is back: what was in flight on it may be lost, so ask for it, or send it, again."""
        if self.closed:
            return []
        if peer == self.owner and self.orphan:
            # Its process is back, but is the session still its own? Whoever owns it no more answers with CloseStage.
            return [self._opened(), *self._owner_is_back(self.expected)]
        if peer not in self._asked.unsure:
            return []
        self._asked.unsure.discard(peer)
        return [self._ask_upstream()] if self.seat.feeds_me(peer) else []

    # --- the engine -------------------------------------------------------------------------------------------

    def take(self) -> Input | None:
        """The next input to run, at most `chunk` positions; its result comes back through `done` or `failed`.

        One at a time: None until the last result came, even where that is no longer wanted.
        """
        if not self.has_work:
            return None
        return self._inbox.take(self.config.chunk, self._samples)

    def _samples(self, given: Input) -> bool:
        """A tail draws after the log's last token that the owner knows, and after every one behind it."""
        return self.seat.is_tail and not self.seat.shadow and given.end >= self.config.known

    def done(self, given: Input, rows: Buffer, dtype: Dtype, drawn: Drawn | None) -> list[StageEffect]:
        """The engine applied `given`. `rows`: activations for the next stage; `drawn`: the tail's token."""
        if self.closed:
            return []
        if not self._inbox.finish(given, applied=True):
            return [CropKv(self.length)]  # the route changed while the engine ran: the result belongs to the past
        self.clock = self.clock.grown(self.config.index, given.end)
        if self.seat.is_tail:
            return [*(self._drawn(given, drawn) if drawn else ()), *self._ask_history()]
        self._dtype = dtype
        self.journal.append(given.start, given.n, rows)
        return self._pump(Piece(given.start, given.n, rows))

    def failed(self, given: Input, detail: str) -> list[StageEffect]:
        """The engine could not apply `given` (unusable activations from upstream): nothing of it was kept."""
        if self.closed:
            return []
        if not self._inbox.finish(given, applied=False):
            return [CropKv(self.length)]
        self._inbox.clear()
        accused = "" if self.seat.is_head else self.seat.upstream.at.peer
        code = "protocol_violation" if accused else "internal_error"
        return [CropKv(self.length), self._error(self.owner, self.epoch, code, detail, accused=accused)]

    def _drawn(self, given: Input, drawn: Drawn) -> list[StageEffect]:
        event = self._tail.draw(self.config, self.branch, given.end, drawn, self.clock.deltas(given.end))
        return [*self._release(), Send(self.owner, event)]

    # --- sending ----------------------------------------------------------------------------------------------

    def _pump(self, fresh: Piece | None = None) -> list[StageEffect]:
        """Send each downstream target what it lacks: fresh rows as they are, older ones from the journal."""
        effects: list[StageEffect] = []
        for peer, target in self.seat.downstream.items():
            pieces, reached = self._outbox.due(peer, self.length, self.config.chunk, fresh)
            effects += [Send(target, self._frame_out(piece.start, piece.n), piece.rows) for piece in pieces]
            if reached < self.length:
                effects += self._journal_short(peer, reached)
        return effects

    def _frame_out(self, start: int, n: int) -> Frame:
        lengths = self.clock.deltas(start + n, self.config.index + 1)
        tag = self.revision[:REVISION_TAG_BYTES]
        return Frame(self.session, self.end, tag, self.epoch, self.branch, start, n, self._dtype, self.hidden, lengths)

    def _journal_short(self, peer: str, wanted: int) -> list[StageEffect]:
        """The next stage cannot go on: only the owner can help. A standby is left behind: the ring does not need it."""
        if peer != self.seat.next.at.peer:
            self._outbox.forget(peer)
            return []
        if self._asked.repair:
            return []
        self._asked.repair = True
        detail = f"journal holds [{self.journal.first}, {self.journal.end}), {wanted} was wanted"
        return [self._error(self.owner, self.epoch, "journal_short", detail)]

    # --- small things -----------------------------------------------------------------------------------------

    def _crop(self, length: int) -> list[StageEffect]:
        """Hold nothing from `length` on."""
        if not self._inbox.crop(length):
            return []
        self._outbox.crop(length)
        return [CropKv(length)]

    def _opened(self) -> Send:
        return Send(self.owner, StageOpened(self.session, self.layer, self.epoch, self.length, self.seat.shadow))

    def _error(self, to: PeerId, epoch: int, code: str, message: str, accused: str = "") -> Send:
        return Send(to, StageError(self.session, self.layer, epoch, code, message, accused))
