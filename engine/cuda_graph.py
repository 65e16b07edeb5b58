"""One decode step of a batch size over a span, captured: from the host's pinned memory and back to it. Needs a GPU.

The first kernel reads the inputs where the host wrote them, the last ones write the results where it reads them, so a
step is one launch and one wait.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.engine import cuda_kernels
from paceline.engine.cuda_ops import Rows
from paceline.engine.cuda_span import LeanSpan, Results
from paceline.wire.ids import Span

_PART = 2048
"""Logits that one program compares."""


def _pinned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype).pin_memory()


class DecodeGraph:
    """Up to `size` sessions. `numbers` ``[3, size]`` int32: token ids, slots (-1: nobody), positions, for the caller to
    fill in; `incoming`: bytes of the rows ``[size, hidden]``, where the span does not begin the model."""

    def __init__(self, lean: LeanSpan, span: Span, size: int, pool: Any) -> None:
        """`pool`: another graph's memory, or None. They never run at once."""
        self._lean, self._span, self._size = lean, span, size
        arch, device = lean.arch, lean.device
        self._is_head, self._is_tail = span.start == 0, span.end == arch.layers
        self._host = _pinned(3, size, dtype=torch.int32)
        self._host[1] = -1
        self.numbers: np.ndarray[Any, Any] = self._host.numpy()
        self._device = torch.zeros((3, size), dtype=torch.int32, device=device)
        self._hidden = _pinned(size, arch.hidden, dtype=lean.dtype)
        self._finite, self._best = _pinned(size, dtype=torch.int32), _pinned(size, dtype=torch.int32)
        self._peak = _pinned(size, dtype=torch.float32)
        self._incoming = _pinned(size, arch.hidden, dtype=lean.dtype)
        self.incoming = self._incoming.view(torch.uint8).numpy().reshape(-1).data
        self._results = self._hidden.view(torch.uint8).numpy().reshape(-1).data
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._logits = self._run()  # compiles
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):  # others may load weights
            self._logits = self._run()

    @property
    def pool(self) -> Any:
        """Memory that other graphs may share."""
        return self._graph.pool()

    @property
    def row_bytes(self) -> int:
        """Of one row in `incoming`."""
        return self._incoming.stride(0) * self._incoming.itemsize

    def _run(self) -> Tensor | None:
        lean, size, hidden = self._lean, self._size, self._lean.arch.hidden
        h = torch.empty(size, hidden, dtype=lean.dtype, device=lean.device)
        wide = {"K": hidden, "WIDE": 1 << (hidden - 1).bit_length(), "num_warps": 8}
        if self._is_head:
            cuda_kernels.take_ids[(size,)](self._host, lean.weights.embed, h, self._device, size, **wide)
        else:
            cuda_kernels.take_rows[(size,)](self._host, self._incoming, h, self._device, self._finite, size, **wide)
        lean.layers(h, Rows(self._device[1], self._device[2]), self._span)
        if not self._is_tail:
            cuda_kernels.give_rows[(size,)](h, self._hidden, **wide)
            return None
        logits = lean.logits(h)
        vocab = logits.shape[1]
        parts = -(-vocab // _PART)
        peaks = torch.empty(size, parts, dtype=torch.float32, device=lean.device)
        ids = torch.empty(size, parts, dtype=torch.int32, device=lean.device)
        cuda_kernels.best_of_part[(size, parts)](logits, peaks, ids, vocab, parts, WIDE=_PART)
        every = 1 << (parts - 1).bit_length()
        cuda_kernels.best_of_all[(size,)](peaks, ids, self._best, self._peak, parts, WIDE=every)
        return logits

    def step(self, rows: int) -> Results:
        """Run what stands in `numbers` and `incoming`; the first `rows` rows of the results."""
        self._graph.replay()
        self._done.record()
        self._done.synchronize()
        finite = None if self._is_head else self._finite[:rows].tolist()
        if self._logits is None:
            return Results(hidden=self._results[: rows * self.row_bytes], finite=finite)
        return Results(
            best=self._best[:rows].tolist(), peak=self._peak[:rows].tolist(), logits=self._logits, finite=finite
        )
