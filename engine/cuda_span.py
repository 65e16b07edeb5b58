"""A lean span's forward and its memory: weights, pages and block tables on one device.

Knows tensors and layers, and nothing of sessions' names or messages. Prompts run kernel by kernel; decode steps are
captured by engine.cuda_graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.engine.cuda_arch import Arch
from paceline.engine.cuda_ops import Attention, Ops, Rows, TorchOps
from paceline.engine.cuda_pages import PAGE
from paceline.engine.cuda_weights import LayerWeights, SpanWeights
from paceline.wire.ids import Span


@dataclass(frozen=True, slots=True)
class Results:
    """Of one step, on the host, valid until the next. `hidden`: bytes of the rows where the span is not the last.

    `best` and `peak`, a number for each row: the greatest logit's id and value; `logits` ``[rows, vocab]`` float32, on
    the device. `finite`, for each row: whether what came in was (None for token ids).
    """

    hidden: memoryview | None = None
    best: Sequence[int] = ()
    peak: Sequence[float] = ()
    logits: Tensor | None = None
    finite: Sequence[int] | None = None


class LeanSpan:
    """Weights and KV of `span`. `positions` of KV room in pages; `slots` sessions at once. One step at a time."""

    def __init__(
        self, arch: Arch, weights: SpanWeights, span: Span, positions: int, slots: int, row: int, page: int = PAGE
    ) -> None:
        """`row`: pages of the longest session."""
        self.arch, self.weights, self.span, self.page = arch, weights, span, page
        like = weights.layers[0].norm
        self.device, self.dtype = like.device, like.dtype
        shape = (len(span), 2, positions // page, page, arch.kv_heads, arch.head)
        self.kv = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.table = torch.zeros((slots, row), dtype=torch.int32, device=self.device)
        self.ops: Ops = TorchOps()
        if self.device.type == "cuda":
            from paceline.engine.cuda_triton import TritonOps

            self.ops = TritonOps(self.device)
        self._attention = [self._attention_of(at) for at in range(len(span))]

    def _attention_of(self, at: int) -> Attention:
        layer = self.weights.layers[at]
        return Attention(
            keys=self.kv[at, 0],
            values=self.kv[at, 1],
            table=self.table,
            cos=self.weights.cos,
            sin=self.weights.sin,
            q_gain=layer.q_gain,
            k_gain=layer.k_gain,
            heads=self.arch.heads,
            window=self.arch.windows[self.span.start + at],
            eps=self.arch.eps,
        )

    def seat(self, slot: int, pages: tuple[int, ...]) -> None:
        """Tell the device which pages a slot's session holds."""
        self.table[slot, : len(pages)] = torch.tensor(pages, dtype=torch.int32).to(self.device, non_blocking=True)

    # --- one step, on the device

    def embed(self, ids: Tensor) -> Tensor:
        """``[rows]`` int32 → ``[rows, hidden]``."""
        assert self.weights.embed is not None
        return self.weights.embed.index_select(0, ids)

    def layers(self, h: Tensor, rows: Rows, span: Span) -> Tensor:
        """The layers of `span` over `h` ``[rows, hidden]``, in place."""
        eps = self.arch.eps
        for at in range(span.start - self.span.start, span.end - self.span.start):
            self._layer(h, rows, self.weights.layers[at], self._attention[at], eps)
        return h

    def _layer(self, h: Tensor, rows: Rows, weights: LayerWeights, attention: Attention, eps: float) -> None:
        ops = self.ops
        qkv = ops.project(h, weights.norm, eps, weights.qkv, weights.qkv_bias, self.dtype)
        ops.add(h, ops.attend(qkv, rows, attention), weights.o)
        ops.add(h, ops.gated(h, weights.mlp_norm, eps, weights.gate_up), weights.down)

    def logits(self, h: Tensor) -> Tensor:
        """Rows after the last layer → ``[rows, vocab]`` float32."""
        norm, lm_head = self.weights.norm, self.weights.lm_head
        assert norm is not None
        assert lm_head is not None
        return self.ops.project(h, norm, self.arch.eps, lm_head, None, torch.float32)

    def ragged(
        self,
        segments: list[tuple[int, int, int, int]],
        ids: list[int] | None,
        incoming: Tensor | None,
        tiles: list[tuple[int, int, int, int]],
        last: list[int],
        span: Span,
    ) -> Results:
        """Chunks of prompts and decode steps together. `segments`: first row, rows, first position, slot of each.

        One copy to the device, one back.
        """
        slots = [slot for _, n, _, slot in segments for _ in range(n)]
        positions = [start + at for _, n, start, _ in segments for at in range(n)]
        flat = [*slots, *positions, *(number for tile in tiles for number in tile), *last, *(ids or ())]
        packed = torch.tensor(flat, dtype=torch.int32).to(self.device, non_blocking=True)
        sizes = (len(slots), len(positions), 4 * len(tiles), len(last), len(ids or ()))
        on_slots, on_positions, on_tiles, on_last, on_ids = packed.split_with_sizes(sizes)
        whole = len(segments) == 1 and segments[0][2] == 0
        rows = Rows(on_slots, on_positions, on_tiles.view(-1, 4), whole)
        finite = None
        if incoming is None:
            h = self.embed(on_ids)
        else:
            h = incoming.to(self.device, self.dtype, non_blocking=True).clone()
            finite = torch.isfinite(h).all(dim=-1)
        h = self.layers(h, rows, span)
        if span.end == self.arch.layers:
            return self._ended(h.index_select(0, on_last), finite)
        data = h.cpu().view(torch.uint8).numpy().reshape(-1).data
        return Results(hidden=data, finite=None if finite is None else finite.tolist())

    def _ended(self, h: Tensor, finite: Tensor | None) -> Results:
        told = None if finite is None else finite.tolist()
        if not len(h):
            return Results(finite=told)
        logits = self.logits(h)
        best = logits.argmax(dim=-1)
        peak = logits.gather(1, best[:, None])[:, 0]
        return Results(best=best.tolist(), peak=peak.tolist(), logits=logits, finite=told)
