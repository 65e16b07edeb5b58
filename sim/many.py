"""Many seeds of one kind of simulation, over processes: what they did, and which failed.

A *run* is a function ``run(seed, tally)`` that simulates one seed, raises where a promise is broken, and counts into
the tally what happened. It must be importable by name, since other processes run it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pool

FAILURES_TOLD = 5
"""A batch stops after so many seeds that failed."""


@dataclass
class Tally:
    """What many runs did. `counts`: how often what happened, by kind."""

    runs: int = 0
    events: int = 0
    counts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failed: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Both together."""
        self.runs += other.runs
        self.events += other.events
        self.failed += other.failed
        for kind, counted in other.counts.items():
            self.counts[kind] += counted


Run = Callable[[int, Tally], None]


def run_seeds(run: Run, seeds: range) -> Tally:
    """Many seeds; the first few that fail are told."""
    tally = Tally()
    for seed in seeds:
        tally.runs += 1
        try:
            run(seed, tally)
        except (AssertionError, ValueError, LookupError, AttributeError, TypeError) as error:
            tally.failed.append((seed, f"{type(error).__name__}: {error}"))
            if len(tally.failed) >= FAILURES_TOLD:
                break
    return tally


def many_command(run: Run, command: str, seeds: range, jobs: int, batch: int) -> int:
    """Run `seeds` in batches over `jobs` processes and print the tally. Non-zero where one failed."""
    total = Tally()
    batches = [seeds[at : at + batch] for at in range(0, len(seeds), batch)]
    if jobs == 1:
        for part in batches:
            total.add(run_seeds(run, part))
    else:
        with Pool(jobs) as pool:
            for tally in pool.imap_unordered(partial(run_seeds, run), batches):
                total.add(tally)
    for failed, why in sorted(total.failed):
        print(f"FAILED {why}\n  {command} --replay {failed}")
    print(f"{total.runs} runs, {total.events} events, {len(total.failed)} violations")
    for kind, counted in total.counts.items():
        print(f"{kind}: " + ", ".join(f"{name} {count}" for name, count in counted.most_common()))
    return 1 if total.failed else 0
