"""Do coordinates tell how far peers are, and do they choose good rings? ``python -m bench.coordinates``

1,000 nodes of a made-up Internet (sim/internet.py) find their coordinates as nodes do (node/surroundings.py): each
pings 8 others and, once it knows roughly where it is, the 8 that seem nearest; those who chose it ping and are pinged
over the same links. It takes in what all whom it ever measured say of themselves (routing/coordinates.py). Then

- relative error of the predicted round trip over random pairs: median ≤ 15 %; beside it with 5 % of the nodes lying
  about their place, and for 10,000 nodes (``--large``);
- rings of an 80-layer model through 20 random thirds of the swarm: the ring chosen from coordinates alone, priced with
  the true latencies, against the best ring of the true latencies: on average within 10 %; beside it coordinates with
  the measured pairs, which is what offers carry, and no knowledge at all.

Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import mean, median

import numpy as np

from bench.common import Bars, machine
from bench.routing import LAYERS, NOW, REVISION, _name, _offer
from paceline.node.config import NodeConfig
from paceline.node.surroundings import DIALS, FAR, NEAR
from paceline.routing.coordinates import Coordinate, located
from paceline.routing.ring import RingPlan, RingRequest, cheapest_ring
from paceline.routing.view import SwarmView, swarm_view
from paceline.sim.internet import Internet
from paceline.wire.offers import Offer

LOOKS_EACH, PINGS = 20, 4
"""A node looks around every two seconds, and pings each link four times in between: 40 s of a node's life."""

PAIRS = 5_000
ERROR_BAR, ROUTE_BAR = 0.15, 0.10

Rtt = Callable[[int, int], float]


def found_places(net: Internet, seed: int, liars: float = 0.0) -> tuple[list[Coordinate], list[list[int]], set[int]]:
    """Coordinates after `LOOKS_EACH`, the round trips that offers would tell (to whom), and who lied (a random far
    place, perfectly sure of it).
    """
    random = np.random.default_rng(seed)
    far = [[int(b) for b in random.choice(net.nodes, FAR, replace=False) if b != a] for a in range(net.nodes)]
    lying = {int(a) for a in random.choice(net.nodes, int(liars * net.nodes), replace=False)}
    links: list[dict[int, None]] = [{} for _ in range(net.nodes)]
    known: list[dict[int, float]] = [{} for _ in range(net.nodes)]
    places = [Coordinate() for _ in range(net.nodes)]
    for look in range(LOOKS_EACH):
        _dial(links, far, _nearest(places) if look else far)
        for a in random.permutation(net.nodes).tolist():
            if a in lying:
                places[a] = Coordinate(tuple(random.uniform(-0.5, 0.5, 3).tolist()), 0.0, 0.0)
                continue
            for b in links[a]:
                known[a][b] = min(known[a].get(b, 1e9), *(net.sample_s(a, b) for _ in range(PINGS)))
            places[a] = located([(places[b], least) for b, least in known[a].items()], places[a], tie_break=a)
    told = NodeConfig().near_peers
    return places, [sorted(some, key=some.__getitem__)[:told] for some in known], lying


def _nearest(places: Sequence[Coordinate]) -> list[list[int]]:
    """Whoever seems nearest to each."""
    place = np.array([it.position for it in places])
    height = np.array([it.height for it in places])
    chosen = []
    for a in range(len(places)):
        distance = np.linalg.norm(place - place[a], axis=1) + height
        distance[a] = np.inf
        chosen.append(np.argpartition(distance, NEAR)[:NEAR].tolist())
    return chosen


def _dial(links: list[dict[int, None]], far: Sequence[Sequence[int]], near: Sequence[Sequence[int]]) -> None:
    """A few new links of everybody's choice; both ends ping, and no link is closed."""
    for a in range(len(links)):
        for b in [b for b in (*far[a], *near[a]) if b not in links[a]][:DIALS]:
            links[a][b] = links[b][a] = None


def errors(net: Internet, places: Sequence[Coordinate], lying: set[int], seed: int) -> list[float]:
    """Relative errors over random pairs of the honest."""
    random = np.random.default_rng(seed)
    found = []
    while len(found) < PAIRS:
        a, b = (int(x) for x in random.integers(0, net.nodes, 2))
        if a != b and not {a, b} & lying:
            true = net.rtt_s(a, b)
            found.append(abs(places[a].rtt_to(places[b]) - true) / true)
    return found


