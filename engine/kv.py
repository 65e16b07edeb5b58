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
        self.expected = 0
        """Positions that are about to be written: one growth instead of several."""
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    @property
    def capacity(self) -> int:
        """Positions that memory is held for."""
        return next((keys.shape[1] for keys in self.keys if keys is not None), 0)

    def capacity_for(self, end: int) -> int:
        """`capacity` once positions ``[0, end)`` have been written."""
        return self._capacity(self.capacity, end)

    def parts(self, start: int, end: int) -> list[Tensor]:
        """Views of positions ``[start, end)``: keys and values of each layer that the session uses, in order."""
        held = [tensor for pair in zip(self.keys, self.values, strict=True) for tensor in pair if tensor is not None]
        return [tensor[:, start:end] for tensor in held]

    def drop(self) -> None:
        """Free the memory. `length` stays: the caller has the content elsewhere."""
        self.keys, self.values = [None] * len(self.keys), [None] * len(self.values)

    def write(self, layer: int, start: int, key: Tensor, value: Tensor) -> None:
        """Put ``[kv heads, n, head size]`` at positions ``[start, start + n)`` of the span's `layer`-th layer."""
        end = start + key.shape[1]
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None or keys.shape[1] < end:
            keys = self.keys[layer] = self._grown(keys, key, start, end)
            values = self.values[layer] = self._grown(values, value, start, end)
        keys[:, start:end] = key
        values[:, start:end] = value

    def put(self, layer: int, which: int, start: int, part: Tensor) -> None:
        """As `write`, of the keys (`which` 0) or the values (1) alone."""
        held = (self.keys, self.values)[which]
        tensor, end = held[layer], start + part.shape[1]
        if tensor is None or tensor.shape[1] < end:
            tensor = held[layer] = self._grown(tensor, part, start, end)
        tensor[:, start:end] = part

    def read(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Views ``[kv heads, end - start, head size]`` of keys and values."""
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None
        assert values is not None
        return keys[:, start:end], values[:, start:end]

    def _grown(self, old: Tensor | None, like: Tensor, used: int, need: int) -> Tensor:
        capacity = self._capacity(0 if old is None else old.shape[1], max(need, self.expected))
        new = torch.empty(like.shape[0], capacity, like.shape[2], dtype=like.dtype, device=like.device)
        if old is not None:
            new[:, :used] = old[:, :used]
        return new

    def _capacity(self, now: int, end: int) -> int:
        capacity = now or _FIRST
        while capacity < end:
            capacity *= 2
        return max(end, min(capacity, self.limit))


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
        self.asked: tuple[float | None, int | None, bool] = (None, None, False)
        """How the last layer attended: scale, window, and whether with a soft cap or sinks (engine.lean asks)."""
