"""How well does a swarm place itself? ``python -m bench.placement``

Random fleets of uneven machines with arrivals and departures (sim/swarm_churn.py tells how they are drawn). Each
machine chooses its span by itself, and may move later. Share: the tokens a second that their spans can make together
(max-flow, rings leaving a span at any cut), of the most that any placement of the same machines could make (a bound:
spans need not be whole or contiguous), averaged over time; beside it the same fleets under Petals' rule and under an
equal split that knows no speeds. "Whole visits": the same without early exit, the weakest layer's summed throughput.

Bars: our share ≥ 90 % in every kind of fleet; no layer ever loses its last holder where it had two. Exits 1 where one
is missed. Moved: what the survivors load anew, per departure, for 1.7 GB a layer (80 layers) and 0.5 GB (32).
"""

from __future__ import annotations

import argparse
import sys
from statistics import mean

from bench.common import Bars, machine
from paceline.sim.swarm_churn import RULES, Fleet, Report, Rule, run

FLEETS = (Fleet(32, 16, 60), Fleet(32, 40, 60), Fleet(80, 40, 60), Fleet(80, 150, 40))
LAYER_GB = {32: 0.5, 80: 1.7}
SHARE_BAR = 0.9


def table_row(fleet: Fleet, rule: Rule, reports: list[Report]) -> str:
    """One line."""
    departures = sum(report.departures for report in reports)
    moved_gb = LAYER_GB[fleet.layers] * sum(report.moved_layers for report in reports) / departures
    shares = (
        mean(report.share for report in reports),
        mean(report.whole_share for report in reports),
        min(report.share for report in reports),
        min(report.worst for report in reports),
    )
    moves, gaps = sum(report.moves for report in reports) / departures, sum(report.gaps for report in reports)
    figures = " ".join(f"{share * 100:>9.1f} %" for share in shares)
    return f"{fleet.layers:>6} {fleet.size:>8} {rule.name:>8} {figures} {moves:>10.2f} {moved_gb:>12.2f} {gaps:>4}"


def main() -> int:
    """Print the table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    chosen = parser.parse_args()
    print(machine())
    print("layers machines     rule     share whole visits worst fleet worst moment moves/dep. GB/departure gaps")
    bars = Bars()
    verdicts = []
    for fleet in FLEETS:
        for rule in RULES:
            reports = [run(fleet, rule, seed) for seed in range(chosen.seeds)]
            print(table_row(fleet, rule, reports), flush=True)
            if rule.name == "ours":
                verdicts.append((fleet, mean(report.share for report in reports), sum(r.gaps for r in reports)))
    for fleet, share, gaps in verdicts:
        where = f"{fleet.size} machines, {fleet.layers} layers"
        bars.check(f"share of the bound, {where}", share >= SHARE_BAR, f"{share * 100:.1f} %")
        bars.check(f"no gap where a replica existed, {where}", gaps == 0, f"{gaps}")
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
