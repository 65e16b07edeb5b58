"""Where a span runs, and as which shard. Knows devices and what is installed; imports torch and the lean path late.

On a GPU the lean path runs the families that it knows, in bf16, with weights as they are or coded; transformers'
modules run every other, and every other number format. Both speak the same seam.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

from paceline.engine.shard import Weights
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import InvalidRequest
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype

if TYPE_CHECKING:
    from paceline.engine.cuda_shard import LeanShard

AUTO = "auto"
_FP8_FROM = (8, 9)
"""Compute capability."""


def gpu_present() -> bool:
    """Whether NVIDIA's driver counts a GPU here. Without torch: asked before it is settled what a process imports."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with suppress(OSError):
            driver, count = ctypes.CDLL(name), ctypes.c_int()
            return bool(driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0)
    return False


def resolved(device: str) -> str:
    """``auto`` → ``cuda`` where this process's torch has one, else ``cpu``. Other names stay."""
    if device != AUTO:
        return device
    if not gpu_present():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_on(device: str, dtype: Dtype | str) -> Dtype:
    """``auto`` → bf16 on a GPU, f32 elsewhere. `device` is resolved."""
    if dtype == AUTO:
        return "bf16" if device.startswith("cuda") else "f32"
    return dtype  # type: ignore[return-value]


def can_compile() -> bool:
    """Whether the kernels can be built here: Triton, which torch for CUDA brings, and any C compiler."""
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return find_spec("triton") is not None and any(name and shutil.which(name) for name in compilers)


def lean_shard(
    store: Store,
    manifest: Manifest,
    span: Span,
    device: str,
    dtype: Dtype,
    kv_positions: int,
    *,
    warm: bool = True,
    weights: Weights = "f32",
) -> LeanShard | None:
    """The lean shard of a span on a GPU; None where transformers' modules must run it. `device` is resolved.

    `warm`: also capture the graphs of decode steps, which takes seconds; else each is captured when it is first wanted.
    Raises as `LeanShard.load`.
    """
    if not device.startswith("cuda") or dtype != "bf16" or not can_compile():
        return None
    from paceline.engine.cuda_shard import LeanShard, lean_arch

    if lean_arch(manifest, device) is None:
        return None
    shard = LeanShard.load(store, manifest, span, device=device, dtype=dtype, kv_positions=kv_positions, form=weights)
    if warm:
        shard.warm()
    return shard


def check_weights(device: str, weights: Weights) -> None:
    """Raises InvalidRequest for a form of weights that a device does not multiply. `device` is resolved."""
    if not device.startswith("cuda"):
        if weights == "fp8":
            raise InvalidRequest("fp8 weights are for GPUs", cure="choose f32, bf16, int8 or int4 on a CPU")
        return
    if weights == "bf16":
        raise InvalidRequest("bf16 is what a GPU computes in", cure="leave --weights out; or int8, fp8, int4")
    if weights == "fp8":
        import torch

        if torch.cuda.get_device_capability(device) < _FP8_FROM:
            raise InvalidRequest("this GPU has no fp8 (it came with Ada and Hopper)", cure="choose int8 or int4")
