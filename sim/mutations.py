"""Ways to break the protocol on purpose. A checker that cannot fail proves nothing: each must be caught by a seed.

A mutation replaces one attribute of the real machines while simulations run, and puts it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from paceline.consistency import owner as owner_module
from paceline.consistency import stage as stage_module
from paceline.consistency.decision import Case, Claim, Standing, decide
from paceline.consistency.effects import Emit
from paceline.consistency.fences import Fences
from paceline.consistency.inputs import Inbox, Input
from paceline.consistency.invariants import InvariantBroken
from paceline.consistency.journal import Journal
from paceline.consistency.outbox import Outbox
from paceline.consistency.owner import Owner, Phase
from paceline.consistency.seat import Seat
from paceline.consistency.stage import StageMachine
from paceline.consistency.tail import TailLog
from paceline.sim.checks import Broken
from paceline.wire.ids import Epoch

CAUGHT = (Broken, InvariantBroken)
Patch = tuple[Any, str, Any]
Simulate = Callable[[int], object]
"""Simulates one seed; raises what is in `CAUGHT` where a promise is broken."""


@dataclass(frozen=True)
class Mutation:
    """`patches`: ``(object, attribute, replacement)``."""

    name: str
    patches: tuple[Patch, ...]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The protocol is broken inside the block."""
        originals = [(where, name, vars(where)[name]) for where, name, _ in self.patches]
        for where, name, value in self.patches:
            setattr(where, name, value)
        try:
            yield
        finally:
            for where, name, value in originals:
                setattr(where, name, value)


# --- what the broken versions do --------------------------------------------------------------------------------


def _decide_without(case: Case) -> Callable[[Standing, Claim], Case]:
    """The table without one row."""

    def mutated(at: Standing, claim: Claim) -> Case:
        found = decide(at, claim)
        if found is not case:
            return found
        if case is Case.WRONG_REVISION:
            return decide(at, claim._replace(revision_tag=None))
        return decide(at, claim._replace(epoch=at.epoch))

    return mutated


def _accept_as_if_next(case: Case) -> Callable[..., Any]:
    """Positions that are not the next ones are applied as if they were."""
    original = StageMachine._accept

    def mutated(self: StageMachine, found: Case, sender: Any, given: Input) -> Any:
        if found is case:
            return original(self, Case.APPLY, sender, replace(given, start=self.expected))
        return original(self, found, sender, given)

    return mutated


_install, _crop = StageMachine._install, StageMachine._crop
_adopt, _begin = StageMachine._adopt, TailLog.begin
_rewind, _read, _append = Outbox.rewind, Journal.read, Journal.append


def _install_anything(self: StageMachine, sender: Any, m: Any) -> Any:
    if m.epoch < self.epoch:
        self.clock = replace(self.clock, epoch=Epoch(m.epoch - 1))
    return _install(self, sender, m)


def _crop_silently(self: StageMachine, length: int) -> Any:
    _crop(self, length)
    return []


def _finish_always(self: Inbox, given: Input, applied: bool) -> bool:
    self._busy = self._running = None
    self.length = given.end
    return True


def _begin_silently(self: TailLog, m: Any, length: int, lengths: tuple[int, ...]) -> None:
    _begin(self, m, length, lengths)


def _append_unbounded(self: Journal, start: int, n: int, data: Any) -> None:
    budget, self._budget = self._budget, 1 << 40
    _append(self, start, n, data)
    self._budget = budget


def _token_unseen(self: Owner, sender: Any, m: Any, now: float) -> Any:
    if self.phase is not Phase.RIDING or sender != self.route[-1].at.peer:
        return []
    self.log.append(m.token)
    self._last_token_at = now
    self._arm(now, fed=0)
    ended = self._end(finish=m.finish) if m.finish else []
    return [Emit(m), *ended]


