"""A lean span's weights on one device: fused, in the layout that the kernels read. From a store's blocks, or random.

Queries, keys and values are one matrix, gate and up another: a product reads them in one go. Linear weights keep
torch's layout ``[out, in]``, so that every row's bytes are consecutive; they may be coded (engine.cuda_matrix).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paceline.engine import family
from paceline.engine.blocks import read_tensors
from paceline.engine.cuda_arch import Arch
from paceline.engine.cuda_matrix import Matrix, coded, coded_head
from paceline.engine.shard import Weights
from paceline.store.manifest import Block, Manifest
from paceline.store.store import Store
from paceline.wire.errors import UnsupportedModel
from paceline.wire.ids import Span

_ROTARY_CHUNK = 16_384


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Norm gains are vectors."""

    norm: Tensor
    qkv: Matrix
    qkv_bias: Tensor | None
    q_gain: Tensor | None
    k_gain: Tensor | None
    o: Matrix
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix

    def coded(self, form: Weights) -> LayerWeights:
        """The same with its matrices in a form of engine.cuda_matrix."""
        return replace(
            self,
            qkv=coded(self.qkv, form),
            o=coded(self.o, form),
            gate_up=coded(self.gate_up, form),
            down=coded(self.down, form),
        )


@dataclass(frozen=True, slots=True)
class SpanWeights:
    """`cos` and `sin`: float32 ``[context, head / 2]``. `embed` at a head, `norm` and `lm_head` at a tail."""

    layers: tuple[LayerWeights, ...]
    cos: Tensor
    sin: Tensor
    embed: Tensor | None = None
    norm: Tensor | None = None
    lm_head: Matrix | None = None

    def coded(self, form: Weights) -> SpanWeights:
        """The same with its matrices in a form of engine.cuda_matrix; the embedding stays."""
        layers = tuple(layer.coded(form) for layer in self.layers)
        return replace(self, layers=layers, lm_head=None if self.lm_head is None else coded_head(self.lm_head, form))

    @property
    def nbytes(self) -> int:
        """Of everything but the embedding, which a step does not read through."""
        found = [self.norm, self.lm_head]
        for layer in self.layers:
            found += [getattr(layer, name) for name in LayerWeights.__slots__]
        return sum(tensor.nbytes for tensor in found if tensor is not None)


def load(
    store: Store,
    manifest: Manifest,
    arch: Arch,
    span: Span,
    device: torch.device,
    dtype: torch.dtype,
    context: int,
    form: Weights = "f32",
) -> SpanWeights:
    """Read, fuse and code a span's blocks, one after the other.

    Raises UnsupportedModel where they hold other parameters than the family's.
    """

    def read(block: Block) -> dict[str, Tensor]:
        found = read_tensors(store.path(block.digest))
        return {name: tensor.to(device=device, dtype=dtype) for name, tensor in found.items()}

    cos, sin = angles(family.configuration(manifest), arch, context, device)
    layers = tuple(_layer(read(manifest.layers[at]), arch).coded(form) for at in range(span.start, span.end))
    tail = span.end == arch.layers
    embed = read(manifest.embed)["weight"] if span.start == 0 or (tail and manifest.tied) else None
    head = read(manifest.head) if tail else {}
    lm_head = embed if tail and manifest.tied else head.get("lm_head.weight")
    return SpanWeights(
        layers,
        cos,
        sin,
        embed if span.start == 0 else None,
        head.get("norm.weight"),
        None if lm_head is None else coded_head(lm_head, form),
    )


def _layer(tensors: dict[str, Tensor], arch: Arch) -> LayerWeights:
    if tensors.keys() != arch.names():
        raise UnsupportedModel(f"a {arch.family} layer with other parameters than its family's")

    def joined(kind: str, *parts: str) -> Tensor:
        return torch.cat([tensors[f"{part}.{kind}"] for part in parts])

    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return LayerWeights(
        norm=tensors["input_layernorm.weight"],
        qkv=joined("weight", *attention),
        qkv_bias=joined("bias", *attention) if arch.qkv_bias else None,
        q_gain=tensors.get("self_attn.q_norm.weight"),
        k_gain=tensors.get("self_attn.k_norm.weight"),
        o=tensors["self_attn.o_proj.weight"],
        mlp_norm=tensors["post_attention_layernorm.weight"],
        gate_up=joined("weight", "mlp.gate_proj", "mlp.up_proj"),
        down=tensors["mlp.down_proj.weight"],
    )


def angles(config: Any, arch: Arch, context: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, by the family's module. Raises UnsupportedModel where it is not plain."""
    rotary = family.rotary(config, device)
    cos: list[Tensor] = []
    sin: list[Tensor] = []
    for start in range(0, context, _ROTARY_CHUNK):
        at = torch.arange(start, min(context, start + _ROTARY_CHUNK), device=device)[None]
        made = rotary(torch.empty(1, dtype=torch.float32, device=device), at)
        for parts, whole in zip((cos, sin), made, strict=True):
            if whole.shape[-1] != arch.head or not torch.equal(*whole[0].chunk(2, dim=-1)):
                raise UnsupportedModel(f"{arch.family}: its rotation is not of two equal halves")
            parts.append(whole[0, :, : arch.head // 2].float())
    return torch.cat(cos).contiguous(), torch.cat(sin).contiguous()


def random(
    arch: Arch, span: Span, config: Any, device: torch.device, dtype: torch.dtype, context: int, seed: int = 0
) -> SpanWeights:
    """Weights that keep activations of ordinary size, for measuring. The same layer is the same in every span."""

    def made(part: int) -> Callable[..., Tensor]:
        source = torch.Generator(device).manual_seed((seed << 20) + part)

        def draw(*shape: int, spread: float = 0.0, around: float = 0.0) -> Tensor:
            drawn = torch.empty(shape, device=device, dtype=dtype)
            return drawn.normal_(around, spread or shape[-1] ** -0.5, generator=source)

        return draw

    def layer(at: int) -> LayerWeights:
        draw = made(at)
        return LayerWeights(
            norm=draw(arch.hidden, spread=0.1, around=1.0),
            qkv=draw(arch.qkv, arch.hidden),
            qkv_bias=draw(arch.qkv) if arch.qkv_bias else None,
            q_gain=draw(arch.head, spread=0.1, around=1.0) if arch.qk_norm else None,
            k_gain=draw(arch.head, spread=0.1, around=1.0) if arch.qk_norm else None,
            o=draw(arch.hidden, arch.heads * arch.head),
            mlp_norm=draw(arch.hidden, spread=0.1, around=1.0),
            gate_up=draw(2 * arch.inner, arch.hidden),
            down=draw(arch.hidden, arch.inner),
        )

    cos, sin = angles(config, arch, context, device)
    layers = tuple(layer(at) for at in range(span.start, span.end))
    ends = made(1 << 19)
    embed = ends(arch.vocab, arch.hidden, spread=0.5)
    norm, lm_head = ends(arch.hidden, spread=0.1, around=1.0), ends(arch.vocab, arch.hidden)
    tail = span.end == arch.layers
    return SpanWeights(
        layers, cos, sin, embed if span.start == 0 else None, norm if tail else None, lm_head if tail else None
    )
