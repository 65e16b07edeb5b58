"""Which models the lean GPU path knows, and what it must know of them. Reads a configuration; no torch, no weights.

Lean: Llama, Mistral, Qwen2 and Qwen3 as their configurations usually are. Whatever else a configuration asks for
(another activation, biases elsewhere, a partial rotation) makes it "not lean", and transformers' own modules run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEAN = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type`s."""

HEAD_SIZES = (32, 64, 128)
"""That the kernels were proven with; plain torch takes any even one."""


@dataclass(frozen=True, slots=True)
class Arch:
    """The numbers of a dense decoder: RMSNorm, rotary grouped-query attention, SwiGLU. Sizes in elements."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocab: int
    eps: float
    windows: tuple[int, ...]
    """Of each layer: how many positions it sees; 0: all."""
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def qkv(self) -> int:
        """Width of the fused product of queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * self.head

    @property
    def layer_parameters(self) -> int:
        """Elements of one layer's matrices: what a decode step reads of it."""
        return self.hidden * (self.qkv + self.heads * self.head + 3 * self.inner)

    @property
    def fits_kernels(self) -> bool:
        """False where only plain torch can run it."""
        return self.head in HEAD_SIZES and self.hidden % 16 == 0 and self.inner % 16 == 0

    def names(self) -> frozenset[str]:
        """Every parameter of one layer, as a block names it."""
        found = {f"self_attn.{part}_proj.weight" for part in "qkvo"} | {"mlp.gate_proj.weight", "mlp.up_proj.weight"}
        found |= {"mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight"}
        if self.qkv_bias:
            found |= {f"self_attn.{part}_proj.bias" for part in "qkv"}
        if self.qk_norm:
            found |= {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
        return frozenset(found)


def arch_of(config: Any) -> Arch | None:
    """Of a transformers configuration; None where it is not lean."""
    family = config.model_type
    if family not in LEAN or config.hidden_act != "silu" or not _plain(config):
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Arch(
        family=family,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head=head,
        inner=config.intermediate_size,
        vocab=config.vocab_size,
        eps=config.rms_norm_eps,
        windows=_windows(config),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def _plain(config: Any) -> bool:
    if getattr(config, "mlp_bias", False) or (
        config.model_type != "qwen2" and getattr(config, "attention_bias", False)
    ):
        return False
    return float((getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor") or 1.0) == 1.0


def _windows(config: Any) -> tuple[int, ...]:
    """Mistral's window is every layer's; Qwen's belongs to the layers that its configuration names."""
    window, layers = int(getattr(config, "sliding_window", None) or 0), int(config.num_hidden_layers)
    if config.model_type == "mistral":
        return (window,) * layers
    kinds = getattr(config, "layer_types", None) or ("full_attention",) * layers
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
