"""Does a swarm say exactly what one process says?

``python -m bench.parity``: (1) greedy tokens of real node processes, in splits of 1, 2, 3 and 5, equal transformers'
`generate()` in float32, for 20 prompts × 64 tokens; (2) tiny random models of every certified family, split in 3,
give the logits of the whole model (bench.parity_shards); (3) a family that is not certified is refused, typed;
(4) the same tokens while nodes batch, reuse prefixes and move KV to disk and back (bench.parity_kv).
Exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import msgspec
import torch

from bench import parity_kv
from bench.common import PROMPTS, Bars, default_manifest, equal_parts, machine, processes
from bench.parity_shards import check_tiny, greedy_reference, reference_model
from paceline.client.sync import Client
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import UnsupportedModel


def swarm_tokens(parts: int, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """What a swarm of `parts` processes generates."""
    with processes(equal_parts(parts)) as swarm, Client(swarm.bootstrap) as client:
        return [
            [piece.token for piece in client.generate(prompt, max_tokens=tokens, ignore_eos=True)] for prompt in prompts
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20, choices=range(1, 21), metavar="N")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--splits", default="1,2,3,5")
    parser.add_argument("--no-tiny", action="store_true", help="only the real model")
    options = parser.parse_args()
    print(machine())
    bars = Bars()
    store, manifest = default_manifest()
    assert manifest.tokenizer is not None
    from paceline.client.tokenizer import Tokenizer

    tokenizer = Tokenizer(store.read(manifest.tokenizer.digest))
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS[: options.prompts]]
    model = reference_model(store, manifest)
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        want = [greedy_reference(model, prompt, options.tokens) for prompt in prompts]
    del model
    for parts in (int(part) for part in options.splits.split(",")):
        began = time.perf_counter()
        got = swarm_tokens(parts, prompts, options.tokens)
        same = sum(a == b for a, b in zip(got, want, strict=True))
        shown = f"{same}/{len(want)} prompts × {options.tokens} tokens equal ({time.perf_counter() - began:.0f} s)"
        bars.check(f"swarm of {parts}", same == len(want), shown)
    parity_kv.check(bars, store, manifest)
    if not options.no_tiny:
        bars.check("certified families", check_tiny(), "logits within float32 rounding")
        bars.check("unknown family", *_refusal(store, manifest))
    return bars.exit_status()


def _refusal(store: Store, manifest: Manifest) -> tuple[bool, str]:
    try:
        TorchShard.load(store, msgspec.structs.replace(manifest, family="mamba"), manifest.span)
    except UnsupportedModel as error:
        return True, str(error)
    return False, "was not refused"


if __name__ == "__main__":
    sys.exit(main())
