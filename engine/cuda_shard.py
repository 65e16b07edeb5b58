"""The shard of a GPU: sessions over a lean span (engine.cuda_span). Knows the seam `Shard` and what a session may do.

Decode steps of any sessions over the same layers are one captured graph; everything else is one ragged step. Whether a
row that came from upstream is finite is found on the device and told with the results: such a session's length is not
advanced, and its neighbours never see its pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paceline.engine import cuda_weights, family
from paceline.engine.blocks import DTYPES
from paceline.engine.cuda_arch import Arch, arch_of
from paceline.engine.cuda_pages import BUCKETS, PAGE, Pages, Seat, bucket, tiles
from paceline.engine.cuda_sampling import sample_batch
from paceline.engine.cuda_span import LeanSpan, Results
from paceline.engine.cuda_weights import SpanWeights
from paceline.engine.sessions import DTYPE_BYTES, check_caller, refusal
from paceline.engine.shard import Activations, Key, ModelShape, Output, Sampled, SampleRequest, Weights, Work
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import UnsupportedModel
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype

if TYPE_CHECKING:
    from paceline.engine.cuda_graph import DecodeGraph

_ACCEPTED: tuple[Dtype, ...] = ("f32", "bf16", "f16")
_POISON = "non-finite activations from upstream"
_SLOTS = 512
"""Sessions at once."""
_TILE_ROWS = 64
_LEFT = 8
"""Per cent of the device's memory that KV leaves free."""


def lean_arch(manifest: Manifest, device: str) -> Arch | None:
    """What the lean path must know of a model; None where it does not know it. Raises UnsupportedModel."""
    arch = arch_of(family.configuration(manifest))
    return arch if arch is not None and (arch.fits_kernels or device == "cpu") else None


