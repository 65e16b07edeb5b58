"""The safetensors format, written so that files are equal wherever they are made. Knows bytes, no tensor library.

Layout: ``u64 header length (little-endian) | JSON header | data``. Tensors stand in the given order without gaps (the
format has none); the header is filled up so that data starts at a multiple of 64 bytes, which keeps tensors of usual
sizes aligned for vector instructions when the file is mapped.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.wire.errors import CorruptBlock

ALIGNMENT = 64
MAX_HEADER_BYTES = 16 * 1024 * 1024
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `offset` in bytes from the file's start, `dtype` as safetensors spells it (``F32``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def header(tensors: Sequence[tuple[str, str, Sequence[int], int]]) -> bytes:
    """``(name, dtype, shape, size in bytes)`` of each tensor, in order → the bytes before the data."""
    entries: dict[str, Any] = {}
    at = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-(len(text) + _LENGTH.size) % ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def read_layout(path: Path) -> dict[str, TensorInfo]:
    """Tensors of a safetensors file by name. Raises CorruptBlock for anything else."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > min(MAX_HEADER_BYTES, size - _LENGTH.size):
                raise CorruptBlock(f"{path.name}: header of {length} bytes in a file of {size}")
            entries = json.loads(file.read(length))
        start = _LENGTH.size + length
        found = {name: _info(name, entry, start) for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, struct.error, AttributeError, RecursionError) as error:
        raise CorruptBlock(f"{path.name}: not a safetensors file: {error}") from error
    if any(info.offset < start or info.size < 0 or info.offset + info.size > size for info in found.values()):
        raise CorruptBlock(f"{path.name}: a tensor lies outside the file")
    return found


def _info(name: str, entry: dict[str, Any], start: int) -> TensorInfo:
    first, last = entry["data_offsets"]
    return TensorInfo(name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), start + first, last - first)