def _adopt_as_rider(self: StageMachine, sender: Any, m: Any) -> None:
    fields = {name: getattr(m, name) for name in m.__struct_fields__} | {"shadow": False}
    _adopt(self, sender, type(m)(**fields))


MUTATIONS = (
    Mutation("skip the fence", ((stage_module, "decide", _decide_without(Case.FENCED)),)),
    Mutation(
        "apply frames of an epoch before it is configured", ((stage_module, "decide", _decide_without(Case.HOLD)),)
    ),
    Mutation("accept another revision", ((stage_module, "decide", _decide_without(Case.WRONG_REVISION)),)),
    Mutation("accept a gap", ((StageMachine, "_accept", _accept_as_if_next(Case.GAP)),)),
    Mutation("apply duplicates", ((StageMachine, "_accept", _accept_as_if_next(Case.DUPLICATE)),)),
    Mutation(
        "install an older epoch",
        ((StageMachine, "_install", _install_anything), (Fences, "over", lambda self, session, epoch: None)),
    ),
    Mutation("open again what was closed", ((Fences, "over", lambda self, session, epoch: None),)),
    Mutation("forget the crop of the KV", ((StageMachine, "_crop", _crop_silently),)),
    Mutation("keep the queue over a new epoch", ((Inbox, "clear", lambda self, keeps=0: None),)),
    Mutation("leave the token unsaid that a new epoch lacks", ((TailLog, "begin", _begin_silently),)),
    Mutation("keep a result of the past", ((Inbox, "finish", _finish_always),)),
    Mutation("resend from one position too late", ((Outbox, "rewind", lambda self, p, h: _rewind(self, p, h + 1)),)),
    Mutation(
        "read the journal off by one",
        ((Journal, "read", lambda self, s, m: (1, _read(self, max(self.first, s - 1), 1)[1])),),
    ),
    Mutation("journal without bound", ((Journal, "append", _append_unbounded),)),
    Mutation("never ask for what is missing", ((StageMachine, "_ask_again", lambda self: []),)),
    Mutation("recovery line one too high", ((owner_module, "recovery_line", lambda known, prompt: known),)),
    Mutation(
        "the tail skips the first token it owes",
        ((StageMachine, "_samples", lambda self, given: self.seat.is_tail and given.end > self.config.known),),
    ),
    Mutation(
        "draw with penalties before the log is known", ((StageMachine, "_lacks_history", lambda self, given: False),)
    ),
    Mutation("a standby sends", ((StageMachine, "_adopt", _adopt_as_rider),)),
    Mutation("anybody may feed a stage", ((Seat, "feeds_me", lambda self, peer: True),)),
    Mutation("tokens are taken in whatever order they come", ((Owner, "_token", _token_unseen),)),
    Mutation(
        "owners share epochs", ((owner_module, "epoch_after", lambda epoch, tag: Epoch(((epoch >> 32) + 1) << 32)),)
    ),
    Mutation("the owner never looks at the clock", ((Owner, "next_deadline", lambda self: float("inf")),)),
)


def catch(mutation: Mutation, simulate: Simulate, first: int, runs: int) -> tuple[int, str] | None:
    """The first seed that catches it, and how; None where it survives."""
    with mutation.applied():
        for seed in range(first, first + runs):
            try:
                simulate(seed)
            except CAUGHT as error:
                return seed, f"{type(error).__name__}: {error}"
    return None


def mutations_command(mutations: Sequence[Mutation], simulate: Simulate, first: int, runs: int) -> int:
    """Print the seed that catches each mutation. Non-zero where one survives."""
    survived = 0
    for mutation in mutations:
        found = catch(mutation, simulate, first, runs)
        survived += found is None
        how = f"caught by seed {found[0]}: {found[1][:110]}" if found else f"SURVIVED {runs} seeds"
        print(f"{mutation.name:52} {how}", flush=True)
    print(f"{len(mutations) - survived} of {len(mutations)} mutations caught")
    return 1 if survived else 0
