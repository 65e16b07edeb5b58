"""On how many threads a small step runs: on as many as have been fastest lately, on this machine as it is now.

A decode step reads weights, which two free cores do faster than one. Beside other work it is the other way round: a
step that waits at barriers for a thread which has no core takes several times as long. Only trying tells, so every
now and then a step runs on another number of threads than the best. Knows counts and seconds; no tensors, no clock.
"""

from __future__ import annotations

import os
from collections import deque
from statistics import median

MEMORY = 5
"""Steps of each number of threads that are remembered; their median counts."""
PROBE_EVERY = 24
"""Steps from one trial to the next; one that goes well is repeated at once, until it is taken or as often as is
remembered."""
CLEARLY = 0.95
"""More threads are taken only where they take less than this share of the time of fewer."""


class ThreadChoice:
    """One kind of step; see the module's docstring. Feed it every step: `choose`, run, `took`."""

    def __init__(self, most: int) -> None:
        self._recent = {n: deque[float](maxlen=MEMORY) for n in sorted({1, max(1, most // 2), most})}
        self._since = self._trials = self._won = 0

    def choose(self) -> int:
        """How many threads the next step uses."""
        fresh = min(self._recent, key=lambda n: len(self._recent[n]))
        if len(self._recent[fresh]) < MEMORY // 2:
            return fresh
        best = self.best
        others = [n for n in self._recent if n != best]
        if self._since < PROBE_EVERY or not others:
            return best
        return others[self._trials % len(others)]

    def took(self, threads: int, seconds: float) -> None:
        """A step has run."""
        best = self.best
        self._recent[threads].append(seconds)
        if threads == best:
            self._since += 1
            self._won = 0
        elif seconds < median(self._recent[best] or (0.0,)) and self._won < MEMORY:
            self._won += 1
        else:
            self._since = self._won = 0
            self._trials += 1

    @property
    def best(self) -> int:
        """The number that is taken but for trials."""
        best, least = 0, float("inf")
        for threads, times in self._recent.items():
            taken = median(times) if times else float("inf")
            if not best or taken < CLEARLY * least:
                best, least = threads, taken
        return best


def wait_briefly() -> None:
    """Let waiting OpenMP threads spin for some 50 µs, then sleep. Call before torch is imported.

    Sleeping at once costs a quiet machine a third of its decode speed; spinning as long as libgomp does by itself costs
    a busy one far more (figures: docs/LOG.md). Who has chosen a policy keeps it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
