"""The other side: transformers' continuous batching over the same weights, as fast as its settings make it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu_models import transformers_model
from paceline.engine.cuda_weights import SpanWeights

AS_IT_COMES = "as it comes"
SETTINGS: dict[str, dict[str, Any]] = {
    AS_IT_COMES: {},
    "CUDA graphs": {"use_cuda_graph": True},
}
"""Of ContinuousBatchingConfig. Attention is "sdpa", instead of which it takes flash attention where it finds it. Tried
before and slower: 8192 tokens a batch, asynchronous batching, graphs with half the memory (docs/LOG.md)."""


def generate_batch(config: Any, weights: SpanWeights, prompts: Sequence[Sequence[int]], new: int) -> dict[str, float]:
    """Seconds for all prompts × `new` tokens by setting; each is run up to three times, and the best counts."""
    import transformers
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = transformers_model(config, weights, "sdpa")
    generation = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
    print(
        f"transformers {transformers.__version__} generate_batch, greedy, {len(prompts)} × {len(prompts[0])} + {new}:"
    )
    best: dict[str, float] = {}
    for name, extra in SETTINGS.items():
        times, wrong = [], ""
        try:
            for _ in range(3):
                settings = ContinuousBatchingConfig(**extra)
                torch.cuda.synchronize()
                began = time.perf_counter()
                out = model.generate_batch(
                    inputs=[list(prompt) for prompt in prompts],
                    generation_config=generation,
                    continuous_batching_config=settings,
                    progress_bar=False,
                )
                times.append(time.perf_counter() - began)
                lengths = {len(one.generated_tokens) for one in out.values()}
                if len(out) != len(prompts) or lengths != {new}:
                    wrong = f"{len(out)} answers of {sorted(lengths)} tokens"
                    break
                if sum(times) > 30:
                    break
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            wrong = f"{type(error).__name__}: {str(error)[:200]}"
        if wrong or not times:
            print(f"   {name}: does not run here ({wrong})", flush=True)
        else:
            best[name] = min(times)
            shown = ", ".join(f"{taken:.2f}" for taken in times)
            print(f"   {name} {extra}: {shown} s, {len(prompts) * new / min(times):.0f} tokens/s", flush=True)
        torch.cuda.empty_cache()
    return best
