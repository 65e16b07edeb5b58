"""Does a model split into shards compute what the whole model computes?

``python -m bench.parity_shards``: (a) greedy tokens of the default model, whole and in 2, 3 and 5 shards, against
transformers' `generate()` in float32; (b) logits of tiny random models of every certified family in 3 shards, with
chunked prefill and decode past any sliding window, against the whole model. Exits non-zero on any difference.
`tiny_model`, `ARCHITECTURES` and `ShardRing` are for bench.parity, which does the same over a real swarm.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paceline.engine import default_model
from paceline.engine.convert import from_model
from paceline.engine.family import CERTIFIED
from paceline.engine.shard import Activations, SampleRequest, Work
from paceline.engine.source import publish
from paceline.engine.split import even_split
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams

_SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALTERNATE = ["sliding_attention", "full_attention"] * 3
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-3-rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "mistral": {"sliding_window": 8, "head_dim": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "qwen2": {},
    "qwen2-sliding": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    "qwen2_moe": {**_MOE, "num_experts": 4, "shared_expert_intermediate_size": 64, "decoder_sparse_step": 2},
    "qwen3": {"head_dim": 24},
    "qwen3_moe": {**_MOE, "num_experts": 4, "head_dim": 16, "norm_topk_prob": True},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "layer_types": _ALTERNATE},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "layer_types": _ALTERNATE},
    "phi3": {"sliding_window": 8},
    "olmo2": {},
    "olmo3": {"sliding_window": 8, "layer_types": _ALTERNATE},
    "glm4": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "gpt_oss": {"head_dim": 16, "sliding_window": 8, "num_local_experts": 4, "layer_types": _ALTERNATE},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"sliding_window": 8, "layer_types": _ALTERNATE, "head_dim": 16, "logit_scale": 0.25},
    "smollm3": {"no_rope_layer_interval": 3},
    "seed_oss": {"head_dim": 16},
    "arcee": {"head_dim": 16},
    "exaone4": {"sliding_window": 8, "sliding_window_pattern": 2},
    "starcoder2": {"sliding_window": 8},
}
"""Name (its part before "-" is the `model_type`) → what its tiny configuration changes."""

PROMPTS = (
    "The capital of France is",
    "Write a short story about a cyclist who",
    "def fibonacci(n):\n    ",
    "Question: What is 12 times 12?\nAnswer:",
    "Once upon a time, in a village by the sea,",
    "The three laws of thermodynamics are",
)


def tiny_model(arch: str, folder: Path, seed: int = 0) -> Any:
    """A random-weight transformers model of `arch` (a key of ARCHITECTURES), saved to `folder`, in float32."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    config = CONFIG_MAPPING[arch.partition("-")[0]](**{**_SMALL, **ARCHITECTURES[arch]})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * spread * (0.3 if "embed" in name else 1.0))
    disable_progress_bar()
    model.save_pretrained(folder)
    return model


