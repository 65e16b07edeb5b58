"""What does a position cost, the longer the context?

``python -m bench.context``: one session of the default model grows to 8,192 positions in prompts of 512; on the way,
the cost of a decode step and of prefill per position at each length. Attention must read every earlier key and value,
so its cost per position grows in proportion to the context and no faster: exit status 1 where a step's cost per
position of context is, at 8,192, over 1.3 × what it is at 2,048.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from bench.common import Bars, default_manifest, machine
from paceline.engine.shard import SampleRequest, Work
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.sampling import SamplingParams

LONGEST, CHUNK, STEPS = 8_192, 512, 8
SHOWN = (0, 512, 1_024, 2_048, 4_096, 8_192 - CHUNK)
ALLOWED = 1.3


def table(bars: Bars, store: Store, manifest: Manifest) -> None:
    """Print it, and judge."""
    shard = TorchShard.load(store, manifest, manifest.span)
    shard.open("long", LONGEST)
    decode: dict[int, float] = {}
    print(f"{'context':>8s} {'decode, ms':>11s} {'prefill of 512, ms a position':>30s}")
    for start in range(0, LONGEST, CHUNK):
        if start in SHOWN and start:
            decode[start] = min(_seconds(shard, start, 1) for _ in range(STEPS))
        ids = min(CHUNK, LONGEST - start)
        prefill = _seconds(shard, start, ids, keep=True)
        if start in SHOWN:
            step = f"{decode[start] * 1e3:11.1f}" if start else " " * 11
            print(f"{start:8d} {step} {prefill / ids * 1e3:30.2f}", flush=True)
    last = LONGEST - 1
    shard.crop("long", last)
    decode[last] = min(_seconds(shard, last, 1) for _ in range(STEPS))
    print(f"{last:8d} {decode[last] * 1e3:11.1f}")
    shard.close("long")
    slope, early = ((decode[at] - decode[512]) / (at - 512) for at in (last, 2_048))
    shown = f"{slope * 1e9:.0f} ns a position of context at 8,192, {early * 1e9:.0f} at 2,048"
    bars.check("decode grows no faster than attention must", slope <= ALLOWED * early, shown)


def _seconds(shard: TorchShard, start: int, n: int, *, keep: bool = False) -> float:
    work = Work("long", start, ids=[100 + k for k in range(n)], sample=SampleRequest(SamplingParams(), start + n))
    began = time.perf_counter()
    shard.step([work])
    took = time.perf_counter() - began
    if not keep:
        shard.crop("long", start)
    return took


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(2)
    print(machine())
    bars = Bars()
    table(bars, *default_manifest())
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
