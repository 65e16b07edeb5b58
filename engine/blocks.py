"""Tensors out of a store's blocks, mapped: nothing is read before it is touched. Knows torch and files, no models."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from paceline.store.tensorfile import TensorInfo, read_layout
from paceline.wire.errors import UnsupportedModel
from paceline.wire.messages import Dtype

DTYPES: dict[Dtype, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_FILE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, as views of one private mapping (writing to them leaves the file alone)."""
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _view(mapping, info) for name, info in read_layout(path).items()}


def _view(mapping: mmap.mmap, info: TensorInfo) -> Tensor:
    dtype = _FILE_DTYPES.get(info.dtype)
    if dtype is None:
        raise UnsupportedModel(f"tensor {info.name} has dtype {info.dtype}", cure="convert the model to F32, BF16, F16")
    count = info.size // dtype.itemsize
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=info.offset).view(info.shape)