class ShardRing:
    """All shards of a model in this process, called one after the other: a swarm without a network."""

    def __init__(self, store: Store, manifest: Manifest, spans: Sequence[Span], **options: Any) -> None:
        self.shards = [TorchShard.load(store, manifest, span, **options) for span in spans]

    def open(self, positions: int) -> None:
        for shard in self.shards:
            shard.close("s")
            shard.open("s", positions)

    def last_logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Append `ids` to the session; logits ``[len(ids), vocab]``."""
        carried: Activations | None = None
        for shard in self.shards[:-1]:
            start = shard.length("s")
            carried = shard.step([Work("s", start, ids=ids if carried is None else None, activations=carried)])[
                0
            ].activations
        tail = self.shards[-1]
        work = Work("s", tail.length("s"), ids=ids if carried is None else None, activations=carried)
        with torch.inference_mode():
            rows = tail.input(work)
            assert rows is not None
            return tail.logits(tail.forward([work], rows))

    def generate(self, prompt: Sequence[int], n: int) -> list[int]:
        """Greedy tokens, through `step` alone."""
        self.open(len(prompt) + n)
        log, fresh = list(prompt), list(prompt)
        while len(log) < len(prompt) + n:
            carried: Activations | None = None
            for shard in self.shards:
                ids = fresh if carried is None else None
                request = SampleRequest(SamplingParams(), len(log)) if shard is self.shards[-1] else None
                output = shard.step([Work("s", len(log) - len(fresh), ids=ids, activations=carried, sample=request)])[0]
                carried = output.activations
            assert output.sampled is not None
            fresh = [output.sampled.token]
            log += fresh
        return log[len(prompt) :]


@dataclass(frozen=True, slots=True)
class Difference:
    """Greatest distances of logits from a float64 run of the whole model, in units of the logits' spread.

    `ours`: shards in float32; `theirs`: the whole model in float32, which is what rounding alone does.
    """

    ours: float
    theirs: float

    @property
    def within_rounding(self) -> bool:
        """A wrong mask, position or window shows as 1e-2 and more; rounding differs by a small factor."""
        return self.ours <= max(5 * self.theirs, 2e-6) and self.ours < 1e-3


def tiny_difference(arch: str, folder: Path) -> Difference:
    """3 shards, prefill in chunks, then decode past any window, against the whole model in one pass."""
    whole = tiny_model(arch, folder / "hf")
    store = Store(folder / "store")
    manifest = publish(store, from_model(whole, "f32"), f"tiny-{arch}")
    ring = ShardRing(store, manifest, even_split(len(manifest.layers), 3))
    ids = torch.randint(3, 256, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = whole(ids).logits[0].double()
        whole.set_experts_implementation("eager")
        exact = whole.double()(ids).logits[0].double()
    ring.open(64)
    pieces, log = [], ids[0].tolist()
    for start, end in ((0, 5), (5, 17), (17, 24), *((at, at + 1) for at in range(24, 40))):
        pieces.append(ring.last_logits(log[start:end]))
    spread = float(exact.std())
    ours = torch.cat(pieces).double()
    return Difference(float((ours - exact).abs().max()) / spread, float((theirs - exact).abs().max()) / spread)


def check_tiny() -> bool:
    """Print the table of families; True where all agree."""
    good = True
    print("largest distance of logits from a float64 run, in units of their spread")
    print(f"{'family':16s} {'3 shards':>10s} {'whole':>10s}")
    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            difference = tiny_difference(arch, Path(folder))
        good &= difference.within_rounding
        verdict = "ok" if difference.within_rounding else "DIFFERS"
        print(f"{arch:16s} {difference.ours:10.1e} {difference.theirs:10.1e}  {verdict}", flush=True)
    absent = CERTIFIED - {arch.partition("-")[0] for arch in ARCHITECTURES}
    if absent:
        print(f"certified but not checked: {', '.join(sorted(absent))}")
    return good and not absent


def reference_model(store: Store, manifest: Manifest) -> Any:
    """The default model as one transformers model in float32, filled from the store's blocks."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from paceline.engine.blocks import read_tensors

    config = CONFIG_MAPPING[manifest.family].from_dict(dict(manifest.config))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    named = [(f"model.layers.{at}.", block) for at, block in enumerate(manifest.layers)]
    for prefix, block in (*named, ("model.embed_tokens.", manifest.embed), ("model.", manifest.head)):
        tensors = read_tensors(store.path(block.digest))
        model.load_state_dict({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, strict=False)
    model.tie_weights()
    return model


def greedy_reference(model: Any, prompt: Sequence[int], n: int) -> list[int]:
    """transformers' `generate()`, greedy, exactly `n` tokens."""
    ids = torch.tensor([list(prompt)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False)
    return [int(token) for token in out[0, len(prompt) :]]


def check_default(prompts: Sequence[str], n: int, splits: Sequence[int], store: Store) -> bool:
    """Print the table of splits; True where every token agrees."""
    from tokenizers import Tokenizer

    manifest = default_model.ensure(store)
    assert manifest.tokenizer is not None
    tokenizer = Tokenizer.from_str(store.read(manifest.tokenizer.digest).decode())
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    model = reference_model(store, manifest)
    model.generation_config.eos_token_id = None
    want = [greedy_reference(model, prompt, n) for prompt in ids]
    good = True
    for parts in splits:
        began = time.perf_counter()
        ring = ShardRing(store, manifest, even_split(len(manifest.layers), parts))
        same = [ring.generate(prompt, n) == tokens for prompt, tokens in zip(ids, want, strict=True)]
        good &= all(same)
        took = time.perf_counter() - began
        print(
            f"{manifest.name} in {parts} shards: {sum(same)}/{len(same)} prompts × {n} tokens equal ({took:.1f} s)",
            flush=True,
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--splits", default="1,2,3,5")
    parser.add_argument("--tiny-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    good = check_tiny()
    if not options.tiny_only:
        splits = [int(part) for part in options.splits.split(",")]
        good &= check_default(PROMPTS, options.tokens, splits, Store())
    print("all equal" if good else "NOT EQUAL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
