"""How much speed is kept when hops fail all the time? The table of Petals' paper, on real processes.

``python -m bench.churn [--tokens N] [--shadows]``: six node processes hold every third of the model twice. While a
session of 256 tokens after another is generated, each hop of each token fails with probability p (seeded): its node
loses all sessions, journals and connections at that moment (SIGUSR1), as a crash and a restart would make it; only the
weights stay loaded, since loading them is not what is measured. Petals' row: 100, 100, 73, 20 %.

Bars: ≥ 95 % of the undisturbed speed kept at p = 1e-3, ≥ 70 % at 1e-2, and every token exact. Exits 1 where missed.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
from dataclasses import dataclass

from bench.common import PROMPTS, Bars, default_manifest, machine, processes
from paceline.cli.local_swarm import LocalSwarm
from paceline.client.sync import Client
from paceline.client.tokenizer import Tokenizer

SESSION = 256
LEVELS = (0.0, 1e-4, 1e-3, 1e-2)
BARS = {1e-3: 0.95, 1e-2: 0.70}


@dataclass
class Level:
    """One row of the table."""

    probability: float
    tokens: int = 0
    seconds: float = 0.0
    failures: int = 0
    failovers: int = 0
    wrong: int = 0

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def disturbed(client: Client, swarm: LocalSwarm, prompt: list[int], row: Level, dice: random.Random) -> list[int]:
    """One session under failures; adds to the row."""
    answer = client.generate(prompt, max_tokens=SESSION, ignore_eos=True)
    tokens: list[int] = []
    for piece in answer:
        tokens.append(piece.token)
        for rider in answer.result.route:
            if dice.random() < row.probability:
                row.failures += 1
                node = next(node for node in swarm.nodes if node.peer == rider.peer)
                node.process.send_signal(signal.SIGUSR1)
    row.failovers += len(answer.result.failovers)
    row.tokens += len(tokens) - 1
    row.seconds += answer.result.total_s - answer.result.ttft_s
    return tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens per level")
    parser.add_argument("--shadows", action="store_true", help="the second holders stand by")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(machine())
    store, manifest = default_manifest()
    assert manifest.tokenizer is not None
    tokenizer = Tokenizer(store.read(manifest.tokenizer.digest))
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS[: max(1, options.tokens // SESSION)]]
    rows = [Level(probability) for probability in LEVELS]
    # Levels share their prompts: a reused beginning would make repairs look cheaper than they are.
    flags = ["--crash-on-usr1", "--prefix-mb", "0", *(["--shadow"] if options.shadows else [])]
    with processes(["1/3", "2/3", "3/3"] * 2, *flags) as swarm, Client(swarm.bootstrap) as client:
        dice = random.Random(options.seed)
        for _ in client.generate(prompts[0], max_tokens=8, ignore_eos=True):
            pass
        for number, prompt in enumerate(prompts):
            want: list[int] = []
            for row in rows:  # levels take turns, so that the machine's mood is shared among them
                got = disturbed(client, swarm, prompt, row, dice)
                want = want or got
                row.wrong += got != want
            speeds = ", ".join(f"{row.speed:.1f}" for row in rows)
            print(f"session {number + 1} of {len(prompts)}: {speeds} tok/s", flush=True)
    return judge(rows)


def judge(rows: list[Level]) -> int:
    """Print the table."""
    bars = Bars()
    for row in rows:
        kept = row.speed / rows[0].speed
        shown = (
            f"{row.speed:.1f} tok/s, {kept:.0%} kept; {row.failures} failures, {row.failovers} repairs; "
            f"{row.wrong} sessions with a wrong token"
        )
        bars.check(f"p = {row.probability:g}", row.wrong == 0 and kept >= BARS.get(row.probability, 0.0), shown)
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
