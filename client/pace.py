"""Is a rider slower than his offer said, for long enough to be left behind? Pure: knows what traced tokens tell.

Each token tells how long every stage had it (waiting and computing) and how long the hop before it took. A stage is
compared with what its offer predicted; what all stages of the ring have in common (a busy machine, a client's optimism)
is taken off first, or every ring would look slow and sessions would flap between equals. A hop spans two clocks, so it
is compared with the quickest of its own; what it is longer by, and by more than the ring's other hops, is charged in
halves to both ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from paceline.routing.plan import RingPlan
from paceline.wire.ids import PeerId
from paceline.wire.messages import StageTime

WINDOW = 24
"""Tokens that a stage is judged by."""

RECENT, MOST = 8, 7
"""So many of the latest tokens must have been slow: one pause is no straggler."""

FACTOR, SLACK_S = 2.0, 0.003
"""Slow: over twice what was to be expected, and 3 ms."""

GAIN = 0.85
"""A move must bring a token's time down to this share."""

FIRST_PAUSE_S = 2.0
"""Between two moves of one session; doubled each time, so that nobody is chased around."""

MOVE_S = 0.3
"""What a move costs beside the prefill of the new stages."""


@dataclass(slots=True)
class _Stage:
    peer: PeerId
    expected_s: float
    spent_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    hop_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    least_hop_s: float = float("inf")

    def late_s(self, at: int) -> float:
        """By how much the hop to it took longer than the quickest."""
        return self.hop_s[at] - self.least_hop_s


class Pace:
    """One session's. `begin` at each change of route, `note` at each token."""

    def __init__(self) -> None:
        self._stages: list[_Stage] = []
        self._skip = 0
        self._alone_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._quiet_until = 0.0

    def begin(self, plan: RingPlan) -> None:
        """Another route: what is known of riders that stay is kept, but the first tokens carry the repair."""
        known = {stage.peer: stage for stage in self._stages}
        self._stages = []
        for stage in plan.stages:
            fresh = _Stage(PeerId(stage.peer), stage.compute_s)
            if fresh.peer in known:
                fresh.spent_s = known[fresh.peer].spent_s
            self._stages.append(fresh)
        self._skip, self._alone_s = 2, 0.0

    def note(self, timings: Sequence[StageTime]) -> None:
        """One token's times."""
        if len(timings) != len(self._stages):
            return
        if self._skip:
            self._skip -= 1
            return
        for stage, (hop_us, queue_us, compute_us) in zip(self._stages, timings, strict=True):
            stage.spent_s.append((queue_us + compute_us) / 1e6)
            stage.hop_s.append(hop_us / 1e6)
            stage.least_hop_s = min(stage.least_hop_s, hop_us / 1e6)
        first = self._stages[0].spent_s
        if len(self._stages) == 1 and not self._alone_s and len(first) >= RECENT:
            self._alone_s = median(first)

    def token_s(self) -> float:
        """A token's time around the ring, of the latest tokens."""
        return sum(median(list(s.spent_s)[-RECENT:]) + median(list(s.hop_s)[-RECENT:]) for s in self._stages)

    def p95_s(self) -> dict[PeerId, float]:
        """Seconds per token at each stage, the 95th percentile of the window."""
        return {s.peer: sorted(s.spent_s)[int(0.95 * (len(s.spent_s) - 1))] for s in self._stages if s.spent_s}

    def slow(self, now: float) -> dict[PeerId, float]:
        """Stragglers with their excess in seconds per token; empty while a move is recent or too little is known."""
        if now < self._quiet_until or any(len(stage.hop_s) < RECENT for stage in self._stages):
            return {}
        common = self._common()
        found = {}
        for at, stage in enumerate(self._stages):
            expected = stage.expected_s * common
            over = [taken for taken in self._taken(at) if taken > FACTOR * expected + SLACK_S]
            if len(over) >= MOST:
                found[stage.peer] = median(self._taken(at)) - expected
        return found

    def moved(self, now: float) -> None:
        """The session has changed its ring because of this."""
        self._quiet_until = now + self._pause_s
        self._pause_s *= 2.0

    def _common(self) -> float:
        """How much slower than offered even the best stage is, at least 1."""
        if len(self._stages) == 1:
            (stage,) = self._stages
            return max(1.0, self._alone_s / max(stage.expected_s, 1e-9))
        ratios = [median(list(s.spent_s)[-RECENT:]) / max(s.expected_s, 1e-9) for s in self._stages]
        return max(1.0, min(ratios))

    def _taken(self, at: int) -> list[float]:
        """Seconds that stage `at` is answerable for, of the latest tokens."""
        stage, after = self._stages[at], self._stages[(at + 1) % len(self._stages)]
        spent = list(stage.spent_s)[-RECENT:]
        if stage is after:
            return spent
        late = [(self._late(stage, -k) + self._late(after, -k)) / 2.0 for k in range(RECENT, 0, -1)]
        return [a + b for a, b in zip(spent, late, strict=True)]

    def _late(self, stage: _Stage, at: int) -> float:
        """By how much one hop took longer than usual and than the others of its token."""
        return stage.late_s(at) - min(other.late_s(at) for other in self._stages)


def saved_s(old: RingPlan, new: RingPlan, slow: Mapping[PeerId, float], token_s: float, done: int, left: int) -> float:
    """Seconds that moving from `old` to `new` saves until the session's end, its own cost counted twice; 0 where it is
    not worth it. `token_s`: a token's time now; `done`, `left`: tokens of the log, and at most to come.
    """
    then_s = token_s - sum(slow.values()) + (new.token_s - old.token_s)
    if then_s > GAIN * token_s:
        return 0.0
    fresh = sum(stage.prefill_s_per_position for stage in new.stages if not stage.kept)
    return max(0.0, (token_s - then_s) * left - 2.0 * (MOVE_S + fresh * done))
