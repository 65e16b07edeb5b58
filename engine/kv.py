"""Keys and values of sessions, and the batch that one step runs over them. Knows tensors' shapes, and no model family.

Each session has, per layer, one growing tensor of keys and one of values, ``[kv heads, capacity, head size]``, filled
up to the session's length. Cropping is setting the length. Capacity doubles, up to what the session reserved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FIRST = 64
"""Positions of the first allocation."""


class SessionKV:
    """KV of one session in one span."""

    def __init__(self, layers: int, limit: int) -> None:
        self.length = 0
        self.limit = limit
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    def write(self, layer: int, start: int, key: Tensor, value: Tensor) -> None:
        """Put ``[kv heads, n, head size]`` at positions ``[start, start + n)`` of the span's `layer`-th layer."""
        end = start + key.shape[1]
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None or keys.shape[1] < end:
            keys = self.keys[layer] = self._grown(keys, key, start, end)
            values = self.values[layer] = self._grown(values, value, start, end)
        keys[:, start:end] = key
        values[:, start:end] = value

    def read(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Views ``[kv heads, end - start, head size]`` of keys and values."""
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None
        assert values is not None
        return keys[:, start:end], values[:, start:end]

    def _grown(self, old: Tensor | None, like: Tensor, used: int, need: int) -> Tensor:
        capacity = _FIRST if old is None else old.shape[1]
        while capacity < need:
            capacity *= 2
        new = torch.empty(like.shape[0], min(capacity, self.limit), like.shape[2], dtype=like.dtype, device=like.device)
        if old is not None:
            new[:, :used] = old[:, :used]
        return new


@dataclass(frozen=True, slots=True)
class Segment:
    """One session's rows ``[row, row + n)`` in a packed batch: its positions ``[start, start + n)``."""

    kv: SessionKV
    start: int
    n: int
    row: int


class PackedStep:
    """Stands where transformers' layers expect a cache: takes each layer's new keys and values into the sessions.

    `update` hands back what it was given; the attention function (engine.attention) reads the sessions instead.
    """

    def __init__(self, segments: list[Segment], first_layer: int) -> None:
        self.segments = segments
        self.first_layer = first_layer

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """`key`, `value`: ``[1, kv heads, rows, head size]``."""
        layer = layer_idx - self.first_layer
        if len(self.segments) == 1:
            self.segments[0].kv.write(layer, self.segments[0].start, key[0], value[0])
        else:
            for segment in self.segments:
                rows = slice(segment.row, segment.row + segment.n)
                segment.kv.write(layer, segment.start, key[0, :, rows], value[0, :, rows])
        return key, value


class StepHolder:
    """What a shard's attention modules share: the step that is running."""

    def __init__(self) -> None:
        self.step: PackedStep | None = None
