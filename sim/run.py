"""One seed, from its scenario to its verdict."""

from __future__ import annotations

from paceline.consistency.owner import Owner
from paceline.sim.chance import Chance
from paceline.sim.checks import Broken
from paceline.sim.host import Host
from paceline.sim.many import Tally
from paceline.sim.rider import Rider
from paceline.sim.scenario import draw
from paceline.sim.world import Trace, World

PATIENCE_S = 40.0
"""A session with so much time left when all is well again must end with its tokens."""


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


def run(seed: int, tally: Tally) -> None:
    """One seed, judged and counted."""
    world = simulate(seed)
    tally.events += world.events
    for rider in world.living():
        assert rider.ended is not None
        tally.counts["ended"][rider.ended.error.code if rider.ended.error else rider.ended.finish] += 1
        tally.counts["repairs by tier"].update(failover.tier.value for failover in rider.owner.failovers)
