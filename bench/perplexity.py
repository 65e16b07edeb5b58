"""What does a class of weights cost in perplexity?

``python -m bench.perplexity``: the default model in each class reads the texts of bench/texts (Carroll 1865, Darwin
1859, both long free), each from its beginning; the perplexity of their tokens is compared with that of float32. The
forms of a GPU's weights (engine.cuda_matrix) are computed here in plain torch with rows in float32, so that what they
cost is the weights' rounding alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any, cast

import torch

from bench.common import default_manifest
from paceline.client.tokenizer import Tokenizer
from paceline.engine.cuda_matrix import FORMS
from paceline.engine.cuda_ops import Rows
from paceline.engine.cuda_shard import LeanShard
from paceline.engine.linear import CLASSES
from paceline.engine.shard import Work
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
def perplexity(shard: TorchShard | LeanShard, asked: list[list[int]]) -> float:
    """Of all texts' tokens but the first of each."""
    total, count = 0.0, 0
    for ids in asked:
        shard.open("text", len(ids))
        logits = (_lean_logits if isinstance(shard, LeanShard) else _logits)(shard, ids)[:-1].double()
        shard.close("text")
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    return math.exp(total / count)


def _logits(shard: Any, ids: list[int]) -> torch.Tensor:
    work = Work("text", 0, ids=ids)
    rows = shard.input(work)
    assert rows is not None
    return cast("torch.Tensor", shard.logits(shard.forward([work], rows)))


def _lean_logits(shard: Any, ids: list[int]) -> torch.Tensor:
    """A lean shard tells the logits of a chunk's last row alone: of its layers, then."""
    n, slot = len(ids), shard._pages["text"].slot
    slots, positions = torch.full((n,), slot), torch.arange(n)
    rows = Rows(slots.int(), positions.int(), torch.tensor([[0, n, 0, slot]]).int(), whole=True)
    h = shard.lean.layers(shard.lean.embed(torch.tensor(ids)), rows, shard.span)
    return cast("torch.Tensor", shard.lean.logits(h))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    store, manifest = default_manifest()
    asked = texts(store, manifest)
    print(f"{sum(map(len, asked))} tokens of {len(asked)} texts")
    exact = 0.0
    for weights in CLASSES:
        found = perplexity(TorchShard.load(store, manifest, manifest.span, weights=weights), asked)
        exact = exact or found
        print(f"CPU {weights:5s} perplexity {found:.3f} ({100 * (found / exact - 1):+.2f} %)", flush=True)
    for form in FORMS:
        shard = LeanShard.load(store, manifest, manifest.span, device="cpu", dtype="f32", form=form)
        found = perplexity(shard, asked)
        print(f"GPU {form:5s} perplexity {found:.3f} ({100 * (found / exact - 1):+.2f} %)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
