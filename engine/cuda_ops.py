"""What a lean span computes, as a handful of operations, and how plain torch does each. Knows tensors, no models.

`Ops` is the seam: engine.cuda_triton does the same with fused kernels. This one runs on any device, in any dtype, and
is what the kernels are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from paceline.engine.cuda_matrix import Matrix, dense


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one step on the device, int32: `slots` (-1: only fills the batch) and `positions` ``[rows]``.

    `tiles` ``[tiles, 4]`` where rows are chunks of prompts: first row, number of rows, first position, slot. None: each
    row is one decode step. `whole`: the rows are one session's from position 0.
    """

    slots: Tensor
    positions: Tensor
    tiles: Tensor | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """What attention of one layer needs beside its rows. `keys`, `values` ``[pages, page, KV heads, head]``; `table`
    ``[slots, pages of a session]`` int32; `q_gain`, `k_gain`: where heads are normed; `window` 0: unlimited."""

    keys: Tensor
    values: Tensor
    table: Tensor
    cos: Tensor
    sin: Tensor
    q_gain: Tensor | None
    k_gain: Tensor | None
    heads: int
    window: int
    eps: float

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[2]

    @property
    def head(self) -> int:
        return self.keys.shape[3]

    @property
    def page(self) -> int:
        return self.keys.shape[1]


class Ops(Protocol):
    """`h` is the residual stream ``[rows, hidden]``; weights are ``[out, in]``, maybe coded (engine.cuda_matrix)."""

    def project(
        self, h: Tensor, gain: Tensor, eps: float, weight: Matrix, bias: Tensor | None, out: torch.dtype
    ) -> Tensor:
        """``RMSNorm(h) @ weight.T + bias`` in dtype `out`."""
        ...

    def add(self, h: Tensor, x: Tensor, weight: Matrix) -> None:
        """``h += x @ weight.T``, in place."""
        ...

    def gated(self, h: Tensor, gain: Tensor, eps: float, weight: Matrix) -> Tensor:
        """``silu(g) · u`` of ``g, u = halves of RMSNorm(h) @ weight.T``."""
        ...

    def attend(self, qkv: Tensor, rows: Rows, attention: Attention) -> Tensor:
        """Rotates `qkv` ``[rows, (heads + 2 KV heads) · head]``, writes keys and values to pages, attends causally.

        The result is ``[rows, heads · head]``; `qkv` may be overwritten.
        """
        ...


class TorchOps:
    """`Ops` spelled out. Attention loops over rows and tiles: for tests and comparison, not for speed."""

    def project(
        self, h: Tensor, gain: Tensor, eps: float, weight: Matrix, bias: Tensor | None, out: torch.dtype
    ) -> Tensor:
        return linear(normed(h, gain, eps), dense(weight, h.dtype), bias).to(out)

    def add(self, h: Tensor, x: Tensor, weight: Matrix) -> None:
        h += linear(x, dense(weight, x.dtype))

    def gated(self, h: Tensor, gain: Tensor, eps: float, weight: Matrix) -> Tensor:
        gate, up = linear(normed(h, gain, eps), dense(weight, h.dtype)).chunk(2, dim=-1)
        return silu(gate) * up

    def attend(self, qkv: Tensor, rows: Rows, attention: Attention) -> Tensor:
        query = rotate_and_write(qkv, rows, attention)
        out = torch.zeros(len(qkv), attention.heads, attention.head, dtype=qkv.dtype, device=qkv.device)
        if rows.tiles is None:
            tiles = [
                (row, 1, position, slot)
                for row, (position, slot) in enumerate(zip(rows.positions.tolist(), rows.slots.tolist(), strict=True))
                if slot >= 0
            ]
        else:
            tiles = [(row, n, start, slot) for row, n, start, slot in rows.tiles.tolist()]
        for row, n, start, slot in tiles:
            out[row : row + n] = _attended(query[row : row + n], start, slot, attention)
        return out.view(len(qkv), -1)


def normed(h: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm as transformers has it: statistics in float32."""
    wide = h.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return gain * scaled.to(h.dtype)


def rotate_and_write(qkv: Tensor, rows: Rows, attention: Attention) -> Tensor:
    """Rotated queries ``[rows, heads, head]``; keys and values go to their pages."""
    heads, kv_heads, page = attention.heads, attention.kv_heads, attention.page
    query, key, value = qkv.view(len(qkv), -1, attention.head).split_with_sizes((heads, kv_heads, kv_heads), dim=1)
    if attention.q_gain is not None and attention.k_gain is not None:
        query = normed(query, attention.q_gain, attention.eps)
        key = normed(key, attention.k_gain, attention.eps)
    real = rows.slots >= 0
    at = rows.positions.long()
    cos, sin = (table[at].to(qkv.dtype)[:, None] for table in (attention.cos, attention.sin))
    pages = attention.table[rows.slots.clamp(min=0).long(), at // page][real].long()
    attention.keys[pages, at[real] % page] = rotated(key, cos, sin)[real]
    attention.values[pages, at[real] % page] = value[real]
    return rotated(query, cos, sin)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``[…, head]`` by angles ``[…, head / 2]``."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _attended(query: Tensor, start: int, slot: int, attention: Attention) -> Tensor:
    """`query` ``[n, heads, head]`` at positions from `start` → the same shape."""
    n, heads, size = query.shape
    end = start + n
    pages = attention.table[slot, : -(-end // attention.page)].long()
    keys, values = (
        paged[pages].flatten(0, 1)[:end].transpose(0, 1).repeat_interleave(heads // attention.kv_heads, dim=0)
        for paged in (attention.keys, attention.values)
    )
    scores = query.transpose(0, 1) @ keys.transpose(1, 2) * size**-0.5
    at = torch.arange(start, end, device=query.device)[:, None]
    seen = torch.arange(end, device=query.device)[None]
    hidden = seen > at if not attention.window else (seen > at) | (seen <= at - attention.window)
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ values).transpose(0, 1)
