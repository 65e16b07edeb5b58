"""``python -m paceline.sim``: simulate many seeds, replay one, explore all of a small scope, or run the mutations.

Exits non-zero where an invariant was broken, or where a mutation survived.
"""

from __future__ import annotations

import argparse
import sys

from paceline.sim.many import many_command
from paceline.sim.run import run, simulate

BATCH = 500


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m paceline.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed and tell every step")
    parser.add_argument("--explore", action="store_true", help="every interleaving of a small scope")
    parser.add_argument("--scope", choices=("small", "large"), default="large", help="of --explore")
    parser.add_argument("--mutations", action="store_true", help="break the protocol on purpose; each must be caught")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    if options.explore:
        from paceline.sim.explore import explore_command

        return explore_command(options.scope)
    if options.mutations:
        from paceline.sim.mutations import MUTATIONS, mutations_command

        return mutations_command(MUTATIONS, simulate, options.seed, options.runs)
    seeds = range(options.seed, options.seed + options.runs)
    return many_command(run, parser.prog, seeds, options.jobs, BATCH)


def replay(seed: int) -> int:
    """One seed, step by step."""
    world = simulate(seed, lambda now, text: print(f"{now:9.4f}  {text}"))
    for rider in world.living():
        print(f"{rider.me}: {rider.ended}, {rider.emitted} tokens, {len(rider.owner.failovers)} failovers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
