"""The shard of a GPU: sessions over a lean span (engine.cuda_span). Knows the seam `Shard` and what a session may do.

Decode steps of any sessions over the same layers are one captured graph; everything else is one ragged step. Whether a
row that came from upstream is finite is found on the device and told with the results: such a session's length is not
advanced, and its neighbours never see its pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine import cuda_weights, family
from paceline.engine.blocks import DTYPES
from paceline.engine.cuda_arch import Arch, arch_of
from paceline.engine.cuda_pages import BUCKETS, PAGE, Pages, Seat, bucket, tiles
from paceline.engine.cuda_sampling import sample_batch
from paceline.engine.cuda_span import DecodeGraph, LeanSpan, Results
from paceline.engine.cuda_weights import SpanWeights
from paceline.engine.sessions import check_caller, refusal
from paceline.engine.shard import Activations, Key, ModelShape, Output, SampleRequest, Work
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import UnsupportedModel
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype

_ACCEPTED: tuple[Dtype, ...] = ("f32", "bf16", "f16")
_POISON = "non-finite activations from upstream"
_SLOTS = 512
"""Sessions at once."""
_TILE_ROWS = 64


def lean_arch(manifest: Manifest, device: str) -> Arch | None:
    """What the lean path must know of a model; None where it does not know it. Raises UnsupportedModel."""
    arch = arch_of(family.configuration(manifest))
    return arch if arch is not None and (arch.fits_kernels or device == "cpu") else None


class LeanShard:
    """A `Shard` of one span. Not thread-safe: one engine thread."""

    def __init__(self, lean: LeanSpan, shape: ModelShape, dtype: Dtype, positions: int, slots: int = _SLOTS) -> None:
        """Use `load`, or `over` for weights that stand in no store."""
        self.span, self.shape, self.dtype, self.lean = lean.span, shape, dtype, lean
        self.numerics = f"{lean.device.type}-{dtype}-lean"
        self._pages = Pages(positions, slots, shape.max_context, lean.page, self._seated)
        self._graphs: dict[tuple[Span, int], DecodeGraph] = {}

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
    ) -> LeanShard:
        """Load a span of a lean model. Raises UnsupportedModel, ModelNotFound, CorruptBlock."""
        arch = lean_arch(manifest, device)
        if arch is None:
            raise UnsupportedModel(f"the lean path does not know {manifest.family!r} as it is configured here")
        config = family.configuration(manifest)
        context = min(family.max_context(config, manifest), manifest.max_context)
        shape = ModelShape(len(manifest.layers), manifest.hidden, manifest.vocab, context, manifest.eos_ids)
        weights = cuda_weights.load(store, manifest, arch, span, torch.device(device), DTYPES[dtype], context)
        return cls.over(arch, weights, span, shape, dtype, kv_positions, page, slots)

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
    ) -> LeanShard:
        """Of weights in memory."""
        lean = LeanSpan(arch, weights, span, kv_positions, slots, -(-shape.max_context // page), page)
        return cls(lean, shape, dtype, kv_positions, slots)

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
        check_caller(batch, [self.length(work.key) for work in batch])
        outputs: dict[Key, Output] = {}
        runnable: dict[Span, list[Work]] = {}
        for work in batch:
            seat = self._pages[work.key]
            wrong = refusal(work, self.shape, seat.span, seat.limit, _ACCEPTED)
            if wrong:
                outputs[work.key] = Output(work.key, error=wrong)
            else:
                runnable.setdefault(seat.span, []).append(work)
        for span, works in runnable.items():
            outputs |= {output.key: output for output in self._run(works, span)}
        return [outputs[work.key] for work in batch]

    def _run(self, works: Sequence[Work], span: Span) -> list[Output]:
        size = bucket(len(works)) if self.lean.device.type == "cuda" else None
        decoding = size is not None and all(work.n == 1 for work in works)
        results = self._decode(works, span, size) if decoding and size is not None else self._ragged(works, span)
        fine = self._finite(works, results)
        for work, good in zip(works, fine, strict=True):
            if good:
                self._pages[work.key].length = work.start + work.n
        outputs = self._sampled(works, results, decoding) if span.end == self.shape.layers else None
        outputs = outputs or self._emitted(works, results)
        return [
            output if good else Output(output.key, error=_POISON) for output, good in zip(outputs, fine, strict=True)
        ]

    def _finite(self, works: Sequence[Work], results: Results) -> list[bool]:
        if results.finite is None:
            return [True] * len(works)
        each = results.finite.tolist()
        ends, row = [], 0
        for work in works:
            ends.append(all(each[row : row + work.n]))
            row += work.n
        return ends

    def _graph(self, span: Span, size: int) -> DecodeGraph:
        found = self._graphs.get((span, size))
        if found is None:
            pool = next((graph.pool for graph in self._graphs.values()), None)
            found = self._graphs[span, size] = DecodeGraph(self.lean, span, size, pool)
        return found

    def _decode(self, works: Sequence[Work], span: Span, size: int) -> Results:
        graph = self._graph(span, size)
        numbers = graph.host.numpy()
        for row, work in enumerate(works):
            numbers[1, row], numbers[2, row] = self._pages[work.key].slot, work.start
            if work.ids is not None:
                numbers[0, row] = work.ids[0]
            elif graph.incoming is not None:
                graph.incoming[row] = rows_of(work)[0]
        numbers[1, len(works) :] = -1
        return graph.step(len(works))

    def _ragged(self, works: Sequence[Work], span: Span) -> Results:
        segments, row = [], 0
        for work in works:
            segments.append((row, work.n, work.start, self._pages[work.key].slot))
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
        assert results.hidden is not None
        outputs, row = [], 0
        for work in works:
            data = results.hidden[row : row + work.n].contiguous().view(torch.uint8).numpy().tobytes()
            outputs.append(Output(work.key, activations=Activations(work.n, self.shape.hidden, self.dtype, data)))
            row += work.n
        return outputs

    def _sampled(self, works: Sequence[Work], results: Results, all_rows: bool) -> list[Output]:
        """`all_rows`: results hold a row for each work, not only for those that ask for a token."""
        wanted: list[tuple[int, Key, SampleRequest]] = []
        for at, work in enumerate(works):
            if work.sample is not None:
                wanted.append((at if all_rows else len(wanted), work.key, work.sample))
        outputs = {work.key: Output(work.key) for work in works}
        if wanted:
            assert results.best is not None
            assert results.peak is not None
            assert results.logits is not None
            drawn = sample_batch(results.logits, results.best, results.peak, [(at, ask) for at, _, ask in wanted])
            for (_, key, _), sampled in zip(wanted, drawn, strict=True):
                problem = "" if sampled else "the model's logits are not finite"
                outputs[key] = Output(key, sampled=sampled, error=problem)
        return [outputs[work.key] for work in works]


def rows_of(work: Work) -> Tensor:
    """Activations that came from upstream ``[n, hidden]``, as they came."""
    came = work.activations
    assert came is not None
    return torch.frombuffer(bytearray(came.data), dtype=DTYPES[came.dtype]).view(came.n, came.hidden)
