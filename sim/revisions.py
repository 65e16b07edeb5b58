"""``python -m paceline.sim.revisions``: levels, upgrades and canaries under partitions and stale nodes, many seeds.

``--runs N --seed FIRST --jobs J`` simulates; ``--replay SEED`` tells one run; ``--mutations`` breaks rules on purpose
and prints the seed that catches each. Exits non-zero where a promise was broken, or a mutation survived.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from paceline.consistency import revisions, upgrading
from paceline.consistency.revisions import Frontier, Level
from paceline.consistency.upgrading import Move, Standing
from paceline.sim.chance import Chance
from paceline.sim.many import Tally, many_command
from paceline.sim.mutations import MUTATIONS, Mutation, mutations_command
from paceline.sim.revisions_world import Swarm

BATCH = 50

_choose, _decide = revisions.choose, upgrading.decide
Key = bytes | None


def simulate(seed: int, trace: Any = None) -> Swarm:
    """One run. Raises Broken, or what the machines raise themselves."""
    swarm = Swarm(Chance(seed), trace)
    swarm.run()
    return swarm


def run(seed: int, tally: Tally) -> None:
    """One seed, counted."""
    swarm = simulate(seed)
    tally.events += swarm.events
    tally.counts["answered"].update(swarm.answered)
    tally.counts["refused"].update(swarm.refused)
    tally.counts["sessions while a canary ran"].update(swarm.tried)


# --- rules broken on purpose --------------------------------------------------------------------------------


def _strong_takes_what_is_served(level: Level, frontier: Frontier, complete: Any, key: Key) -> bytes:
    return _choose(Level() if level.kind == "strong" else level, frontier, complete, key)


def _bounded_counts_wrong(level: Level, frontier: Frontier, complete: Any, key: Key) -> bytes:
    return _choose(replace(level, k=level.k + 1) if level.kind == "bounded" else level, frontier, complete, key)


def _pinned_falls_back(level: Level, frontier: Frontier, complete: Any, key: Key) -> bytes:
    if level.kind == "pinned" and level.revision not in complete:
        level = Level()
    return _choose(level, frontier, complete, key)


def _any_is_newest(level: Level, frontier: Frontier, complete: Any, key: Key) -> bytes:
    found = _choose(level, frontier, complete, key)
    return complete[0] if level.kind == "available" else found


def _last_heard_wins(self: Frontier, other: Frontier) -> Frontier:
    return Frontier({**self.ranks, **{name: (0, b"", 1.0) for name in self.ranks if other.ranks}, **other.ranks})


def _drops_under_riders(at: Standing, holders: Any, patience: Any) -> Move:
    return _decide(replace(at, sessions=0), holders, patience)


def _drops_at_once(at: Standing, holders: Any, patience: Any) -> Move:
    return _decide(at, holders, replace(patience, views_s=0.0))


def _quiet_before_others(at: Standing, holders: Any, patience: Any) -> Move:
    return Move.QUIET if at.has_new and at.quiet_s is None else _decide(at, holders, patience)


def _never_takes(at: Standing, holders: Any, patience: Any) -> Move:
    found = _decide(at, holders, patience)
    return Move.WAIT if found is Move.TAKE else found


def _drawn_twice_as_often(self: Frontier, key: bytes) -> bool:
    canary = self.canary
    return canary is not None and revisions.lot(canary, key) < 2 * self.ranks[canary][2]


def _canary_is_no_full_one(frontier: Frontier, complete: Any) -> bytes | None:
    """Whoever was not drawn takes the newest all the same, and what was taken back."""
    known = [revision for revision in complete if revision in frontier.ranks]
    return max(known, key=lambda it: frontier.ranks[it], default=None)


def _canary_replaces(at: Standing, holders: Any, patience: Any) -> Move:
    return _decide(replace(at, share=1.0), holders, patience)


def _canary_untaken(at: Standing, holders: Any, patience: Any) -> Move:
    return Move.WAIT if at.share < 1.0 else _decide(at, holders, patience)


BROKEN_RULES = (
    replace(
        next(it for it in MUTATIONS if it.name == "accept another revision"), name="accept a frame of another revision"
    ),
    Mutation("strong takes what is served", ((revisions, "choose", _strong_takes_what_is_served),)),
    Mutation("bounded allows one more", ((revisions, "choose", _bounded_counts_wrong),)),
    Mutation("pinned falls back", ((revisions, "choose", _pinned_falls_back),)),
    Mutation("available takes any complete ring", ((revisions, "choose", _any_is_newest),)),
    Mutation("the last release that was heard wins", ((Frontier, "merge", _last_heard_wins),)),
    Mutation("a node drops what sessions ride", ((upgrading, "decide", _drops_under_riders),)),
    Mutation("a node drops what views still show", ((upgrading, "decide", _drops_at_once),)),
    Mutation("a node is quiet before others have the new one", ((upgrading, "decide", _quiet_before_others),)),
    Mutation("nobody takes a new release up", ((upgrading, "decide", _never_takes),)),
    Mutation("a canary is tried by whoever comes", ((Frontier, "drawn", lambda self, key: self.canary is not None),)),
    Mutation("a canary has twice its share", ((Frontier, "drawn", _drawn_twice_as_often),)),
    Mutation("a canary counts as a release for everybody", ((revisions, "_newest", _canary_is_no_full_one),)),
    Mutation("a canary replaces what it stands beside", ((upgrading, "decide", _canary_replaces),)),
    Mutation("nobody takes a canary up", ((upgrading, "decide", _canary_untaken),)),
)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m paceline.sim.revisions", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed and tell what happens")
    parser.add_argument("--mutations", action="store_true", help="break the rules on purpose; each must be caught")
    options = parser.parse_args()
    if options.replay is not None:
        swarm = simulate(options.replay, lambda now, text: print(f"{now:8.3f}  {text}"))
        print(f"answered {swarm.answered}, refused {swarm.refused}")
        return 0
    if options.mutations:
        return mutations_command(BROKEN_RULES, simulate, options.seed, options.runs)
    seeds = range(options.seed, options.seed + options.runs)
    return many_command(run, parser.prog, seeds, options.jobs, BATCH)


if __name__ == "__main__":
    sys.exit(main())
