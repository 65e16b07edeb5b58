"""The common decoder layer in a dozen operations: norm, queries with keys and values, rotation, attention, output;
norm, gate, up, down. Each product adds or multiplies what follows it.

Taken where it computes what transformers' own layer computes: every layer is compared with it, on a probe, before it
replaces it. Families that do something else keep their own layer. Knows tensors and modules; no sessions, no files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from paceline.engine.attention import attend_rows
from paceline.engine.kv import PackedStep, Segment, SessionKV
from paceline.engine.linear import Packed, Product, product
from paceline.engine.shard import Weights

Angles = tuple[Tensor, Tensor]
"""Cosines, and sines whose first half is negative: ``[rows, 1, head size]``."""

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_TOLERANCE = 1e-4


def angles(cos: Tensor, sin: Tensor) -> Angles:
    """From a rotary table's ``[1, rows, head size]`` twice."""
    half = sin.shape[-1] // 2
    signed = torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)
    return cos[0, :, None], signed[:, None]


class LeanLayer(nn.Module):
    """See the module's docstring. Raises AttributeError, TypeError or ValueError where `layer` is of another make."""

    def __init__(self, layer: Any, weights: Weights) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        _only(layer, ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"))
        _only(attention, (*_PROJECTIONS, "q_norm", "k_norm"))
        _only(mlp, (*_MLP, "act_fn"))
        q, k, v, o = (_linear(attention, name) for name in _PROJECTIONS)
        gate, up, down = (_linear(mlp, name) for name in _MLP)
        self.index: int = attention.layer_idx
        self._size: int = attention.head_dim
        self._heads, self._kv = q.out_features // self._size, k.out_features // self._size
        self.scale: float = attention.scaling
        self.window: int | None = None
        self._first, self._second = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self._qk = None if norms[0] is None else [_norm(norm) for norm in norms]
        bias = None if q.bias is None else torch.cat([part.bias.data for part in (q, k, v)])
        self._qkv = product(torch.cat([part.weight.data for part in (q, k, v)]), bias, weights)
        self._o, self._gate, self._up, self._down = (_product(part, weights) for part in (o, gate, up, down))
        self.hidden = q.in_features
        self.join: Callable[[Tensor], Tensor] | None = None
        """Where ranks hold a part of the layer each: the sum of their partial products (engine.tensor_split)."""

    def forward(self, hidden: Tensor, turned: Angles, step: PackedStep) -> Tensor:
        """``[rows, hidden]`` → the same."""
        rows, size, heads, kv = len(hidden), self._size, self._heads, self._kv
        mixed = self._qkv(rms_norm(hidden, (self.hidden,), *self._first)).view(rows, heads + 2 * kv, size)
        turning = mixed[:, : heads + kv]
        if self._qk is not None:
            parts = (turning[:, :heads], turning[:, heads:])
            turning = torch.cat([rms_norm(x, (size,), *n) for x, n in zip(parts, self._qk, strict=True)], dim=1)
        turning = torch.addcmul(turning * turned[0], turning.roll(size // 2, dims=-1), turned[1])
        query, key, value = turning[:, :heads], turning[:, heads:], mixed[:, heads + kv :]
        step.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], self.index)
        seen = attend_rows(step, self.index, query.transpose(0, 1), self.scale, self.window)
        hidden = self._plus(self._o, seen.transpose(0, 1).reshape(rows, heads * size), hidden)
        normed = rms_norm(hidden, (self.hidden,), *self._second)
        if isinstance(self._gate, Packed) and isinstance(self._up, Packed):
            inner = self._up.times(normed, self._gate.swish(normed))
        else:
            inner = silu(self._gate(normed)).mul_(self._up(normed))
        return self._plus(self._down, inner, hidden)

    def _plus(self, last: Product, x: Tensor, hidden: Tensor) -> Tensor:
        return last.plus(x, hidden) if self.join is None else self.join(last(x)).add_(hidden)


Norm = tuple[Tensor, float]


def lean(layer: Any, turn: Callable[[int], tuple[Tensor, Tensor]], weights: Weights) -> nn.Module | None:
    """`layer`'s lean form, or None where it is of another make or computes something else.

    `turn`: the first positions' cosines and sines, ``[1, n, head size]`` each. The comparison is made in float32; only
    then the weights take the form of their class.
    """
    try:
        trial = LeanLayer(layer, "f32")
        if not _same(layer, trial, turn):
            return None
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    if weights == "f32":
        return trial
    made = LeanLayer(layer, weights)
    made.scale, made.window = trial.scale, trial.window
    return made


@torch.inference_mode()
def _same(layer: Any, trial: LeanLayer, turn: Callable[[int], tuple[Tensor, Tensor]]) -> bool:
    """Five positions at once and one more, in both. What the layer tells the attention function is taken over."""
    signs = torch.linspace(-6.0, 6.0, 25)
    if not torch.allclose(layer.mlp.act_fn(signs), silu(signs), atol=1e-6):
        return False
    hidden, holder = trial.hidden, layer.self_attn.paceline
    probe = torch.sin(torch.arange(6 * hidden, dtype=torch.float32) * 0.7).view(6, hidden)
    found: list[Tensor] = []
    for ours in (False, True):
        if ours:
            scale, trial.window, plain = holder.asked
            trial.scale = trial.scale if scale is None else scale
            if plain:
                return False
        kv = SessionKV(1, 64)
        for start, n in ((0, 5), (5, 1)):
            cos, sin = (table[:, start : start + n] for table in turn(6))
            rows = probe[start : start + n]
            step = PackedStep([Segment(kv, start, n, 0)], trial.index)
            if ours:
                found.append(trial(rows, angles(cos, sin), step))
                continue
            holder.step = step
            theirs = layer(
                rows[None],
                attention_mask=None,
                position_ids=None,
                past_key_values=step,
                use_cache=True,
                position_embeddings=(cos, sin),
            )
            found.append((theirs[0] if isinstance(theirs, tuple) else theirs)[0])
        holder.step = None
    theirs, mine = torch.cat(found[:2]) - probe, torch.cat(found[2:]) - probe
    return bool((theirs - mine).abs().max() <= _TOLERANCE * theirs.abs().max())


def _only(module: nn.Module, names: tuple[str, ...]) -> None:
    strange = {name for name, _ in module.named_children()} - set(names)
    if strange:
        raise ValueError(f"{type(module).__name__} has {', '.join(sorted(strange))}")


def _linear(module: nn.Module, name: str) -> nn.Linear:
    found = getattr(module, name)
    if type(found) is not nn.Linear:
        raise TypeError(f"{name} is a {type(found).__name__}")
    return found


def _product(part: nn.Linear, weights: Weights) -> Product:
    return product(part.weight.data, None if part.bias is None else part.bias.data, weights)


def _norm(module: Any) -> Norm:
    """Weight and epsilon."""
    (parameter,) = module.parameters()
    epsilon = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return parameter.data.clone(), float(epsilon)
