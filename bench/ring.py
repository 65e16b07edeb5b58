"""Is the chosen ring the fastest, as fast as predicted, and does it stay so? ``python -m bench.ring``

Twelve node processes in three cities, their links slowed to city latencies by a link profile: 1 to 2 ms one way inside
a city, 8 to 20 ms between them. In each city two nodes hold the first half of a 24-layer model and a bit, and two the
second; speeds differ. Processes, links, directory, measuring, routing and protocol are real; a layer's computing is
emulated by sleeping (bench/ring_node.py), so that twelve machines fit on two cores. The client is one more process's
worth of links.

1. The chosen ring's measured time per token is within 15 % of the predicted one.
2. Other rings, forced one after the other by trusting their riders only, are measured too (the best ones predicted, and
   some at random): none is faster by more than 5 %.
3. One rider is slowed five times in mid-session: the tokens are those of the undisturbed model, and three seconds later
   the session is back at 90 % of its speed or more.

Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import trio

from bench.common import Bars, machine
from bench.ring_node import LAYERS, REVISION
from paceline.client.connect import ClientConfig, connect
from paceline.client.core import ClientCore
from paceline.client.options import GenerateOptions
from paceline.engine.toy import toy_generate
from paceline.net.identity import Identity
from paceline.routing.ring import RingPlan, RingRequest, cheapest_ring
from paceline.routing.view import SwarmView
from paceline.wire.errors import NoRoute

CITIES = ((0.0, 0.0), (8.0, 3.0), (17.0, -2.0))
"""Milliseconds one way, on a map."""

SPANS = ("0:13", "0:13", "11:24", "11:24")
LAYER_MS = (1.5, 1.6, 1.5, 1.6, 1.3, 1.9, 1.7, 1.4, 2.0, 1.2, 1.6, 1.8)
SLOWED_BY = 5.0
PREDICTION_BAR, OTHERS_BAR, SPEED_BAR, RECOVERY_S = 0.15, 0.05, 0.9, 3.0
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TOKENS = 48
SESSION = 400
START_S = 240.0
CALM_S = 20.0
"""Starting twelve processes on two cores is no calm moment: pings must forget it."""


@dataclass
class Rider:
    """One node process."""

    name: str
    process: subprocess.Popen[bytes]
    ready: Path
    pace: Path
    peer: str = ""
    bootstrap: tuple[str, ...] = ()

    def slow_down(self, times: float) -> None:
        """From the next step on."""
        partial = self.pace.with_suffix(".part")
        partial.write_text(str(times))
        partial.replace(self.pace)


def link_rows(peers: Sequence[str]) -> list[dict[str, object]]:
    """The profile: each pair's latency from where its ends stand."""
    rows: list[dict[str, object]] = [{"latency_ms": 1.0}]
    for a, b in itertools.permutations(range(len(peers)), 2):
        (x, y), (u, v) = CITIES[a // 4], CITIES[b // 4]
        apart = ((x - u) ** 2 + (y - v) ** 2) ** 0.5
        access = 0.5 + 0.1 * (a % 4 + b % 4)
        rows.append({"from": peers[a], "to": peers[b], "latency_ms": round(access + apart, 2), "jitter_ms": 0.2})
    return rows


@contextmanager
def riders(folder: Path) -> Iterator[list[Rider]]:
    """The twelve, ready."""
    home, profile = folder / "home", folder / "links.json"
    names = [f"n{at}" for at in range(len(LAYER_MS))]
    peers = [Identity.load_or_create(home / name).peer for name in names]
    profile.write_text(json.dumps({"seed": 1, "links": link_rows(peers)}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    first = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peers[0]}"
    started: list[Rider] = []
    try:
        for at, name in enumerate(names):
            where = ["--port", str(port)] if at == 0 else ["--swarm", first]
            pace, ready = folder / f"{name}.pace", folder / f"{name}.ready"
            pace.write_text("1")
            command = [sys.executable, "-m", "bench.ring_node", "--name", name, "--span", SPANS[at % 4]]
            command += ["--layer-ms", str(LAYER_MS[at]), "--home", str(home), "--profile", str(profile)]
            command += ["--pace", str(pace), "--ready", str(ready), *where]
            log = (folder / f"{name}.log").open("wb")
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
            started.append(Rider(name, process, ready, pace))
            wait_ready(started[-1], folder)
        yield started
    finally:
        for rider in started:
            assert rider.process.stdin is not None
            rider.process.stdin.close()
        for rider in started:
            try:
                rider.process.wait(5.0)
            except subprocess.TimeoutExpired:
                rider.process.kill()
                rider.process.wait()


def wait_ready(rider: Rider, folder: Path) -> None:
    """Until it is announced. One starts at a time: each measures itself then, as if it had a machine to itself."""
    deadline = time.monotonic() + START_S
    while not rider.ready.exists():
        if rider.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{rider.name}: {(folder / f'{rider.name}.log').read_text()[-2000:]}")
        time.sleep(0.05)
    facts = json.loads(rider.ready.read_text())
    rider.peer, rider.bootstrap = facts["peer"], tuple(facts["bootstrap"])


async def settled(core: ClientCore, everybody: Sequence[Rider]) -> SwarmView:
    """A view in which every pair of nodes has been measured by one of them, in calm."""
    deadline, peers = time.monotonic() + START_S, {rider.peer for rider in everybody}
    while True:
        view = await core.swarm.view("toy")
        pairs = {frozenset((offer.peer, near)) for offer in view.offers for near, _ in offer.rtts if near in peers}
        if len(view.offers) == len(peers) and len(pairs) == len(peers) * (len(peers) - 1) // 2:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(view.offers)} offers, {len(pairs)} measured pairs")
        await trio.sleep(0.5)
    await trio.sleep(CALM_S)
    return await core.swarm.view("toy")


async def measured(core: ClientCore, peers: Sequence[str] | None, tokens: int = TOKENS) -> tuple[float, list[str]]:
    """Median seconds per token of a session through `peers` only, and who rode."""
    trusted = None if peers is None else frozenset(peers)
    options = GenerateOptions(
        model="toy", max_tokens=tokens, shadows=False, trusted=trusted, avoid_stragglers=False, ignore_eos=True
    )
    stream = await core.generate(PROMPT, options)
    while await stream.receive() is not None:
        pass
    result = stream.result()
    return median(result.intervals_s[4:]), [rider.peer for rider in result.route]


def other_rings(view: SwarmView, chosen: RingPlan, count: int) -> list[RingPlan]:
    """Rings of two riders other than the chosen one: the best predicted ones, and every so many of the rest."""
    peers = [offer.peer for offer in view.offers]
    found = []
    for pair in itertools.combinations(peers, 2):
        try:
            plan = cheapest_ring(view, RingRequest(REVISION, trusted=frozenset(pair)))
        except NoRoute:
            continue
        if set(plan.peers) != set(chosen.peers):
            found.append(plan)
    found.sort(key=lambda plan: plan.token_s)
    half = count // 2
    return found[:half] + found[half :: max(1, (len(found) - half) // (count - half))][: count - half]


async def compare(core: ClientCore, everybody: Sequence[Rider], others: int, bars: Bars) -> None:
    """Bars 1 and 2."""
    view = await settled(core, everybody)
    names = {rider.peer: rider.name for rider in everybody}
    request = RingRequest(REVISION, positions=len(PROMPT) + TOKENS, prompt=len(PROMPT))
    chosen = cheapest_ring(view, request)
    rings = [chosen, *other_rings(view, chosen, others)]
    times: list[list[float]] = [[] for _ in rings]
    for _ in range(2):
        for at, plan in enumerate(rings):
            took, _ = await measured(core, plan.peers)
            times[at].append(took)
    figures = [min(some) for some in times]
    for plan, took in zip(rings, figures, strict=True):
        riding = " ".join(names[peer] for peer in plan.peers)
        print(f"       {riding:10s} predicted {plan.token_s * 1e3:6.1f} ms, measured {took * 1e3:6.1f} ms", flush=True)
    off = figures[0] / chosen.token_s - 1.0
    bars.check("chosen ring, measured against predicted", abs(off) <= PREDICTION_BAR, f"{off * 100:+.1f} %")
    best = min(figures[1:])
    lead = figures[0] / best - 1.0
    bars.check("chosen ring against the fastest other one measured", lead <= OTHERS_BAR, f"{lead * 100:+.1f} %")


async def slow_one(core: ClientCore, everybody: Sequence[Rider], role: int, bars: Bars) -> None:
    """Bar 3, for the ring's rider number `role`."""
    want = toy_generate(PROMPT, SESSION, layers=LAYERS)
    stream = await core.generate(PROMPT, GenerateOptions(model="toy", max_tokens=SESSION, shadows=False))
    tokens, at = [], []
    slowed: Rider | None = None
    while (piece := await stream.receive()) is not None:
        tokens.append(piece.token)
        at.append(time.monotonic())
        if len(tokens) == 60:
            peer = stream.result().route[role].peer
            slowed = next(rider for rider in everybody if rider.peer == peer)
            slowed.slow_down(SLOWED_BY)
            since = time.monotonic()
    assert slowed is not None
    slowed.slow_down(1.0)
    gaps = [(b - a, b) for a, b in itertools.pairwise(at)]
    before = median(gap for gap, when in gaps[10:] if when < since)
    later = median(gap for gap, when in gaps if when > since + RECOVERY_S)
    worst = max(gap for gap, when in gaps if when > since)
    slow = median([gap for gap, when in gaps if when > since][1:5])
    result = stream.result()
    reasons = [failover.reason.split(":")[0] for failover in result.failovers]
    shown = (
        f"{before * 1e3:.1f} ms a token before, {slow * 1e3:.1f} while slow, {later * 1e3:.1f} from "
        f"{RECOVERY_S:.0f} s on ({before / later * 100:.0f} %); longest wait {worst * 1e3:.0f} ms; "
        f"{', '.join(reasons) or 'no move'}"
    )
    what = "head" if role == 0 else "tail"
    bars.check(f"{what} slowed {SLOWED_BY:.0f} times: tokens as undisturbed", tokens == want, f"{len(tokens)} tokens")
    bars.check(f"{what} slowed {SLOWED_BY:.0f} times: speed back", before / later >= SPEED_BAR, shown)


async def run(folder: Path, everybody: Sequence[Rider], others: int, bars: Bars) -> None:
    """All bars, with one client each so that the last one's prices are forgotten."""
    bootstrap = tuple(address for rider in everybody for address in rider.bootstrap)
    config = ClientConfig(bootstrap, folder / "client", link_profile=str(folder / "links.json"))
    async with connect(config) as core:
        await compare(core, everybody, others, bars)
    for role in (0, 1):
        async with connect(config) as core:
            await settled(core, everybody)
            await slow_one(core, everybody, role, bars)


def main() -> int:
    """Print the table; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=10, help="other rings to measure")
    chosen = parser.parse_args()
    print(machine())
    bars = Bars()
    with tempfile.TemporaryDirectory(prefix="paceline-ring-") as name:
        folder = Path(name)
        with riders(folder) as everybody:
            trio.run(run, folder, everybody, chosen.others, bars)
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
