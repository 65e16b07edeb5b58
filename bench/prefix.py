"""What does a prompt cost whose beginning was computed before?

``python -m bench.prefix``: three node processes share the default model in three parts. A prompt of 1,000 tokens and a
question of 16 is asked, then the same 1,000 with another question; a stranger, to whom nothing is known, must be told
the same. Exit status 1 where the second time to first token is over 15 % of the first.

Also printed: the two ways to hand over KV, copying it out of a session that is open and out of a file.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from bench.common import Bars, equal_parts, machine, processes
from paceline.client.results import Result
from paceline.client.sync import Client
from paceline.engine.kv import SessionKV
from paceline.engine.kv_room import KvLimits
from paceline.engine.prefixes import PrefixLimits
from paceline.engine.shard import SampleRequest, Work
from paceline.engine.spill import SpillFile
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.sampling import SamplingParams

BEGINNING, QUESTION, ANSWER = 1_000, 16, 8
BAR = 0.15


def asked(client: Client, ids: list[int]) -> Result:
    """One generation, to its end."""
    generation = client.generate(ids, max_tokens=ANSWER, ignore_eos=True)
    for _ in generation:
        pass
    return generation.result


def rounds(bootstrap: tuple[str, ...], count: int) -> list[tuple[Result, Result, Result]]:
    """For each beginning: the first question, the second, and the second asked by a stranger."""
    draw, found = random.Random(7), []
    with Client(bootstrap) as client:
        asked(client, [1] * 64)
        for _ in range(count):
            beginning = [draw.randrange(100, 40_000) for _ in range(BEGINNING)]
            one, other = ([draw.randrange(100, 40_000) for _ in range(QUESTION)] for _ in range(2))
            with Client(bootstrap) as stranger:
                mine = asked(client, beginning + one), asked(client, beginning + other)
                found.append((*mine, asked(stranger, beginning + other)))
            shown = ", ".join(f"{result.ttft_s * 1e3:.0f}" for result in found[-1])
            print(f"first token, ms: the first time, the second, a stranger's: {shown}", flush=True)
    return found


def engine(bars: Bars, store: Store, manifest: Manifest, count: int = 3) -> None:
    """The same without a network: one shard of the whole model, fed in chunks of 512 as a head is."""
    with tempfile.TemporaryDirectory() as folder:
        kept = KvLimits(folder=Path(folder), prefixes=PrefixLimits(disk_bytes=1 << 30))
        shard = TorchShard.load(store, manifest, manifest.span, kv=kept)
        draw, times = random.Random(5), list[tuple[float, float]]()
        for _ in range(count):
            beginning = [draw.randrange(100, 40_000) for _ in range(BEGINNING)]
            pair = [_first_token(shard, [*beginning, *draw.choices(range(100, 40_000), k=QUESTION)]) for _ in range(2)]
            times.append((pair[0], pair[1]))
    first, second = (median(column) for column in zip(*times, strict=True))
    shown = f"{second * 1e3:.0f} ms against {first * 1e3:.0f}: {100 * second / first:.1f} %"
    bars.check(f"one shard: first token after the same {BEGINNING} tokens", second <= BAR * first, shown)


def _first_token(shard: TorchShard, ids: list[int]) -> float:
    shard.open("asked", len(ids) + 1)
    shard.share("asked", b"bench")
    began = time.perf_counter()
    for start in range(0, len(ids), 512):
        chunk = ids[start : start + 512]
        end = start + len(chunk)
        sample = SampleRequest(SamplingParams(), end) if end == len(ids) else None
        shard.step([Work("asked", start, ids=chunk, sample=sample)])
    took = time.perf_counter() - began
    shard.close("asked")
    shard.tidy()
    return took


def copying() -> None:
    """What a reuse of 1,000 positions of 10 layers copies, and what that takes."""
    torch.set_num_threads(1)  # as the shard does
    kv = SessionKV(10, 1024)
    for layer in range(10):
        kv.write(layer, 0, torch.randn(3, BEGINNING, 64), torch.randn(3, BEGINNING, 64))
    with tempfile.TemporaryDirectory() as folder:
        file = SpillFile(Path(folder))
        began = time.perf_counter()
        written = file.append(kv.parts(0, BEGINNING))
        wrote = time.perf_counter() - began
        parts = kv.parts(0, BEGINNING)
        ways = {"memory": lambda: iter(parts), "file": lambda: (tensor for _, _, tensor in file.read())}
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(5):
            for name, way in ways.items():
                began = time.perf_counter()
                fresh = SessionKV(10, 1024)
                fresh.expected = BEGINNING
                for number, tensor in enumerate(way()):
                    fresh.put(number // 2, number % 2, 0, tensor)
                taken[name].append(time.perf_counter() - began)
        file.close()
    shown = ", ".join(f"from {name} {median(times) * 1e3:.1f} ms" for name, times in taken.items())
    print(f"a third of the model, {BEGINNING} positions, {written / 1e6:.0f} MB: write {wrote * 1e3:.1f} ms, {shown}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    copying()
    with processes(equal_parts(3)) as swarm:
        found = rounds(swarm.bootstrap, options.rounds)
    bars = Bars()
    first, second = (median(results[which].ttft_s for results in found) for which in (0, 1))
    shown = f"{second * 1e3:.0f} ms against {first * 1e3:.0f}: {100 * second / first:.1f} %"
    bars.check(f"first token after the same {BEGINNING} tokens", second <= BAR * first, shown)
    same = sum(again.tokens == alone.tokens for _, again, alone in found)
    bars.check("the same tokens as without reuse", same == len(found), f"{same} of {len(found)}")
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
