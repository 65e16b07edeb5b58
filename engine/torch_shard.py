"""The real shard: a span of transformers' layers over packed, ragged batches. Knows torch, and no network.

A batch is one row of concatenated segments ``[1, rows, hidden]``: decode steps of many sessions and prefill chunks
together, so weights are read once per step. Lengths are committed when all layers have run; what a failed step wrote
lies beyond them and is overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine import family
from paceline.engine.blocks import DTYPES
from paceline.engine.kv import PackedStep, Segment, SessionKV
from paceline.engine.rope import RotaryTable
from paceline.engine.sampling import sample_rows
from paceline.engine.sessions import Reservations, check_caller, refusal
from paceline.engine.shard import Activations, Key, ModelShape, Output, Work
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype

_ACCEPTED: tuple[Dtype, ...] = ("f32", "bf16", "f16")
FEW_ROWS = 8
"""Up to this many rows a step is a decode step, as far as threads go."""
_POISON = "non-finite activations from upstream"


class TorchShard:
    """A `Shard` of one span. Not thread-safe: one engine thread."""

    def __init__(self, parts: family.Parts, manifest: Manifest, span: Span, dtype: Dtype, device: torch.device) -> None:
        """Use `load`."""
        self.span, self.dtype = span, dtype
        context = min(parts.max_context, manifest.max_context)
        self.shape = ModelShape(len(manifest.layers), manifest.hidden, manifest.vocab, context, manifest.eos_ids)
        self.numerics = f"{device.type}-{dtype}"
        self._parts, self._device = parts, device
        self.few_threads = self.many_threads = torch.get_num_threads()
        self._sessions: dict[Key, SessionKV] = {}
        self._spans: dict[Key, Span] = {}
        self._room = Reservations(0, context)
        tables = {id(rotary): RotaryTable(rotary, DTYPES[dtype], device, context) for rotary in parts.rotary}
        self._tables = list(tables.values())
        self._layers = [
            (layer, self._tables.index(tables[id(rotary)]))
            for layer, rotary in zip(parts.layers, parts.rotary, strict=True)
        ]

    @classmethod
    def load(
        cls,
        store: Store,
        manifest: Manifest,
        span: Span,
        *,
        device: str = "cpu",
        dtype: Dtype = "f32",
        threads: int = 0,
        kv_positions: int = 65_536,
        packed: bool = True,
    ) -> TorchShard:
        """Load a span. `threads` 0 leaves torch's choice. Raises UnsupportedModel, ModelNotFound, CorruptBlock."""
        where = torch.device(device)
        parts = family.load(store, manifest, span, where, dtype, packed=packed)
        shard = cls(parts, manifest, span, dtype, where)
        shard._room = Reservations(kv_positions, shard.shape.max_context)
        shard.many_threads = threads or torch.get_num_threads()
        shard.few_threads = min(shard.few_threads, shard.many_threads)
        return shard

    # --- sessions

    @property
    def kv_free(self) -> int:
        return self._room.free

    def open(self, key: Key, max_positions: int, span: Span | None = None) -> None:
        span = span or self.span
        if not self.span.covers(span):
            raise ValueError(f"span {span} is not inside {self.span}")
        self._room.reserve(key, max_positions)
        self._spans[key] = span
        self._sessions[key] = SessionKV(len(self.span), max_positions)

    def close(self, key: Key) -> None:
        self._room.release(key)
        self._spans.pop(key, None)
        self._sessions.pop(key, None)

    def length(self, key: Key) -> int:
        return self._sessions[key].length

    def crop(self, key: Key, length: int) -> None:
        kv = self._sessions[key]
        if not 0 <= length <= kv.length:
            raise ValueError(f"crop to {length} of a KV of {kv.length} positions")
        kv.length = length

    # --- the step

    def _use_threads(self, rows: int) -> None:
        """Decode is bound by memory and often fastest on few threads, prefill by arithmetic (engine.measure tunes)."""
        wanted = self.few_threads if rows <= FEW_ROWS else self.many_threads
        if self._device.type == "cpu" and torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    @torch.inference_mode()
    def step(self, batch: Sequence[Work]) -> list[Output]:
        check_caller(batch, [self.length(work.key) for work in batch])
        outputs: dict[Key, Output] = {}
        runnable: dict[Span, list[tuple[Work, Tensor]]] = {}
        for work in batch:
            span = self._spans[work.key]
            wrong = refusal(work, self.shape, span, self._room.held(work.key), _ACCEPTED)
            rows = None if wrong else self.input(work)
            if rows is None:
                outputs[work.key] = Output(work.key, error=wrong or _POISON)
            else:
                runnable.setdefault(span, []).append((work, rows))
        self._use_threads(sum(work.n for work in batch))
        for span, pairs in runnable.items():
            works, inputs = [work for work, _ in pairs], [rows for _, rows in pairs]
            hidden = self.forward(works, inputs[0] if len(inputs) == 1 else torch.cat(inputs), span)
            finish = self._sample if span.end == self.shape.layers else self._emit
            outputs |= {output.key: output for output in finish(works, hidden)}
        return [outputs[work.key] for work in batch]

    def forward(self, batch: Sequence[Work], hidden: Tensor, span: Span | None = None) -> Tensor:
        """The layers of `span` (default: all) over packed rows ``[rows, hidden]``; commits the KV lengths."""
        span = span or self.span
        segments, row = [], 0
        for work in batch:
            segments.append(Segment(self._sessions[work.key], work.start, work.n, row))
            row += work.n
        angles = [table.angles(segments) for table in self._tables]
        step = self._parts.holder.step = PackedStep(segments, self.span.start)
        hidden = hidden[None]
        for layer, table in self._layers[span.start - self.span.start : span.end - self.span.start]:
            out = layer(
                hidden,
                attention_mask=None,
                position_ids=None,
                past_key_values=step,
                use_cache=True,
                position_embeddings=angles[table],
            )
            hidden = out[0] if isinstance(out, tuple) else out
        self._parts.holder.step = None
        for segment in segments:
            segment.kv.length = segment.start + segment.n
        return hidden[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Of rows after the last layer ``[rows, hidden]`` → ``[rows, vocab]`` (tail only; for checks)."""
        assert self._parts.tail is not None
        return self._parts.tail(hidden)

    def input(self, work: Work) -> Tensor | None:
        """Rows ``[n, hidden]``, or None where they are not finite."""
        if work.ids is not None:
            assert self._parts.head is not None
            return self._parts.head(torch.tensor(work.ids, device=self._device))
        came = work.activations
        assert came is not None
        flat = torch.frombuffer(bytearray(came.data), dtype=DTYPES[came.dtype])
        if not bool(torch.isfinite(flat).all()):
            return None
        return flat.view(came.n, came.hidden).to(device=self._device, dtype=DTYPES[self.dtype])

    def _emit(self, batch: Sequence[Work], hidden: Tensor) -> list[Output]:
        rows = hidden.cpu().contiguous()
        outputs, row = [], 0
        for work in batch:
            data = rows[row : row + work.n].view(torch.uint8).numpy().tobytes()
            outputs.append(Output(work.key, activations=Activations(work.n, self.shape.hidden, self.dtype, data)))
            row += work.n
        return outputs

    def _sample(self, batch: Sequence[Work], hidden: Tensor) -> list[Output]:
        outputs = {work.key: Output(work.key) for work in batch}
        ends, row = [], 0
        for work in batch:
            row += work.n
            if work.sample is not None:
                ends.append((work.key, work.sample, row - 1))
        if ends:
            last = hidden if len(ends) == len(hidden) else hidden[[at for _, _, at in ends]]
            drawn = sample_rows(self.logits(last), [request for _, request, _ in ends])
            for (key, _, _), sampled in zip(ends, drawn, strict=True):
                outputs[key] = Output(
                    key, sampled=sampled, error="" if sampled else "the model's logits are not finite"
                )
        return list(outputs.values())
