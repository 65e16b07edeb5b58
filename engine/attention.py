"""Attention of a packed, ragged batch, registered with transformers under the name "paceline".

Each segment attends to its own session's keys and values, causally, within the layer's sliding window. Decode steps
(one row) go through scaled_dot_product_attention with query heads grouped per key head, so nothing is repeated and no
mask is built. Soft caps and attention sinks, which that function does not know, take the plain path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from paceline.engine.kv import PackedStep, Segment

NAME = "paceline"


def register() -> None:
    """Make "paceline" known to transformers. Idempotent."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    """Masks follow from the segments, so transformers need not build any."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`query` ``[1, heads, rows, head size]`` → ``[1, rows, heads, value size]``.

    `key` and `value` were taken by `PackedStep.update` already. `module` carries the shard's StepHolder.
    """
    marked: Any = module
    step: PackedStep = marked.paceline.step
    plain = softcap is not None or s_aux is not None
    marked.paceline.asked = (scaling, sliding_window, plain)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if plain:
        joined = _rows(
            step, query[0], partial(_plain, softcap=softcap, sinks=s_aux), marked.layer_idx, scale, sliding_window
        )
    else:
        joined = attend_rows(step, marked.layer_idx, query[0], scale, sliding_window)
    return joined.transpose(0, 1)[None], None


def attend_rows(step: PackedStep, layer_idx: int, query: Tensor, scale: float, window: int | None) -> Tensor:
    """`query` ``[heads, rows, size]`` of the packed batch → ``[heads, rows, value size]``."""
    return _rows(step, query, _attend, layer_idx, scale, window)


Attend = Callable[[Tensor, Segment, int, float, int | None], Tensor]


def _rows(step: PackedStep, query: Tensor, attend: Attend, layer_idx: int, scale: float, window: int | None) -> Tensor:
    layer = layer_idx - step.first_layer
    if len(step.segments) == 1:
        return attend(query, step.segments[0], layer, scale, window)
    return torch.cat([attend(query[:, s.row : s.row + s.n], s, layer, scale, window) for s in step.segments], dim=1)


def _attend(query: Tensor, segment: Segment, layer: int, scale: float, window: int | None) -> Tensor:
    return (_decode if segment.n == 1 else _prefill)(query, segment, layer, scale, window)


def _decode(query: Tensor, segment: Segment, layer: int, scale: float, window: int | None) -> Tensor:
    """`query` ``[heads, 1, size]`` → the same shape."""
    end = segment.start + 1
    first = 0 if window is None else max(0, end - window)
    keys, values = segment.kv.read(layer, first, end)
    heads, _, size = query.shape
    groups = heads // keys.shape[0]
    out = scaled_dot_product_attention(
        query.reshape(1, keys.shape[0], groups, size), keys[None], values[None], scale=scale
    )
    return out.reshape(heads, 1, values.shape[-1])


def _prefill(query: Tensor, segment: Segment, layer: int, scale: float, window: int | None) -> Tensor:
    """`query` ``[heads, n, size]`` → ``[heads, n, value size]``."""
    first, mask = _mask(segment, window, query.device)
    keys, values = segment.kv.read(layer, first, segment.start + segment.n)
    causal, grouped = mask is None, query.shape[0] > keys.shape[0]
    return scaled_dot_product_attention(
        query[None], keys[None], values[None], attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )[0]


def _mask(segment: Segment, window: int | None, device: torch.device) -> tuple[int, Tensor | None]:
    """The first position that any row may see, and which of the positions from there each row sees ``[n, m]``.

    None: the causal triangle that scaled_dot_product_attention knows itself.
    """
    end = segment.start + segment.n
    first = 0 if window is None else max(0, segment.start + 1 - window)
    if segment.start == 0 and (window is None or end <= window):
        return 0, None
    at = torch.arange(segment.start, end, device=device)[:, None]
    seen = torch.arange(first, end, device=device)[None]
    mask = seen <= at
    return first, mask if window is None else mask & (seen > at - window)


def _plain(
    query: Tensor,
    segment: Segment,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention spelled out, with the softmax in float32 as transformers' eager path has it."""
    first, mask = _mask(segment, window, query.device)
    keys, values = segment.kv.read(layer, first, segment.start + segment.n)
    groups = query.shape[0] // keys.shape[0]
    grouped = query.reshape(keys.shape[0], groups * segment.n, -1)
    scores = (grouped @ keys.transpose(1, 2) * scale).view(query.shape[0], segment.n, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = torch.ones(segment.n, scores.shape[-1], dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.reshape(-1, 1, 1).expand(-1, segment.n, 1)), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return (weights.reshape(keys.shape[0], groups * segment.n, -1) @ values).reshape(query.shape[0], segment.n, -1)
