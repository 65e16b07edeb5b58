"""The owner's side of a session, as a pure state machine: opens stages, collects the token log, repairs the ring.

It knows no clock (`now` in seconds is an argument), no socket and no routing: when the ring is broken it asks for a
route and is given one. The token log it holds is the session; everything else can be rebuilt from it.

=========  ==================================================================================================
phase      what it waits for, and until when
=========  ==================================================================================================
NEW        `install`
RIDING     the next token, until `progress` runs out, or riders have not confirmed the epoch after `first_token_s`
           (then the same route gets a new epoch, without who was silent)
BROKEN     `install` or `route_failed`; or the time to ask for a route again
ENDED      nothing
=========  ==================================================================================================

RIDING and BROKEN together last at most `give_up_s` + `per_position_s` × log since the last token (invariant 6).
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.consistency.clock import Clock
from paceline.consistency.effects import Emit, Ended, NeedRoute, OwnerEffect, Send
from paceline.consistency.invariants import require
from paceline.consistency.recovery import RepairPlan, plan, recovery_line
from paceline.consistency.request import Failover, OwnerLimits, Phase, Request
from paceline.wire.errors import Fenced, PacelineError, SessionLost, from_code
from paceline.wire.ids import Branch, Epoch, PeerId, Revision, SessionId, epoch_after
from paceline.wire.messages import (
    CloseStage,
    FencedBy,
    Nack,
    OpenStage,
    Prompt,
    SessionMessage,
    Stage,
    StageError,
    StageOpened,
    TokenEvent,
)
from paceline.wire.session import SessionState

__all__ = ["Failover", "Owner", "OwnerLimits", "Phase", "Request", "farewell"]

FATAL = frozenset({"context_overflow", "invalid_request", "unsupported_model"})
"""Stage errors that another route would not mend."""

QUICK_REPAIRS = 3
"""So many repairs without a token in between begin at once; later ones wait, twice as long each time."""

SLOWEST_RETRY_S = 4.0
NEVER = float("inf")


def farewell(message: SessionMessage) -> CloseStage | None:
    """What a process answers to a stage that speaks of a session which nobody here owns any more; None to others."""
    if isinstance(message, StageOpened | TokenEvent | StageError | Nack):
        return CloseStage(message.session, message.epoch)
    return None


class Owner:
    """See the module's docstring. `owner_tag`: 32 bits that no other owner of this session has."""

    def __init__(self, request: Request, owner_tag: int, now: float, limits: OwnerLimits | None = None) -> None:
        self.request = request
        self.limits = limits or OwnerLimits()
        self.log: list[int] = list(request.prompt)
        self.route: tuple[Stage, ...] = ()
        self.epoch = Epoch(0)
        self.clock = Clock(request.revision, self.epoch, Branch(0), ())
        self.phase = Phase.NEW
        self.failovers: list[Failover] = []
        self.excluded: set[PeerId] = set()
        self._tag = owner_tag
        self._opened: set[tuple[str, int]] = set()
        self._interval_s = 0.0
        self._last_token_at = now
        self._progress_at = now
        self._opened_by = NEVER
        """Until when all riders of the epoch must have confirmed it; NEVER once they have."""
        self._retry_at = now
        self._stalls = self._breaks = 0
        self._steady = False
        self._broken: tuple[float, frozenset[PeerId], str] | None = None
        """Since when, who was lost until the next token, and the last reason: for the audit."""
        self._lost: frozenset[PeerId] = frozenset()
        """Lost since the last `install`: older bans are the chooser's to keep or to lift."""
        self._from_tokens = False
        self._repair: RepairPlan | None = None
        self._asked_events_at = -1

    @classmethod
    def resume(cls, state: SessionState, owner_tag: int, now: float, limits: OwnerLimits | None = None) -> Owner:
        """Take a session over from its exported state: the next `install` fences the previous owner."""
        prompt = tuple(state.log[: state.prompt_length])
        request = Request(
            SessionId(state.session),
            Revision(state.revision),
            state.model,
            prompt,
            state.max_positions,
            state.sampling,
            priority=state.priority,
        )
        owner = cls(request, owner_tag, now, limits)
        owner.log = list(state.log)
        owner.epoch = Epoch(state.epoch)
        owner.route = tuple(state.route)
        return owner

    def export(self) -> SessionState:
        """Small state from which `resume` goes on, in any process."""
        r = self.request
        prompt_length = len(r.prompt)
        return SessionState(
            r.session,
            r.revision,
            self.epoch,
            r.model,
            tuple(self.log),
            prompt_length,
            r.max_positions,
            r.sampling,
            self.route,
            r.priority,
        )

    @property
    def generated(self) -> int:
        return len(self.log) - len(self.request.prompt)

    # --- routes -----------------------------------------------------------------------------------------------

    def install(self, route: Sequence[Stage], now: float) -> list[OwnerEffect]:
        """Begin a new epoch on `route`: the first, or a repair that keeps the survivors of the last."""
        if self.phase is Phase.ENDED:
            return []
        if finish := self.request.finish_of(self.log):
            return self._end(finish=finish)  # resumed from a state that lacked nothing
        old, new = self.route, tuple(route)
        known = len(self.log)
        repair = plan(old, new, recovery_line(known, len(self.request.prompt)), from_tokens=self._from_tokens)
        self.epoch = epoch_after(self.epoch, self._tag)
        self.route, self._repair, self._from_tokens, self._lost = new, repair, False, frozenset()
        self.clock = Clock(self.request.revision, self.epoch, Branch(0), repair.lengths)
        self._opened.clear()
        self._asked_events_at = -1
        self.phase = Phase.RIDING
        self._arm(now, fed=known - min(repair.lengths))
        self._opened_by = now + self.limits.first_token_s
        effects: list[OwnerEffect] = [Send(peer, self._close()) for peer in self._left_behind(old, new)]
        for index, stage in enumerate(new):
            effects.append(Send(stage.at, self._open(index)))
            effects += [Send(standby, self._open(index, shadow=True)) for standby in stage.standbys]
        return effects + self._feed(repair.lengths[0])

    def _open(self, index: int, shadow: bool = False) -> OpenStage:
        r, repair = self.request, self._repair
        assert repair is not None
        return OpenStage(
            r.session,
            r.revision,
            self.epoch,
            0,
            index,
            self.route,
            repair.lengths,
            len(self.log),
            len(r.prompt),
            r.max_positions,
            r.sampling,
            r.chunk,
            shadow,
            r.trace,
            r.priority,
        )

    def _feed(self, start: int) -> list[OwnerEffect]:
        """Token ids: what the head lacks, and the tail's whole history where penalties need it."""
        session, tail, head = self.request.session, self.route[-1], self.route[0]
        effects: list[OwnerEffect] = []
        if self.request.sampling.needs_history and (len(self.route) > 1 or start > 0):
            history = Prompt(session, tail.start, self.epoch, 0, 0, tuple(self.log))
            effects += [Send(to, history) for to in (tail.at, *tail.standbys)]
        ids = Prompt(session, 0, self.epoch, 0, start, tuple(self.log[start:]))
        return effects + [Send(to, ids) for to in (head.at, *head.standbys)]

    def _left_behind(self, old: Sequence[Stage], new: Sequence[Stage]) -> list[PeerId]:
        staying = {stage.at.peer for stage in new} | {s.peer for stage in new for s in stage.standbys}
        gone = {stage.at.peer for stage in old} | {s.peer for stage in old for s in stage.standbys}
        return [PeerId(peer) for peer in sorted(gone - staying)]

    def route_failed(self, error: PacelineError, now: float) -> list[OwnerEffect]:
        """No route was found. It is asked for again until `give_up_s` without a token have passed."""
        if self.phase is not Phase.BROKEN and self.phase is not Phase.NEW:
            return []
        if self.phase is Phase.NEW:
            return self._end(error=error)
        if now >= self._give_up_at:
            return self._end(error=SessionLost(f"no ring could be built: {error}"))
        self._retry_at = now + self.limits.retry_route_s
        return []

    # --- events -----------------------------------------------------------------------------------------------

    def handle(self, sender: PeerId, message: SessionMessage, now: float) -> list[OwnerEffect]:
        """One message of this session."""
        if isinstance(message, FencedBy):
            return self._fenced(message)
        if self.phase is Phase.ENDED or message.epoch < self.epoch:
            return self._left_over(sender, message)
        if message.epoch != self.epoch:
            return []
        match message:
            case TokenEvent():
                return self._token(sender, message, now)
            case StageOpened():
                self._opened.add((sender, message.layer))
                self._opened_by = self._opened_by if self._silent() else NEVER
                return []
            case StageError():
                return self._stage_error(sender, message, now)
            case Nack():
                return self._nack(sender, message)
            case _:
                return []

    def _token(self, sender: PeerId, m: TokenEvent, now: float) -> list[OwnerEffect]:
        if self.phase is not Phase.RIDING or sender != self.route[-1].at.peer or m.index < len(self.log):
            return []
        if m.index > len(self.log):
            return self._ask_events()
        require(3, m.index == len(self.log), "token out of order")
        self.log.append(m.token)
        self.clock = self.clock.with_deltas(m.index, m.lengths)
        self._note_repaired(now)
        if self._steady:  # a gap with a prefill or a repair in it says nothing about the next one
            gap = now - self._last_token_at
            self._interval_s = 0.8 * self._interval_s + 0.2 * gap if self._interval_s else gap
        self._steady = True
        self._last_token_at = now
        self._opened_by = NEVER
        self._stalls = self._breaks = 0
        self._arm(now, fed=0)
        effects: list[OwnerEffect] = [Emit(m)]
        return effects + self._end(finish=m.finish) if m.finish else effects

    def _ask_events(self) -> list[OwnerEffect]:
        if self._asked_events_at == len(self.log):
            return []
        self._asked_events_at = len(self.log)
        tail = self.route[-1]
        return [Send(tail.at, Nack(self.request.session, tail.start, self.epoch, 0, len(self.log)))]

    def _left_over(self, sender: PeerId, m: SessionMessage) -> list[OwnerEffect]:
        """From a stage that missed its CloseStage: it is told again. Others are only late."""
        late = self.phase is not Phase.ENDED and sender in self._everybody()
        return [] if late or m.epoch > self.epoch else [Send(sender, self._close())]

    def _fenced(self, m: FencedBy) -> list[OwnerEffect]:
        if m.epoch <= self.epoch or self.phase is Phase.ENDED:
            return []
        # Closing is safe: whoever serves the other owner answers that this epoch is fenced, the rest is freed.
        return self._end(error=Fenced("another owner has taken this session over"))

    def _stage_error(self, sender: PeerId, m: StageError, now: float) -> list[OwnerEffect]:
        if sender not in self._riders():
            return []  # a standby's trouble is not the ring's
        if m.code in FATAL:
            return self._end(error=from_code(m.code, m.message, peer=sender))
        if m.code == "journal_short":
            self._from_tokens = True
            return self._break(frozenset(), "a journal was short", now)
        lost = PeerId(m.accused) if m.accused else sender
        if lost not in self._riders() or (self.phase is Phase.BROKEN and sender in self._lost):
            return []  # of two that accuse each other, the first is believed
        return self._break(frozenset({lost}), f"{m.code}: {m.message}", now)

    def _nack(self, sender: PeerId, m: Nack) -> list[OwnerEffect]:
        """The head lacks token ids, or the tail its history (or a standby of theirs)."""
        stage = self.route[-1] if m.layer == self.route[-1].start else self.route[0]
        if m.have >= len(self.log):
            return []
        ids = Prompt(self.request.session, stage.start, self.epoch, 0, m.have, tuple(self.log[m.have :]))
        return [Send(to, ids) for to in (stage.at, *stage.standbys) if to.peer == sender]

    def link_lost(self, peer: PeerId, now: float) -> list[OwnerEffect]:
        """The owner's own link to `peer` fell."""
        if self.phase in (Phase.NEW, Phase.ENDED) or peer not in self._riders():
            return []
        return self._break(frozenset({peer}), "connection lost", now)

    def migrate(self, route: Sequence[Stage], reason: str, now: float) -> list[OwnerEffect]:
        """Move to a better route while riding: a straggler, a drain. Survivors keep their KV."""
        if self.phase is not Phase.RIDING:
            return []
        self._broken = (now, frozenset(), reason)
        self._steady = False
        return self.install(route, now)

    def cancel(self) -> list[OwnerEffect]:
        """The user is done with it."""
        return [] if self.phase is Phase.ENDED else self._end(finish="cancelled")

    # --- time -------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` must be called at the latest (invariant 6: there always is one until the end)."""
        if self.phase is Phase.BROKEN:
            return min(self._retry_at, self._give_up_at)
        return min(self._progress_at, self._opened_by) if self.phase is Phase.RIDING else NEVER

    def tick(self, now: float) -> list[OwnerEffect]:
        """Deadlines that have passed."""
        if self.phase not in (Phase.RIDING, Phase.BROKEN) or now < self.next_deadline():
            return []
        if now >= self._give_up_at:
            waited = f"{now - self._last_token_at:.1f}"
            return self._end(error=SessionLost(f"no token for {waited} s, through {self._breaks} repairs"))
        if self.phase is Phase.BROKEN:
            return self._ask_route(now)
        if now < self._progress_at:
            return self._break(self._silent(), "the epoch was not confirmed in time", now)
        self._stalls += 1
        return self._break(self._silent(), "no token before the deadline", now)

    def _silent(self) -> frozenset[PeerId]:
        """Riders that have not confirmed the epoch."""
        riders = {(PeerId(stage.at.peer), stage.start) for stage in self.route}
        return frozenset(peer for peer, _ in riders.difference(self._opened))

    @property
    def _give_up_at(self) -> float:
        return self._last_token_at + self.limits.give_up_s + self.limits.per_position_s * len(self.log)

    def _arm(self, now: float, fed: int) -> None:
        """Set the progress deadline: `fed` positions must be prefilled before the next token."""
        limits = self.limits
        if self.generated == 0 or fed > 1:
            wait = limits.first_token_s + limits.per_position_s * fed
        else:
            wait = max(limits.progress_floor_s, limits.progress_factor * self._interval_s)
        self._progress_at = min(now + wait * 2**self._stalls, self._give_up_at)

    def _break(self, lost: frozenset[PeerId], reason: str, now: float) -> list[OwnerEffect]:
        """The ring is broken. A route is asked for at once, or after a pause where repairs keep failing."""
        since, before = (now, frozenset[PeerId]()) if self._broken is None else self._broken[:2]
        self._broken = (since, before | lost, reason)
        self._lost |= lost
        self.excluded |= lost
        self._steady = False
        if self.phase is Phase.BROKEN:
            return []  # a route has been asked for, or will be
        self.phase = Phase.BROKEN
        self._breaks += 1
        if self._breaks <= QUICK_REPAIRS:
            return self._ask_route(now)
        pause = self.limits.retry_route_s * 2 ** min(self._breaks - QUICK_REPAIRS, 16)
        self._retry_at = now + min(pause, SLOWEST_RETRY_S)
        return []

    def _ask_route(self, now: float) -> list[OwnerEffect]:
        assert self._broken is not None
        self._retry_at = now + self.limits.give_up_s
        return [NeedRoute(self._lost, self._broken[2])]

    def _note_repaired(self, now: float) -> None:
        if self._broken is None or self._repair is None:
            return
        since, lost, reason = self._broken
        self._broken = None
        done = Failover(
            len(self.log) - 1,
            self.epoch >> 32,
            tuple(sorted(lost)),
            reason,
            self._repair.tier,
            self._repair.kept,
            now - since,
        )
        self.failovers.append(done)

    # --- small things -----------------------------------------------------------------------------------------

    def _riders(self) -> set[str]:
        return {stage.at.peer for stage in self.route}

    def _everybody(self) -> set[str]:
        return self._riders() | {standby.peer for stage in self.route for standby in stage.standbys}

    def _close(self) -> CloseStage:
        return CloseStage(self.request.session, self.epoch)

    def _end(self, finish: str = "", error: PacelineError | None = None) -> list[OwnerEffect]:
        self.phase = Phase.ENDED
        peers = sorted(self._everybody())
        effects: list[OwnerEffect] = [Send(PeerId(peer), self._close()) for peer in peers]
        return [*effects, Ended(finish, error)]
