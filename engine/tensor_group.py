"""The sums between the ranks of a tensor-parallel span: NCCL between GPUs, gloo between processes of a CPU.

Ranks meet through a file in a folder of their own and talk over loopback and the machine's own buses: nothing of it can
be reached from outside. Knows tensors and ranks; no layers, no processes.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad

from paceline.wire.errors import UnsupportedModel, WorkerLost

dist: Any = distributed
"""Its stubs lack half of what is used here."""
LOOPBACK = "127.0.0.1"
STALL_S = 30.0
"""A rank that others wait for so long is taken for lost. Between two sums lies half a layer."""
_NCCL = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "NCCL_NVLS_ENABLE": "0"}
"""One machine: no network, and no multicast between GPUs, which not every container may use."""


class Group:
    """`ranks` processes that compute together. Every rank must make the same calls in the same order."""

    def __init__(self, rank: int, ranks: int, folder: Path, device: torch.device, stall_s: float = STALL_S) -> None:
        """`folder`: of their own. `stall_s`: how long one may keep the others waiting, from `meet` on."""
        self.rank, self.ranks = rank, ranks
        self._folder, self._device, self._stall_s = folder, device, stall_s
        self._group: Any = None

    def meet(self) -> None:
        """Wait until all have come. Raises WorkerLost, UnsupportedModel."""
        store = dist.FileStore(str(self._folder / "ranks"), self.ranks)
        wait = timedelta(seconds=self._stall_s)
        try:
            self._group = self._nccl(store, wait) if self._device.type == "cuda" else self._gloo(store, wait)
        except RuntimeError as error:
            raise WorkerLost(f"rank {self.rank} of {self.ranks} could not meet the others: {error}") from error

    def _gloo(self, store: Any, wait: timedelta) -> Any:
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
        options._timeout = wait
        return dist.ProcessGroupGloo(store, self.rank, self.ranks, options)

    def _nccl(self, store: Any, wait: timedelta) -> Any:
        if not dist.is_nccl_available():
            raise UnsupportedModel("this torch has no NCCL", cure="install torch for CUDA on Linux")
        for name, value in _NCCL.items():
            os.environ.setdefault(name, value)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = wait
        torch.cuda.set_device(self._device)
        return dist.ProcessGroupNCCL(store, self.rank, self.ranks, options)

    def join(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, the same bits on each. May overwrite `x`. Raises WorkerLost."""
        wide = x.contiguous() if x.is_cuda else x.float().contiguous()
        self._done(self._group.allreduce, [wide])
        return wide.to(x.dtype)

    def gather(self, mine: Tensor, widths: list[int]) -> Tensor:
        """``[…, widths[rank]]`` of all ranks side by side. Raises WorkerLost."""
        most = max(widths)
        padded = pad(mine, (0, most - mine.shape[-1])).contiguous()
        found = [torch.empty_like(padded) for _ in widths]
        self._done(self._group.allgather, [found], [padded])
        return torch.cat([part[..., :width] for part, width in zip(found, widths, strict=True)], dim=-1)

    def hand_out(self, x: Tensor) -> Tensor:
        """The first rank's `x` on all of them; others give an empty tensor like it. Raises WorkerLost."""
        wide = x.contiguous()
        self._done(self._group.broadcast, [wide])
        return wide

    def abort(self) -> None:
        """End what the device is waiting for. From any thread; the group is of no use afterwards."""
        self._group.abort()

    def leave(self) -> None:
        """Before the others are ended: a GPU's group would wait for them when it is taken down."""
        if self._group is not None and self._device.type == "cuda":
            self.abort()

    def _done(self, call: Any, *tensors: Any) -> None:
        """On a GPU: queued behind what was queued before; a rank that is lost then shows by `abort`."""
        try:
            call(*tensors).wait()
        except RuntimeError as error:
            raise WorkerLost(f"rank {self.rank} of {self.ranks} waited for the others in vain: {error}") from error
