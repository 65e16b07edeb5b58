"""A span on two ranks says what it says on one, family by family; a rank that is lost is an error, and soon.

Most of it runs the ranks as threads of this process, over the same pipes and the same sums as processes have.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING

from bench.parity_shards import ARCHITECTURES, tiny_model
from paceline.engine.convert import from_model
from paceline.engine.measure import measure
from paceline.engine.shard import Paged, SampleRequest, Weights, Work
from paceline.engine.source import publish
from paceline.engine.tensor_parallel import TensorParallelShard, devices_from
from paceline.engine.tensor_split import Part, check, cuts
from paceline.engine.tensor_worker import serve
from paceline.engine.tensor_workers import Worker, Workers
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import InvalidRequest, UnsupportedModel, WorkerLost
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams

GREEDY = SamplingParams()
NOT_CUT = {"olmo2", "olmo3"}


class Threaded:
    """Stands where a worker's process does: a thread, which ends when its pipe closes."""

    pid = 0

    def __init__(self, theirs: Connection, ours: Connection) -> None:
        self._ours = ours
        self._thread = threading.Thread(target=serve, args=(theirs,), daemon=True)
        self._thread.start()

    def wait(self, timeout: float = 0.0) -> None:
        self._ours.close()
        self._thread.join(timeout)

    def poll(self) -> None:
        """Has no status."""


def in_threads(jobs: Sequence[bytes]) -> Workers:
    made = Workers()
    for rank, job in enumerate(jobs, 1):
        ours, theirs = Pipe()
        process = cast("subprocess.Popen[bytes]", Threaded(theirs, ours))
        made.all.append(Worker(rank, process, ours, os.open(os.devnull, os.O_RDONLY)))
        ours.send_bytes(job)
    return made


def published(arch: str, folder: Path) -> tuple[Store, Manifest]:
    store = Store(folder / "store")
    return store, publish(store, from_model(tiny_model(arch, folder / "hf"), "f32"), f"tiny-{arch}")


def logits(shard: TorchShard, ids: Sequence[int], pieces: Sequence[tuple[int, int]]) -> torch.Tensor:
    shard.open("logits", 64)
    found = []
    for start, end in pieces:
        work = Work("logits", start, ids=ids[start:end])
        with torch.inference_mode():
            rows = shard.input(work)
            assert rows is not None
            found.append(shard.logits(shard.forward([work], rows)))
    shard.close("logits")
    return torch.cat(found)


def tokens(shard: TorchShard, key: object, prompt: list[int], n: int) -> list[int]:
    log, fresh = list(prompt), list(prompt)
    while len(log) < len(prompt) + n:
        (output,) = shard.step([Work(key, shard.length(key), ids=fresh, sample=SampleRequest(GREEDY, len(log)))])
        assert output.sampled is not None
        fresh = [output.sampled.token]
        log += fresh
    return log[len(prompt) :]


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - NOT_CUT))
def test_every_family_says_on_two_ranks_what_it_says_on_one(arch: str, tmp_path: Path) -> None:
    """Prefill in chunks, then decode past any window."""
    store, manifest = published(arch, tmp_path)
    ids = torch.randint(3, 256, (32,), generator=torch.Generator().manual_seed(1)).tolist()
    pieces = ((0, 5), (5, 24), *((at, at + 1) for at in range(24, 32)))
    one = logits(TorchShard.load(store, manifest, manifest.span), ids, pieces)
    shard = TensorParallelShard.load(store, manifest, manifest.span, 2, threads=1, start=in_threads)
    two = logits(shard, ids, pieces)
    shard.end()
    assert (one - two).abs().max() <= 2e-4 * one.std()
    assert torch.equal(one.argmax(-1), two.argmax(-1))
