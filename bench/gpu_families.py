"""Does a node with a GPU compute every family right? Through the loading that a node does, from blocks of a store.

Small random models with heads as the kernels take them: the lean families run lean, past their windows, some others on
transformers' modules. Reference: transformers in float32; its own bf16 run says what rounding alone does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paceline.engine.convert import from_model
from paceline.engine.cuda_shard import LeanShard
from paceline.engine.loading import LoadConfig, load_service
from paceline.engine.shard import SampleRequest, Work
from paceline.engine.source import publish
from paceline.engine.torch_shard import TorchShard
from paceline.store.store import Store
from paceline.wire.messages import Dtype
from paceline.wire.sampling import SamplingParams

_SMALL = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
_SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-scaled": {
        "rope_parameters": {**_SCALED, "original_max_position_embeddings": 64},
        "tie_word_embeddings": True,
    },
    "llama-wide": {"hidden_size": 768, "num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 128},
    "mistral": {"sliding_window": 100},
    "qwen2": {"hidden_size": 448, "num_attention_heads": 7, "num_key_value_heads": 1},
    "qwen2-sliding": {"hidden_size": 512, "use_sliding_window": True, "sliding_window": 40, "max_window_layers": 2},
    "qwen3": {"head_dim": 128},
    "olmo2": {"hidden_size": 512},
    "gemma2": {"sliding_window": 40, "query_pre_attn_scalar": 64},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256},
}
ON_MODULES = ("olmo2", "gemma2", "qwen3_moe")
"""Run on transformers' modules; in float32 here, because rounding moves a token of a mixture to another expert."""
_CHUNKS = (70, 33, 1, 1, 90, 1, 1, 1, 1)


def model_of(name: str) -> Any:
    """Random weights, float32, on the CPU."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[name.partition("-")[0]](**{**_SMALL, **FAMILIES[name]})
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * spread)
            parameter.copy_(parameter.bfloat16())  # what a bf16 node holds is then exact
    return model


@torch.inference_mode()
def check(judge: Callable[[str, bool, str], None]) -> None:
    """Judge each family."""
    for name in FAMILIES:
        model = model_of(name)
        ids = torch.randint(3, 1000, (sum(_CHUNKS),), generator=torch.Generator().manual_seed(1))
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            publish(store, from_model(model, "f32"), name)
            dtype: Dtype = "f32" if name in ON_MODULES else "bf16"
            config = LoadConfig(model=name, device="cuda", dtype=dtype, kv_positions=4096)
            shard = load_service(store, config, lambda *_: None).shard
        exact = model.cuda()(ids[None].cuda()).logits[0]
        rounding = _off(model.bfloat16()(ids[None].cuda()).logits[0], exact)
        assert isinstance(shard, LeanShard | TorchShard)
        if isinstance(shard, LeanShard):
            shard.lean.kv.fill_(float("nan"))
        rows = [sum(_CHUNKS[: at + 1]) - 1 for at in range(len(_CHUNKS))]
        error = _off(_logits(shard, ids.tolist()), exact[rows])
        assert isinstance(shard, LeanShard) == (name not in ON_MODULES)
        if isinstance(shard, LeanShard):
            shown = f"{error:.1e}, rounding alone {rounding:.1e}"
            judge(f"{name}, lean, {shard.numerics}", error <= 1.5 * rounding, shown)
        else:
            judge(f"{name}, transformers' modules, {shard.numerics}", error <= 1e-3, f"{error:.1e}")


def _logits(shard: LeanShard | TorchShard, log: Sequence[int]) -> Tensor:
    """After each chunk."""
    shard.open("s", len(log))
    found, at = [], 0
    for n in _CHUNKS:
        work = Work("s", at, ids=log[at : at + n], sample=SampleRequest(SamplingParams(), at + n))
        if isinstance(shard, LeanShard):
            shard.step([work])
            assert shard.logits is not None
            found.append(shard.logits[0].clone())
        else:
            rows = shard.input(work)
            assert rows is not None
            found.append(shard.logits(shard.forward([work], rows))[-1].clone())
        at += n
    shard.close("s")
    return torch.stack(found)


def _off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())
