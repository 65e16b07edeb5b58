"""The real shard: a span of transformers' layers over packed, ragged batches. Knows torch, and no network.

A batch is one row of concatenated segments ``[1, rows, hidden]``: decode steps of many sessions and prefill chunks
together, so weights are read once per step. Lengths are committed when all layers have run; what a failed step wrote
lies beyond them and is overwritten.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from paceline.engine import family
from paceline.engine.blocks import DTYPES
from paceline.engine.kv import PackedStep, Segment
from paceline.engine.kv_room import KvLimits, KvRoom, KvStatistics, Recalled
from paceline.engine.lean import LeanLayer, angles
from paceline.engine.rope import RotaryTable
from paceline.engine.sampling import sample_rows
from paceline.engine.sessions import check_caller, refusal
from paceline.engine.shard import Activations, Key, ModelShape, Output, Weights, Work
from paceline.engine.threads import ThreadChoice
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype

_ACCEPTED: tuple[Dtype, ...] = ("f32", "bf16", "f16")
FEW_ROWS = 8
"""Up to this many rows a step is a decode step, as far as threads go; with more it runs on all of them."""
_POISON = "non-finite activations from upstream"


@dataclass(frozen=True, slots=True)
class _Run:
    """A work that can run: its rows ``[n, hidden]``, of which the first `recalled.n` were computed before."""

    work: Work
    rows: Tensor
    recalled: Recalled


class TorchShard:
    """A `Shard` of one span. Not thread-safe: one engine thread."""

    def __init__(
        self,
        parts: family.Parts,
        manifest: Manifest,
        span: Span,
        dtype: Dtype,
        device: torch.device,
        limits: KvLimits | None = None,
        weights: Weights = "f32",
        threads: int = 0,
    ) -> None:
        """Use `load`."""
        self.span, self.dtype = span, dtype
        context = min(parts.max_context, manifest.max_context)
        self.shape = ModelShape(len(manifest.layers), manifest.hidden, manifest.vocab, context, manifest.eos_ids)
        self.numerics = f"{device.type}-{dtype}" + ("" if weights == "f32" else f"-{weights}")
        self._parts, self._device = parts, device
        self.threads = threads or torch.get_num_threads()
        self._choices = defaultdict[tuple[int, int], ThreadChoice](partial(ThreadChoice, self.threads))
        """Steps that take about as long, by rows and by positions that they attend to, share a choice."""
        self._lean = any(isinstance(layer, LeanLayer) for layer in parts.layers)
        name = f"{manifest.revision.hex()} {self.numerics}"
        self._room = KvRoom(span, len(manifest.layers), limits or KvLimits(), context, name)
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
        weights: Weights = "f32",
        kv: KvLimits | None = None,
        budget: int | None = None,
    ) -> TorchShard:
        """Load a span. `threads` 0 leaves torch's choice; `kv` goes before `kv_positions`.
        `weights`: the form of packed linear weights, part of the numerics class; rows stay in `dtype`. `budget`: bytes
        of them in memory; layers beyond it are run from the store's files (engine.mapped).

        Raises UnsupportedModel, ModelNotFound, CorruptBlock.
        """
        where = torch.device(device)
        parts = family.load(store, manifest, span, where, dtype, packed=packed, weights=weights, budget=budget)
        return cls(parts, manifest, span, dtype, where, kv or KvLimits(kv_positions), weights, threads)

    @property
    def lean_layers(self) -> int:
        """How many layers run in the lean form (engine.lean)."""
        return sum(isinstance(layer, LeanLayer) for layer, _ in self._layers)

    # --- sessions

    @property
    def kv_free(self) -> int:
        return self._room.free

    def open(self, key: Key, max_positions: int, span: Span | None = None) -> None:
        span = span or self.span
        if not self.span.covers(span):
            raise ValueError(f"span {span} is not inside {self.span}")
        self._room.open(key, max_positions, span)

    def close(self, key: Key) -> None:
        self._room.close(key)

    def length(self, key: Key) -> int:
        return self._room.length(key)

    def crop(self, key: Key, length: int) -> None:
        self._room.crop(key, length)

    def share(self, key: Key, scope: bytes) -> None:
        """See engine.shard.Paged."""
        self._room.share(key, scope)

    def turn(self, wanting: Sequence[Key]) -> list[Key]:
        """See engine.shard.Paged."""
        return self._room.turn(wanting)

    def account(self) -> dict[str, int | float]:
        """See engine.shard.Paged."""
        now = self._room.statistics()
        kept = {f"prefix_{name}": value for name, value in asdict(now.prefixes).items()}
        return {name: value for name, value in asdict(now).items() if name != "prefixes"} | kept

    @property
    def untidy(self) -> bool:
        """See engine.shard.Paged."""
        return self._room.untidy

    def tidy(self) -> None:
        """See engine.shard.Paged."""
        self._threads(1)
        self._room.tidy()

    def kv_statistics(self) -> KvStatistics:
        """Live counters of the KV's moves and reuse."""
        return self._room.statistics()

    # --- the step

    @contextmanager
    def _on_threads(self, rows: int, positions: int) -> Iterator[None]:
        """For a step of so many rows behind so many positions: arithmetic bounds a prefill, which gets all threads."""
        if not 0 < rows <= FEW_ROWS:
            self._threads(self.threads)
            yield
            return
        choice = self._choices[rows.bit_length(), positions // 2048]
        threads = choice.choose()
        self._threads(threads)
        began = time.perf_counter()
        yield
        choice.took(threads, time.perf_counter() - began)

    def _threads(self, wanted: int) -> None:
        if self._device.type == "cpu" and torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    @torch.inference_mode()
    def step(self, batch: Sequence[Work]) -> list[Output]:
        check_caller(batch, [self.length(work.key) for work in batch])
        self._threads(1)  # KV is copied by one thread: a barrier in each small copy costs more than the copy
        self.tidy()
        outputs: dict[Key, Output] = {}
        ready: dict[Key, _Run] = {}
        for work in batch:
            span, reserved = self._room.span(work.key), self._room.reserved(work.key)
            wrong = refusal(work, self.shape, span, reserved, _ACCEPTED)
            rows = None if wrong else self.input(work)
            if rows is None:
                outputs[work.key] = Output(work.key, error=wrong or _POISON)
            else:
                ready[work.key] = _Run(work, rows, Recalled())
        for wave in self._room.waves([run.work for run in ready.values()]):
            runs: dict[Span, list[_Run]] = {}
            for work in wave:
                run = replace(ready[work.key], recalled=self._room.recall(work))
                runs.setdefault(self._room.span(work.key), []).append(run)
            for span, members in runs.items():
                outputs |= {output.key: output for output in self._step(span, members)}
        return [outputs[work.key] for work in batch]

    def _step(self, span: Span, runs: Sequence[_Run]) -> list[Output]:
        """Sessions that use the same part of the span."""
        segments, inputs, row = [], [], 0
        for run in runs:
            skip = run.recalled.n
            kv = self._room.kv(run.work.key)
            kv.length = run.work.start + skip
            if skip < run.work.n:
                segments.append(Segment(kv, kv.length, run.work.n - skip, row))
                inputs.append(run.rows[skip:] if skip else run.rows)
                row += run.work.n - skip
        with self._on_threads(row, sum(segment.start + segment.n for segment in segments)):
            hidden = None if not inputs else inputs[0] if len(inputs) == 1 else torch.cat(inputs)
            if hidden is not None:
                hidden = self._forward(segments, hidden, span)
            outputs = self._sample(runs, hidden) if span.end == self.shape.layers else self._emit(runs, hidden)
        for run, output in zip(runs, outputs, strict=True):
            self._room.applied(run.work, b"" if output.activations is None else output.activations.data)
        return outputs

    @torch.inference_mode()
    def forward(self, batch: Sequence[Work], hidden: Tensor, span: Span | None = None) -> Tensor:
        """The layers of `span` (default: all) over packed rows ``[rows, hidden]``; commits the KV lengths."""
        segments, row = [], 0
        for work in batch:
            segments.append(Segment(self._room.kv(work.key), work.start, work.n, row))
            row += work.n
        return self._forward(segments, hidden, span or self.span)

    def _forward(self, segments: list[Segment], hidden: Tensor, span: Span) -> Tensor:
        turned = [table.angles(segments) for table in self._tables]
        lean = [angles(*pair) for pair in turned] if self._lean else []
        step = self._parts.holder.step = PackedStep(segments, self.span.start)
        for layer, table in self._layers[span.start - self.span.start : span.end - self.span.start]:
            if isinstance(layer, LeanLayer):
                hidden = layer(hidden, lean[table], step)
                continue
            out = layer(
                hidden[None],
                attention_mask=None,
                position_ids=None,
                past_key_values=step,
                use_cache=True,
                position_embeddings=turned[table],
            )
            hidden = (out[0] if isinstance(out, tuple) else out)[0]
        self._parts.holder.step = None
        for segment in segments:
            segment.kv.length = segment.start + segment.n
        return hidden

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

    def _emit(self, runs: Sequence[_Run], hidden: Tensor | None) -> list[Output]:
        rows = None if hidden is None else hidden.cpu().contiguous()
        outputs, row = [], 0
        for run in runs:
            n, data = run.work.n - run.recalled.n, run.recalled.rows
            if n:
                assert rows is not None
                fresh = rows[row : row + n].view(torch.uint8).numpy().tobytes()
                data = data + fresh if data else fresh
                row += n
            outputs.append(
                Output(run.work.key, activations=Activations(run.work.n, self.shape.hidden, self.dtype, data))
            )
        return outputs

    def _sample(self, runs: Sequence[_Run], hidden: Tensor | None) -> list[Output]:
        outputs = {run.work.key: Output(run.work.key) for run in runs}
        ends, row = [], 0
        for run in runs:
            row += run.work.n - run.recalled.n
            if run.work.sample is not None:
                ends.append((run.work.key, run.work.sample, row - 1))
        if ends:
            assert hidden is not None
            last = hidden if len(ends) == len(hidden) else hidden[[at for _, _, at in ends]]
            drawn = sample_rows(self.logits(last), [request for _, request, _ in ends])
            for (key, _, _), sampled in zip(ends, drawn, strict=True):
                outputs[key] = Output(
                    key, sampled=sampled, error="" if sampled else "the model's logits are not finite"
                )
        return list(outputs.values())
