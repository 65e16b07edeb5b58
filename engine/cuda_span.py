"""A lean span's forward and its memory: weights, pages, block tables on one device; decode steps as captured graphs.

Knows tensors and layers, and nothing of sessions' names or messages. Decode batches of one size are one CUDA graph from
the copy of the inputs (pinned memory → device) to the copy of the results back, so that the host has two things to do
in a step: fill in the inputs, and wait. Prompts run kernel by kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.engine.cuda_arch import Arch
from paceline.engine.cuda_ops import Attention, Ops, Rows, TorchOps
from paceline.engine.cuda_pages import PAGE
from paceline.engine.cuda_weights import LayerWeights, SpanWeights
from paceline.wire.ids import Span


@dataclass(frozen=True, slots=True)
class Results:
    """Of one step, on the host, valid until the next. `hidden` ``[rows, hidden]`` where the span is not the last.

    `best` and `peak` ``[rows]``: the greatest logit's id and value; `logits` ``[rows, vocab]`` float32, on the device.
    `finite` ``[rows]``: whether the row that came in was (None for token ids).
    """

    hidden: Tensor | None = None
    best: Tensor | None = None
    peak: Tensor | None = None
    logits: Tensor | None = None
    finite: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """Where a step reads: token `ids` or `incoming` rows, and whose they are. On the device."""

    rows: Rows
    ids: Tensor | None
    incoming: Tensor | None


class LeanSpan:
    """Weights and KV of `span`. `positions` of KV room in pages; `slots` sessions at once. One step at a time."""

    def __init__(
        self, arch: Arch, weights: SpanWeights, span: Span, positions: int, slots: int, row: int, page: int = PAGE
    ) -> None:
        """`row`: pages of the longest session."""
        self.arch, self.weights, self.span, self.page = arch, weights, span, page
        like = weights.layers[0].qkv
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

    def run(self, given: Given, span: Span, last: Tensor | None = None) -> Results:
        """A whole step, left on the device. `last` ``[…]`` int32: the rows whose logits are wanted (None: all)."""
        finite = None
        if given.ids is not None:
            h = self.embed(given.ids)
        else:
            assert given.incoming is not None
            finite = torch.isfinite(given.incoming.abs().amax(dim=-1))
            h = given.incoming.clone()
        h = self.layers(h, given.rows, span)
        if span.end != self.arch.layers:
            return Results(hidden=h, finite=finite)
        if last is not None:
            h = h.index_select(0, last)
        if not len(h):
            return Results(finite=finite)
        logits = self.logits(h)
        peak, best = logits.max(dim=-1)
        return Results(best=best, peak=peak, logits=logits, finite=finite)

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
        came = None if incoming is None else incoming.to(self.device, self.dtype, non_blocking=True)
        found = self.run(Given(rows, None if ids is None else on_ids, came), span, on_last)
        return Results(
            hidden=None if found.hidden is None else found.hidden.cpu(),
            best=None if found.best is None else found.best.cpu(),
            peak=None if found.peak is None else found.peak.cpu(),
            logits=found.logits,
            finite=None if found.finite is None else found.finite.cpu(),
        )


class DecodeGraph:
    """One decode step of up to `size` sessions over `span`, captured. Inputs and results live in pinned memory."""

    def __init__(self, lean: LeanSpan, span: Span, size: int, pool: Any) -> None:
        self.size = size
        self._lean, self._span = lean, span
        self.host = torch.zeros((3, size), dtype=torch.int32).pin_memory()
        self.host[1] = -1
        """Rows: token ids, slots, positions."""
        self._numbers = torch.zeros((3, size), dtype=torch.int32, device=lean.device)
        head = span.start == 0
        self.incoming = None if head else torch.zeros(size, lean.arch.hidden, dtype=lean.dtype).pin_memory()
        self._came = None if head else torch.zeros(size, lean.arch.hidden, dtype=lean.dtype, device=lean.device)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._out: list[Tensor] = []
        self._logits = self._run()  # compiles, and makes every buffer that is not the graph's
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._logits = self._run()

    @property
    def pool(self) -> Any:
        """Memory that other graphs may share: they never run at once."""
        return self._graph.pool()

    def _run(self) -> Tensor | None:
        """The step, its results copied to the host: hidden, or best and peak; then finite. Returns the logits."""
        self._numbers.copy_(self.host, non_blocking=True)
        if self._came is not None and self.incoming is not None:
            self._came.copy_(self.incoming, non_blocking=True)
        ids, slots, positions = self._numbers
        given = Given(Rows(slots, positions), ids if self._came is None else None, self._came)
        found = self._lean.run(given, self._span)
        parts = [part for part in (found.hidden, found.best, found.peak, found.finite) if part is not None]
        if not self._out:
            self._out = [torch.empty(part.shape, dtype=part.dtype).pin_memory() for part in parts]
        for to, part in zip(self._out, parts, strict=True):
            to.copy_(part, non_blocking=True)
        return found.logits

    def step(self, rows: int) -> Results:
        """Run what stands in `host` and `incoming`. The only wait of the step is at its end."""
        self._graph.replay()
        self._done.record()
        self._done.synchronize()
        out = [part[:rows] for part in self._out]
        finite = out.pop() if self._came is not None else None
        if self._logits is None:
            return Results(hidden=out[0], finite=finite)
        return Results(best=out[0], peak=out[1], logits=self._logits[:rows], finite=finite)