def offers_of(net: Internet, near: Sequence[Sequence[int]], seed: int) -> list[Offer]:
    """Uneven machines with spans of 4 to 40 layers, as bench.routing draws them; rtts to `near`."""
    random = np.random.default_rng(seed)
    made = []
    for at in range(net.nodes):
        length = int(random.integers(4, 41))
        start = int(np.clip(random.integers(-8, LAYERS), 0, LAYERS - length))
        rtts = tuple((_name(b), net.rtt_s(at, b)) for b in near[at])
        per_layer, uplink = 1e-3 * float(random.lognormal(0.0, 0.8)), 10 ** float(random.uniform(6.5, 8.1))
        made.append(_offer(at, start, length, per_layer, uplink, int(random.integers(0, 4)), rtts))
    return made


def true_cost(plan: RingPlan, rtt: Rtt) -> float:
    """The plan's token time with true latencies in place of believed ones."""
    at = [int(stage.peer.removeprefix("peer-")) for stage in plan.stages]
    total = sum(stage.compute_s for stage in plan.stages) + sum(stage.upload_s for stage in plan.stages[:-1])
    return total + sum(rtt(a, b) / 2.0 for a, b in zip(at, [*at[1:], at[0]], strict=True))


def regrets(view: SwarmView, truth: SwarmView, net: Internet, seed: int, requests: int) -> list[float]:
    """By how much the ring chosen in `view` is slower than the best of `truth`, relative, per request."""
    random = np.random.default_rng(seed)
    found = []
    while len(found) < requests:
        some = frozenset(_name(int(at)) for at in random.choice(net.nodes, net.nodes // 3, replace=False))
        request = RingRequest(REVISION, trusted=some)
        chosen, best = cheapest_ring(view, request), cheapest_ring(truth, request)
        found.append(true_cost(chosen, net.rtt_s) / true_cost(best, net.rtt_s) - 1.0)
    return found


def routes(net: Internet, places: Sequence[Coordinate], near: Sequence[Sequence[int]], bars: Bars) -> None:
    """The second half of the table."""
    everybody = [[b for b in range(net.nodes) if b != a] for a in range(net.nodes)]
    named = {_name(at): place for at, place in enumerate(places)}
    nobody: list[list[int]] = [[] for _ in range(net.nodes)]
    truth = swarm_view("bench", offers_of(net, everybody, 5), now=NOW, coordinates=named)
    views = {
        "coordinates alone": swarm_view("bench", offers_of(net, nobody, 5), now=NOW, coordinates=named),
        "coordinates and measured pairs": swarm_view("bench", offers_of(net, near, 5), now=NOW, coordinates=named),
        "neither (every pair alike)": swarm_view("bench", offers_of(net, nobody, 5), now=NOW),
    }
    for name, view in views.items():
        lost = regrets(view, truth, net, 6, 20)
        average, middle, most = (f"{100 * of(lost):.1f} %" for of in (mean, median, max))
        shown = f"slower by {average} on average, median {middle}, most {most}"
        if name.startswith("neither"):
            print(f"       rings from {name}: {shown}", flush=True)
        else:
            bars.check(f"rings from {name}, against the best of true latencies", mean(lost) <= ROUTE_BAR, shown)


def show_errors(nodes: int, liars: float, bars: Bars | None) -> tuple[Internet, list[Coordinate], list[list[int]]]:
    """Find coordinates and print one line of errors."""
    net, began = Internet(nodes, 1), time.perf_counter()
    places, near, lying = found_places(net, 2, liars)
    took = time.perf_counter() - began
    found = errors(net, places, lying, 3)
    what = f"relative error, {nodes} nodes" + (f", {liars * 100:.0f} % liars" if liars else "")
    shown = f"median {median(found) * 100:.1f} %, p90 {np.quantile(found, 0.9) * 100:.1f} % ({took:.0f} s)"
    if bars is None:
        print(f"       {what}: {shown}", flush=True)
    else:
        bars.check(what, median(found) <= ERROR_BAR, shown)
    return net, places, near


def main() -> int:
    """Print errors and regrets; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="10,000 nodes, too")
    chosen = parser.parse_args()
    print(machine())
    bars = Bars()
    net, places, near = show_errors(1_000, 0.0, bars)
    show_errors(1_000, 0.05, None)
    if chosen.large:
        show_errors(10_000, 0.0, bars)
    routes(net, places, near, bars)
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
