"""What does distance cost? The physical limit of one token per trip is Σ hops + compute; how near is the ring?

``python -m bench.wan [--hop-ms 25] [--tokens 64] [--rounds 5]``: three node processes with a third of the model each,
whose links take 25 ms one way (no jitter, no bandwidth limit; `net.conditioner`). In turns, with and without that
latency, a session generates; a session of one token beside each tells what the prompt cost. Compute is what the three
engines were busy, by their own account. Medians over the rounds.

Bar: time per token ≤ 1.10 × (3 hops + compute). Exits 1 where it is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.common import Bars, equal_parts, machine, processes
from bench.weather import LOOKED_AT_S, Weather
from paceline.client.sync import Client

BAR = 1.10
STAGES = 3
PROMPT = list(range(100, 132))


@dataclass(frozen=True)
class Trip:
    """One token's way round the ring, in seconds: what it took, and what the engines computed meanwhile."""

    token_s: float
    compute_s: float
    ttft_s: float


def busy_s(client: Client) -> float:
    """Seconds that all engines have computed so far."""
    return float(sum(node["engine"]["busy_s"] for node in client.status()))


def trip(client: Client, tokens: int) -> Trip:
    """One session of `tokens` after its first, and one of the first alone."""
    before = busy_s(client)
    for _ in client.generate(PROMPT, max_tokens=1, ignore_eos=True):
        pass
    between = busy_s(client)
    answer = client.generate(PROMPT, max_tokens=tokens + 1, ignore_eos=True)
    for _ in answer:
        pass
    after = busy_s(client)
    result = answer.result
    compute = (after - between) - (between - before)
    return Trip((result.total_s - result.ttft_s) / tokens, compute / tokens, result.ttft_s)


def trips(hop_s: float, tokens: int, rounds: int) -> tuple[list[Trip], list[Trip]]:
    """Rounds without and with the latency, in turns."""
    near: list[Trip] = []
    far: list[Trip] = []
    with tempfile.TemporaryDirectory(prefix="paceline-wan-") as folder:
        weather = Weather(Path(folder) / "links.json")
        with (
            processes(equal_parts(STAGES), "--link-profile", str(weather.file)) as swarm,
            Client(swarm.bootstrap) as client,
        ):
            trip(client, 4)
            for number in range(rounds):
                for kind, latency_ms in ((near, 0.0), (far, hop_s * 1e3)):
                    weather.everywhere(latency_ms=latency_ms)
                    time.sleep(LOOKED_AT_S)
                    kind.append(trip(client, tokens))
                print(f"round {number + 1}: {near[-1].token_s * 1e3:.1f}, {far[-1].token_s * 1e3:.1f} ms", flush=True)
    return near, far


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hop-ms", type=float, default=25.0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    near, far = trips(options.hop_ms / 1e3, options.tokens, options.rounds)
    hops = STAGES * options.hop_ms
    took, compute = median(it.token_s for it in far) * 1e3, median(it.compute_s for it in far) * 1e3
    there = median(it.token_s for it in near) * 1e3
    limit = hops + compute
    bars = Bars()
    shown = (
        f"{took:.1f} ms, Σ hops {hops:.0f} + compute {compute:.1f} = {limit:.1f} ms: {took / limit:.3f} ×; "
        f"without latency {there:.1f} ms"
    )
    bars.check(f"time per token over {STAGES} hops of {options.hop_ms:g} ms", took <= BAR * limit, shown)
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
