"""One span on several devices of one machine: this process is the first rank, and has the others compute along.

Each rank holds its part of every layer and of the keys and values (engine.tensor_split); this one alone holds the
embedding, decides, samples and speaks the seam. What changes sessions is written down and told to the others together
with the next step: which sessions, positions and how many rows; the rows themselves are handed out by the group. Where
a rank is lost the step raises WorkerLost, and so does every later one: half a layer is no answer.

Sums come in another order than on one device, so the numerics class is one of its own (``cpu-f32-tp2``): rings are of
one class, so tokens are exact within it. Sessions keep their KV in memory: the ranks would have to page in step.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paceline.engine import family, tensor_split
from paceline.engine.kv import Segment, SessionKV
from paceline.engine.kv_room import KvLimits
from paceline.engine.shard import Key, Output, Weights, Work
from paceline.engine.tensor_group import STALL_S, Group
from paceline.engine.tensor_worker import Assignment, load
from paceline.engine.tensor_workers import LOADED, READY, Workers
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import InvalidRequest, WorkerLost
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype


class TensorParallelShard(TorchShard):
    """A `Shard` over several processes. Not thread-safe: one engine thread. `end` ends the others; so does forgetting
    the shard, and this process's end, however it comes."""

    def __init__(
        self,
        parts: family.Parts,
        manifest: Manifest,
        job: Assignment,
        device: torch.device,
        group: Group,
        told: Workers,
    ) -> None:
        """Use `load`."""
        limits = KvLimits(job.kv_positions)
        super().__init__(parts, manifest, job.span, job.dtype, device, limits, job.weights, job.threads)
        self.numerics += f"-tp{job.ranks}"
        self.ranks = job.ranks
        self._group, self._workers = group, told
        self._numbers: dict[Key, int] = {}
        self._of: dict[SessionKV, int] = {}
        self._count = 0
        self._untold: list[tuple[Any, ...]] = []
        self._end = weakref.finalize(self, _clean_up, group, told, job.folder)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        store: Store,
        manifest: Manifest,
        span: Span,
        ranks: int,
        *,
        device: str = "cpu",
        dtype: Dtype = "f32",
        threads: int = 0,
        kv_positions: int = 65_536,
        packed: bool = True,
        weights: Weights = "f32",
        stall_s: float = STALL_S,
        start: Callable[[Sequence[bytes]], Workers] = Workers.start,
    ) -> TensorParallelShard:
        """Start the other ranks and load the span with them. `device`: the first rank's; on GPUs the others take those
        that follow. `threads` of each rank; 0: this process's number, divided. `stall_s`: how long a rank may stand
        still.

        Raises InvalidRequest, UnsupportedModel, ModelNotFound, CorruptBlock, WorkerLost.
        """
        tensor_split.check(family.configuration(manifest), ranks)
        devices = devices_from(device, ranks)
        folder = tempfile.mkdtemp(prefix="paceline-ranks-")
        first = Assignment(
            rank=0,
            ranks=ranks,
            folder=folder,
            store=str(store.root.absolute()),
            revision=manifest.revision.hex(),
            start=span.start,
            end=span.end,
            device=devices[0],
            dtype=dtype,
            weights=weights,
            threads=threads or max(1, torch.get_num_threads() // ranks),
            kv_positions=kv_positions,
            packed=packed,
            stall_s=stall_s,
        )
        jobs = [replace(first, rank=rank, device=devices[rank]).encode() for rank in range(1, ranks)]
        told, group = start(jobs), first.group()
        try:
            parts, where = load(first, group)
            told.wait(LOADED)
            group.meet()
            told.wait(READY)
        except BaseException:
            _clean_up(group, told, folder)
            raise
        made = cls(parts, manifest, first, where, group, told)
        told.watch(group.abort)
        return made

    def check(self) -> None:
        """See engine.shard.Spread."""
        self._workers.check()

    def end(self) -> None:
        """See engine.shard.Spread."""
        self._end()

    @property
    def pids(self) -> list[int]:
        """The other ranks' processes."""
        return self._workers.pids

    # --- sessions

    def open(self, key: Key, max_positions: int, span: Span | None = None) -> None:
        super().open(key, max_positions, span)
        self._count += 1
        self._numbers[key] = self._of[self._room.kv(key)] = self._count
        used = span or self.span
        self._untold.append(("open", self._count, max_positions, used.start, used.end))

    def close(self, key: Key) -> None:
        if key in self._numbers:
            del self._of[self._room.kv(key)]
            self._untold.append(("close", self._numbers.pop(key)))
        super().close(key)

    def crop(self, key: Key, length: int) -> None:
        super().crop(key, length)
        self._untold.append(("crop", self._numbers[key], length))

    def share(self, key: Key, scope: bytes) -> None:
        """Nothing is shared: a rank knows rows, not where they came from."""

    @property
    def untidy(self) -> bool:
        """True where closed sessions still hold memory, here or on the other ranks."""
        return super().untidy or any(call[0] == "close" for call in self._untold)

    def tidy(self) -> None:
        """See engine.shard.Paged. Raises WorkerLost."""
        super().tidy()
        if any(call[0] == "close" for call in self._untold):
            self._tell()

    # --- the step

    def step(self, batch: Sequence[Work]) -> list[Output]:
        """As engine.shard.Shard. Raises WorkerLost."""
        self._workers.check()
        try:
            outputs = super().step(batch)
        except WorkerLost as error:
            raise self._workers.error() from error
        except RuntimeError as error:  # a GPU that read from a neighbour which is gone: was one?
            self._workers.notice()
            self._workers.check()
            raise error
        self._workers.check()  # a GPU whose neighbour is gone ends its sums when told to, with whatever they hold
        return outputs

    def _forward(self, segments: list[Segment], hidden: Tensor, span: Span) -> Tensor:
        rows = [(self._of[segment.kv], segment.start, segment.n) for segment in segments]
        self._tell("forward", torch.get_num_threads(), span.start, span.end, rows)
        return super()._forward(segments, self._group.hand_out(hidden), span)

    def logits(self, hidden: Tensor) -> Tensor:
        """See TorchShard. Raises WorkerLost."""
        self._tell("logits", len(hidden))
        return super().logits(self._group.hand_out(hidden))

    def _tell(self, *call: Any) -> None:
        calls = [*self._untold, call] if call else self._untold
        self._untold = []
        self._workers.tell(calls)


def devices_from(first: str, ranks: int) -> list[str]:
    """The ranks' devices: the CPU for all, or GPUs from `first` on. Raises InvalidRequest."""
    kind, _, number = first.partition(":")
    if kind != "cuda":
        return [first] * ranks
    start, present = int(number or 0), torch.cuda.device_count()
    if start + ranks > present:
        raise InvalidRequest(
            f"{ranks} GPUs from {kind}:{start} on are wanted, this machine has {present}",
            cure=f"--tensor-parallel {present - start} at most"
            if present - start > 1
            else "leave --tensor-parallel out",
        )
    return [f"{kind}:{start + rank}" for rank in range(ranks)]


def _clean_up(group: Group, told: Workers, folder: str) -> None:
    group.leave()
    told.close()
    shutil.rmtree(folder, ignore_errors=True)
