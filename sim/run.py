"""One seed, from its scenario to its verdict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from paceline.consistency.owner import Owner
from paceline.sim.chance import Chance
from paceline.sim.checks import Broken
from paceline.sim.host import Host
from paceline.sim.rider import Rider
from paceline.sim.scenario import draw
from paceline.sim.world import Trace, World

PATIENCE_S = 40.0
"""A session with so much time left when all is well again must end with its tokens."""


@dataclass
class Tally:
    """What many runs did."""

    runs: int = 0
    events: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Both together."""
        self.runs += other.runs
        self.events += other.events
        self.ends += other.ends
        self.tiers += other.tiers
        self.failed += other.failed


def simulate(
    seed: int, trace: Trace | None = None, host_type: type[Host] = Host, owner_type: type[Owner] = Owner
) -> World:
    """Run one seed. Raises Broken, or what the machines raise themselves."""
    chance = Chance(seed)
    world = World(draw(chance), chance, trace, host_type, owner_type)
    world.run()
    for rider in world.living():
        _judge(world, rider)
    return world


def _judge(world: World, rider: Rider) -> None:
    """Progress: tokens, or an error that the faults explain."""
    ended = rider.ended
    assert ended is not None
    code = ended.error.code if ended.error else ""
    if not code or (code == "fenced" and len(world.riders) > 1):
        return
    healed = world.healed_at
    assert healed is not None
    before = rider.ended_at < healed + 0.001
    tired = code == "session_lost" and rider.since + 60.0 - healed < PATIENCE_S
    if code in ("session_lost", "no_route") and (before or tired):
        return
    raise Broken(6, f"{rider.me} ends with {code!r} at {rider.ended_at:.1f} s, though all was well from {healed:.1f} s")


def run_seeds(seeds: range) -> Tally:
    """Many seeds; the first few that fail are told."""
    tally = Tally()
    for seed in seeds:
        tally.runs += 1
        try:
            world = simulate(seed)
        except (AssertionError, ValueError, LookupError, AttributeError, TypeError) as error:
            tally.failed.append((seed, f"{type(error).__name__}: {error}"))
            if len(tally.failed) >= 5:
                break
            continue
        tally.events += world.events
        for rider in world.living():
            assert rider.ended is not None
            tally.ends[rider.ended.error.code if rider.ended.error else rider.ended.finish] += 1
            tally.tiers.update(failover.tier.value for failover in rider.owner.failovers)
    return tally
