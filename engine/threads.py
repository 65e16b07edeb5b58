"""On how many threads a small step runs: on as many as are fastest, on this machine as it is now.

A decode step reads weights, which two free cores do faster than one. Beside other work it is the other way round: a
step that waits at barriers for a thread which has no core takes several times as long. Only trying tells, so now and
then a step runs on another number of threads than the best, and is compared with the two steps of the best beside it:
whatever slows the machine for longer than a step slows all three. What trials have told is added up (Page's CUSUM test,
Biometrika 1954), so that one that a burst has hit decides nothing, and many small wins do. Knows counts and seconds; no
tensors, no clock.
"""

from __future__ import annotations

import os
from math import log

CLEARLY = log(1 / 0.95)
"""A trial speaks for its number by what it gains beyond 5 % (logarithms of times)."""
MOST_TOLD = 0.4
"""… and by no more than this either way: a step that met a burst took several times as long, and says little."""
ENOUGH = 1.0
"""Another number is taken once trials have told so much for it: three good ones."""
PROBE_EVERY, RARELY = 24, 96
"""Steps from one trial to the next; after each that was lost twice as many, up to the second figure. While trials speak
for a number they follow each other, every other step."""
SURPRISE, SPREADS, SURPRISED = log(1.4), 3.0, 3
"""Steps in a row that take so much more or less than usual, and so many times what they usually differ by: the machine
has changed, try again now."""
CALMER = log(1.15)
"""What is usual has fallen by so much since the last trial was lost: others have gone, try again now."""
FADING = 1 / 12
"""What one step adds to what is usual."""


class ThreadChoice:
    """One kind of step; see the module's docstring. Feed it every step: `choose`, run, `took`."""

    def __init__(self, most: int) -> None:
        self.best = 1
        """The number that is taken but for trials."""
        self._others = sorted({max(1, most // 2), most} - {1})
        self._told = dict.fromkeys(self._others, 0.0)
        self._rest = 0
        """Steps until the next trial."""
        self._every = PROBE_EVERY
        self._before: float | None = None
        self._trial: float | None = None
        """Logarithms of the last step of the best, and of a trial after it."""
        self._usual: float | None = None
        self._spread, self._odd = 0.0, 0
        self._lost_at: float | None = None
        """What was usual when the last trial was lost."""

    def choose(self) -> int:
        """How many threads the next step uses."""
        due = self._others and self._rest <= 0 and self._before is not None and self._trial is None
        return self._others[0] if due else self.best

    def took(self, threads: int, seconds: float) -> None:
        """A step has run."""
        taken = log(max(seconds, 1e-9))
        if threads != self.best:
            self._trial = taken
            return
        self._rest -= 1
        self._notice(taken)
        if self._trial is not None and self._before is not None:
            self._judge((self._before + taken) / 2 - self._trial)
        self._before, self._trial = taken, None

    def _judge(self, gain: float) -> None:
        """A trial of the first of the others has gained so much."""
        tried = self._others[0]
        told = max(-MOST_TOLD, min(gain - CLEARLY, MOST_TOLD))
        self._told[tried] = max(0.0, self._told[tried] + told)
        if self._told[tried] >= ENOUGH:
            self._take(tried)
        elif self._told[tried] > 0.0:
            self._rest = 0
        else:
            self._others.append(self._others.pop(0))
            if self._others[0] == min(self._others):  # all of them have lost
                self._rest, self._every = self._every, min(2 * self._every, RARELY)
                self._lost_at = self._usual

    def _take(self, threads: int) -> None:
        self._others = sorted({*self._others, self.best} - {threads})
        self._told = dict.fromkeys(self._others, 0.0)
        self.best = threads
        self._rest = self._every = PROBE_EVERY
        self._usual, self._lost_at, self._spread, self._odd = None, None, 0.0, 0

    def _notice(self, taken: float) -> None:
        """Keep what is usual for the best; see SURPRISE."""
        if self._usual is None:
            self._usual = taken
        off = abs(taken - self._usual)
        self._odd = self._odd + 1 if off >= max(SURPRISE, SPREADS * self._spread) else 0
        if self._odd >= SURPRISED:
            self._usual, self._odd = taken, 0
            self._rest, self._every = 0, PROBE_EVERY
        elif not self._odd:
            self._usual += FADING * (taken - self._usual)
            self._spread += FADING * (off - self._spread)
            if self._lost_at is not None and self._usual < self._lost_at - CALMER:
                self._rest, self._every, self._lost_at = 0, PROBE_EVERY, None


def wait_briefly() -> None:
    """Let waiting OpenMP threads spin for some 50 µs, then sleep. Call before torch is imported.

    Sleeping at once costs a quiet machine a third of its decode speed; spinning as long as libgomp does by itself costs
    a busy one far more (figures: docs/LOG.md). Who has chosen a policy keeps it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