class LeanShard:
    """A `Shard` of one span. Not thread-safe: one engine thread."""

    def __init__(
        self,
        lean: LeanSpan,
        shape: ModelShape,
        dtype: Dtype,
        positions: int,
        slots: int = _SLOTS,
        form: Weights = "f32",
    ) -> None:
        """Use `load`, or `over` for weights that stand in no store."""
        self.span, self.shape, self.dtype, self.lean = lean.span, shape, dtype, lean
        self.numerics = f"{lean.device.type}-{dtype}" + ("" if form == "f32" else f"-{form}")
        self._pages = Pages(positions, slots, shape.max_context, lean.page, self._seated)
        self._graphs: dict[tuple[Span, int], DecodeGraph] = {}
        self.logits: Tensor | None = None
        """Of the last step at a tail, for checks: ``[rows, vocab]`` float32, valid until the next."""

    @classmethod
    def load(
        cls,
        store: Store,
        manifest: Manifest,
        span: Span,
        *,
        device: str = "cuda",
        dtype: Dtype = "bf16",
        kv_positions: int = 65_536,
        page: int = PAGE,
        slots: int = _SLOTS,
        form: Weights = "f32",
    ) -> LeanShard:
        """Load a span of a lean model. `form` of its matrices: as they are, or coded (engine.cuda_matrix).

        Raises UnsupportedModel, ModelNotFound, CorruptBlock.
        """
        arch = lean_arch(manifest, device)
        if arch is None:
            raise UnsupportedModel(f"the lean path does not know {manifest.family!r} as it is configured here")
        config = family.configuration(manifest)
        context = min(family.max_context(config, manifest), manifest.max_context)
        shape = ModelShape(len(manifest.layers), manifest.hidden, manifest.vocab, context, manifest.eos_ids)
        weights = cuda_weights.load(store, manifest, arch, span, torch.device(device), DTYPES[dtype], context, form)
        positions = min(kv_positions, _room(arch, len(span), DTYPES[dtype], device))
        return cls.over(arch, weights, span, shape, dtype, positions, page, slots, form)

    @classmethod
    def over(
        cls,
        arch: Arch,
        weights: SpanWeights,
        span: Span,
        shape: ModelShape,
        dtype: Dtype,
        kv_positions: int,
        page: int = PAGE,
        slots: int = _SLOTS,
        form: Weights = "f32",
    ) -> LeanShard:
        """Of weights in memory, which are in `form` already."""
        lean = LeanSpan(arch, weights, span, kv_positions, slots, -(-shape.max_context // page), page)
        return cls(lean, shape, dtype, kv_positions, slots, form)

    # --- sessions

    @property
    def kv_free(self) -> int:
        return self._pages.free

    def open(self, key: Key, max_positions: int, span: Span | None = None) -> None:
        span = span or self.span
        if not self.span.covers(span):
            raise ValueError(f"span {span} is not inside {self.span}")
        self._pages.open(key, max_positions, span)

    def _seated(self, seat: Seat) -> None:
        self.lean.seat(seat.slot, seat.pages)

    def close(self, key: Key) -> None:
        self._pages.close(key)

    def length(self, key: Key) -> int:
        return self._pages[key].length

    def crop(self, key: Key, length: int) -> None:
        self._pages.crop(key, length)

    # --- the step

    @torch.inference_mode()
    def warm(self, sizes: Sequence[int] = BUCKETS) -> None:
        """Capture the graphs of the whole span, so that no session waits for it. Only on a GPU."""
        if self.lean.device.type == "cuda":
            for size in sorted(sizes, reverse=True):  # the largest first: its memory serves the others
                self._graph(self.span, size)

    @torch.inference_mode()
    def step(self, batch: Sequence[Work]) -> list[Output]:
        seats = [self._pages[work.key] for work in batch]
        check_caller(batch, [seat.length for seat in seats])
        outputs: dict[Key, Output] = {}
        runnable: dict[Span, list[tuple[Work, Seat]]] = {}
        for work, seat in zip(batch, seats, strict=True):
            wrong = refusal(work, self.shape, seat.span, seat.limit, _ACCEPTED)
            if wrong:
                outputs[work.key] = Output(work.key, error=wrong)
            else:
                runnable.setdefault(seat.span, []).append((work, seat))
        if not outputs and len(runnable) == 1:
            return self._run(batch, seats, seats[0].span)
        for span, pairs in runnable.items():
            found = self._run([work for work, _ in pairs], [seat for _, seat in pairs], span)
            outputs |= {output.key: output for output in found}
        return [outputs[work.key] for work in batch]

    def _run(self, works: Sequence[Work], seats: Sequence[Seat], span: Span) -> list[Output]:
        """Works of sessions over the same layers, none refused."""
        size = bucket(len(works)) if self.lean.device.type == "cuda" else None
        decoding = size is not None and all(work.n == 1 for work in works)
        if decoding and size is not None:
            results = self._decode(works, seats, span, size)
        else:
            results = self._ragged(works, seats, span)
        self.logits = results.logits
        bad = _poisoned(works, results)
        for work, seat in zip(works, seats, strict=True):
            if work.key not in bad:
                seat.length = work.start + work.n
        ended = span.end == self.shape.layers
        outputs = self._sampled(works, results, decoding) if ended else self._emitted(works, results)
        if bad:
            return [Output(one.key, error=_POISON) if one.key in bad else one for one in outputs]
        return outputs

    def _graph(self, span: Span, size: int) -> DecodeGraph:
        found = self._graphs.get((span, size))
        if found is None:
            from paceline.engine.cuda_graph import DecodeGraph

            pool = next((graph.pool for graph in self._graphs.values()), None)
            found = self._graphs[span, size] = DecodeGraph(self.lean, span, size, pool)
        return found

    def _decode(self, works: Sequence[Work], seats: Sequence[Seat], span: Span, size: int) -> Results:
        graph, many = self._graph(span, size), len(works)
        graph.numbers[1, :many] = [seat.slot for seat in seats]
        graph.numbers[1, many:] = -1
        graph.numbers[2, :many] = [work.start for work in works]
        if span.start == 0:
            graph.numbers[0, :many] = [work.ids[0] for work in works if work.ids is not None]
        else:
            wide = graph.row_bytes
            for row, work in enumerate(works):
                came = work.activations
                assert came is not None
                data = came.data if came.dtype == self.dtype else _bytes(rows_of(work).to(DTYPES[self.dtype]))
                graph.incoming[row * wide : (row + 1) * wide] = memoryview(data).cast("B")
        return graph.step(many)

    def _ragged(self, works: Sequence[Work], seats: Sequence[Seat], span: Span) -> Results:
        segments, row = [], 0
        for work, seat in zip(works, seats, strict=True):
            segments.append((row, work.n, work.start, seat.slot))
            row += work.n
        ids = incoming = None
        if span.start == 0:
            ids = [token for work in works for token in work.ids or ()]
        else:
            incoming = torch.cat([rows_of(work) for work in works])
        last = [segment[0] + segment[1] - 1 for work, segment in zip(works, segments, strict=True) if work.sample]
        return self.lean.ragged(segments, ids, incoming, tiles(segments, _TILE_ROWS), last, span)

    # --- results

    def _emitted(self, works: Sequence[Work], results: Results) -> list[Output]:
        hidden = results.hidden
        assert hidden is not None
        wide = self.shape.hidden * DTYPE_BYTES[self.dtype]
        outputs, at = [], 0
        for work in works:
            data = bytes(hidden[at : at + work.n * wide])
            outputs.append(Output(work.key, activations=Activations(work.n, self.shape.hidden, self.dtype, data)))
            at += work.n * wide
        return outputs

    def _sampled(self, works: Sequence[Work], results: Results, all_rows: bool) -> list[Output]:
        """`all_rows`: results hold a row for each work, not only for those that ask for a token."""
        wanted: list[tuple[int, SampleRequest]] = []
        for row, work in enumerate(works):
            if work.sample is not None:
                wanted.append((row if all_rows else len(wanted), work.sample))
        if not wanted:
            return [Output(work.key) for work in works]
        assert results.logits is not None
        drawn = iter(sample_batch(results.logits, results.best, results.peak, wanted))
        return [Output(work.key) if work.sample is None else _told(work.key, next(drawn)) for work in works]


def _room(arch: Arch, layers: int, dtype: torch.dtype, device: str) -> int:
    """Positions of KV for which the device has memory, once a part is left to steps and their graphs."""
    if not device.startswith("cuda"):
        return 1 << 40
    free, whole = torch.cuda.mem_get_info(device)
    each = 2 * layers * arch.kv_heads * arch.head * dtype.itemsize
    return max(0, free - _LEFT * whole // 100) // each


def _told(key: Key, sampled: Sampled | None) -> Output:
    return Output(key, sampled=sampled, error="" if sampled else "the model's logits are not finite")


def _poisoned(works: Sequence[Work], results: Results) -> set[Key]:
    """Sessions whose rows came in with a number that is none."""
    if results.finite is None or all(results.finite):
        return set()
    bad, row = set(), 0
    for work in works:
        if not all(results.finite[row : row + work.n]):
            bad.add(work.key)
        row += work.n
    return bad


def _bytes(rows: Tensor) -> memoryview:
    return rows.contiguous().view(torch.uint8).numpy().reshape(-1).data


def rows_of(work: Work) -> Tensor:
    """Activations that came from upstream ``[n, hidden]``, as they came."""
    came = work.activations
    assert came is not None
    return torch.frombuffer(bytearray(came.data), dtype=DTYPES[came.dtype]).view(came.n, came.hidden)
