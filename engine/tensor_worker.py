"""What a rank of a tensor-parallel span does that is not the first: as the first one does, as it is told.

The first message on its pipe is the job, an Assignment; then come lists of calls. It says "loaded", or why not, then
"ready" when it has met the others, and nothing after that: results travel in the group's sums. engine.tensor_rank is
the process around it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from paceline.engine import family
from paceline.engine.blocks import DTYPES
from paceline.engine.kv_room import KvLimits
from paceline.engine.memory import settle
from paceline.engine.shard import Weights, Work
from paceline.engine.tensor_group import STALL_S, Group
from paceline.engine.tensor_split import Part
from paceline.engine.tensor_workers import LOADED, READY
from paceline.engine.torch_shard import TorchShard
from paceline.store.store import Store
from paceline.wire.errors import PacelineError, WorkerLost
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a rank must know to hold its part: JSON on the pipe. `folder`: where the ranks meet; `store`: the root."""

    rank: int
    ranks: int
    folder: str
    store: str
    revision: str
    start: int
    end: int
    device: str
    dtype: Dtype
    weights: Weights
    threads: int
    kv_positions: int
    packed: bool = True
    stall_s: float = STALL_S

    def encode(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self)).encode()

    @property
    def span(self) -> Span:
        """The layers that all ranks hold together."""
        return Span(self.start, self.end)

    def group(self) -> Group:
        """The ranks, before they have met."""
        return Group(self.rank, self.ranks, Path(self.folder), torch.device(self.device), self.stall_s)

    def part(self, group: Group) -> Part:
        """This rank's share of each."""
        return Part(self.rank, self.ranks, group.join, group.gather)


def load(job: Assignment, group: Group) -> tuple[family.Parts, torch.device]:
    """This rank's part of the span. Raises UnsupportedModel, ModelNotFound, CorruptBlock."""
    store, device = Store(Path(job.store)), torch.device(job.device)
    manifest = store.manifest(job.revision)
    part = job.part(group)
    parts = family.load(store, manifest, job.span, device, job.dtype, packed=job.packed, weights=job.weights, part=part)
    return parts, device


class Rank:
    """One rank's shard, and the calls that the first rank makes on all. Sessions are numbers."""

    def __init__(self, job: Assignment, group: Group) -> None:
        """Raises as `load`."""
        parts, device = load(job, group)
        manifest = Store(Path(job.store)).manifest(job.revision)
        limits = KvLimits(job.kv_positions)
        self._shard = TorchShard(parts, manifest, job.span, job.dtype, device, limits, job.weights, job.threads)
        self._group, self._device, self._dtype = group, device, DTYPES[job.dtype]
        self._calls: dict[str, Callable[..., None]] = {
            "open": self._open,
            "close": self._close,
            "crop": self._shard.crop,
            "forward": self._forward,
            "logits": self._logits,
        }

    def obey(self, calls: list[list[Any]]) -> None:
        """Each call: its name, then its arguments. Raises WorkerLost where the others are gone."""
        for name, *given in calls:
            self._calls[name](*given)

    def _open(self, key: int, positions: int, start: int, end: int) -> None:
        self._shard.open(key, positions, Span(start, end))

    def _close(self, key: int) -> None:
        self._shard.close(key)
        self._shard.tidy()

    @torch.inference_mode()
    def _forward(self, threads: int, start: int, end: int, segments: list[tuple[int, int, int]]) -> None:
        """`segments`: session, first position, rows; the rows themselves come from the first rank."""
        if self._device.type == "cpu" and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        works = [Work(key, first, ids=range(n)) for key, first, n in segments]
        self._shard.forward(works, self._given(sum(n for _, _, n in segments)), Span(start, end))

    @torch.inference_mode()
    def _logits(self, rows: int) -> None:
        self._shard.logits(self._given(rows))

    def _given(self, rows: int) -> torch.Tensor:
        empty = torch.empty(rows, self._shard.shape.hidden, dtype=self._dtype, device=self._device)
        return self._group.hand_out(empty)


def serve(pipe: Connection) -> None:
    """Take the job, say how it went, and obey until the pipe closes or the others are gone."""
    job = Assignment(**json.loads(pipe.recv_bytes()))
    group = job.group()
    try:
        rank = Rank(job, group)
        settle()
        _say(pipe, LOADED)
        group.meet()
    except PacelineError as error:
        _say(pipe, error.code, error.message, error.cure)
        return
    _say(pipe, READY)
    with suppress(EOFError, ConnectionError, WorkerLost):
        while True:
            rank.obey(json.loads(pipe.recv_bytes()))


def _say(pipe: Connection, *words: str) -> None:
    pipe.send_bytes(json.dumps(words).encode())
