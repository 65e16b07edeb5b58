"""What does a class of weights cost in perplexity?

``python -m bench.perplexity``: the default model in each class reads the texts of bench/texts (Carroll 1865, Darwin
1859, both long free), each from its beginning; the perplexity of their tokens is compared with that of float32.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import get_args

import torch

from bench.common import default_manifest
from paceline.client.tokenizer import Tokenizer
from paceline.engine.shard import Weights, Work
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store

TEXTS = Path(__file__).parent / "texts"


def texts(store: Store, manifest: Manifest) -> list[list[int]]:
    """The texts' tokens."""
    assert manifest.tokenizer is not None
    tokenizer = Tokenizer(store.read(manifest.tokenizer.digest))
    return [tokenizer.encode(path.read_text(encoding="utf-8")) for path in sorted(TEXTS.glob("*.txt"))]


@torch.inference_mode()
def perplexity(shard: TorchShard, asked: list[list[int]]) -> float:
    """Of all texts' tokens but the first of each."""
    total, count = 0.0, 0
    for ids in asked:
        shard.open("text", len(ids))
        work = Work("text", 0, ids=ids)
        rows = shard.input(work)
        assert rows is not None
        logits = shard.logits(shard.forward([work], rows)[:-1]).double()
        shard.close("text")
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    return math.exp(total / count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    store, manifest = default_manifest()
    asked = texts(store, manifest)
    print(f"{sum(map(len, asked))} tokens of {len(asked)} texts")
    exact = 0.0
    for weights in get_args(Weights):
        found = perplexity(TorchShard.load(store, manifest, manifest.span, weights=weights), asked)
        exact = exact or found
        print(f"{weights:5s} perplexity {found:.3f} ({100 * (found / exact - 1):+.2f} %)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
