"""Shapes with random weights, for both sides of a comparison: our lean shards, and transformers on the same tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paceline.engine import cuda_weights
from paceline.engine.cuda_arch import Arch, arch_of
from paceline.engine.cuda_matrix import dense
from paceline.engine.cuda_shard import LeanShard
from paceline.engine.cuda_weights import SpanWeights
from paceline.engine.shard import ModelShape, Weights
from paceline.wire.ids import Span

SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
    },
}
CONTEXT = 8192


def config_of(shape: str, layers: int | None = None) -> Any:
    """transformers' configuration of a shape, maybe of fewer layers."""
    from transformers import LlamaConfig

    numbers = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    return LlamaConfig(**numbers)


def random_weights(config: Any) -> SpanWeights:
    """Of the whole model, bf16, on the GPU."""
    arch = known(config)
    return cuda_weights.random(arch, Span(0, arch.layers), config, torch.device("cuda"), torch.bfloat16, CONTEXT)


def known(config: Any) -> Arch:
    """The lean path's view of a configuration that it knows."""
    arch = arch_of(config)
    assert arch is not None
    return arch


def lean_shard(
    config: Any, weights: SpanWeights, span: Span | None = None, positions: int = 65_536, form: Weights = "f32"
) -> LeanShard:
    """A shard over `span` (default: all) of `weights`, which are the whole model's, in `form`."""
    arch = known(config)
    span = span or Span(0, arch.layers)
    part = SpanWeights(
        weights.layers[span.start : span.end],
        weights.cos,
        weights.sin,
        weights.embed if span.start == 0 else None,
        weights.norm if span.end == arch.layers else None,
        weights.lm_head if span.end == arch.layers else None,
    )
    shape = ModelShape(arch.layers, arch.hidden, arch.vocab, CONTEXT)
    return LeanShard.over(arch, part, span, shape, "bf16", positions, form=form)


def densified(weights: SpanWeights, dtype: torch.dtype) -> SpanWeights:
    """Coded weights as the numbers that they stand for."""
    names = ("qkv", "o", "gate_up", "down")
    layers = tuple(
        replace(layer, **{name: dense(getattr(layer, name), dtype) for name in names}) for layer in weights.layers
    )
    return replace(weights, layers=layers, lm_head=None if weights.lm_head is None else dense(weights.lm_head, dtype))


def transformers_model(config: Any, weights: SpanWeights, attention: str, dtype: torch.dtype | None = None) -> Any:
    """transformers' model over the same tensors (views of the fused ones; copies where `dtype` differs)."""
    from transformers import LlamaForCausalLM

    arch = known(config)
    state: dict[str, Tensor | None] = {"model.embed_tokens.weight": weights.embed, "model.norm.weight": weights.norm}
    state["lm_head.weight"] = None if weights.lm_head is None else dense(weights.lm_head, torch.bfloat16)
    wide = (arch.heads * arch.head, arch.kv_heads * arch.head, arch.kv_heads * arch.head)
    for at, layer in enumerate(weights.layers):
        prefix = f"model.layers.{at}."
        qkv, o, gate_up, down = (dense(it, torch.bfloat16) for it in (layer.qkv, layer.o, layer.gate_up, layer.down))
        query, key, value = qkv.split_with_sizes(wide)
        gate, up = gate_up.chunk(2)
        names = {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": value}
        names |= {"self_attn.o_proj": o, "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": down}
        names |= {"input_layernorm": layer.norm, "post_attention_layernorm": layer.mlp_norm}
        state |= {f"{prefix}{name}.weight": tensor for name, tensor in names.items()}
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, dtype=dtype or torch.bfloat16, attn_implementation=attention)
    filled = {name: tensor.to(dtype or tensor.dtype) for name, tensor in state.items() if tensor is not None}
    model.load_state_dict(filled, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to("cuda")
    return model.eval().requires_grad_(False)
